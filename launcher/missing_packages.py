"""Prints, comma-separated, what the command line needs and this Python lacks: see NEEDED_BESIDES, and requirements.txt.

Prints nothing when all are there. Exit status 1 for a Python that is too old. Uses the standard library only: it runs
in environments that others made.
"""

import re
import sys
from importlib import metadata

if sys.version_info < (3, 10):  # noqa: UP036 - it may be any Python that the user names
    sys.exit(1)

# Which requirements.txt leaves out for ComfyUI's sake.
NEEDED_BESIDES = ("torch", "torchvision", "diffusers", "open_clip_torch")


def named_packages(requirements: str) -> list:
    """The distribution names that a requirements file's text lists, in its order."""
    return re.findall(r"^[A-Za-z0-9][A-Za-z0-9._-]*", requirements, flags=re.MULTILINE)


def is_missing(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return True
    return False


with open(sys.argv[1], encoding="utf-8") as file:
    print(", ".join(filter(is_missing, [*NEEDED_BESIDES, *named_packages(file.read())])))
