"""Print, separated by commas, the packages that this Python lacks: of requirements.txt and NEEDED_BESIDES.

Prints nothing if all are installed. Exit status 1 if the Python is too old. Uses only the standard library, because it
runs in environments of the user.
"""

import re
import sys
from importlib import metadata

if sys.version_info < (3, 10):  # noqa: UP036 - the user may choose any Python
    sys.exit(1)

# Not in requirements.txt, because ComfyUI installs from that file.
NEEDED_BESIDES = ("torch", "torchvision", "diffusers", "open_clip_torch")


def listed_packages(requirements: str) -> list:
    """Return the package names in the text of a requirements file."""
    return re.findall(r"^[A-Za-z0-9][A-Za-z0-9._-]*", requirements, flags=re.MULTILINE)


def is_missing(package: str) -> bool:
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return True
    return False


with open(sys.argv[1], encoding="utf-8") as file:
    print(", ".join(filter(is_missing, [*NEEDED_BESIDES, *listed_packages(file.read())])))
