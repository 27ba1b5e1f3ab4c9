"""What works on this machine, what is missing and where to get it: `./vc doctor`."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ..models import KINDS, MODELS, PROJECT, find_model_files, model_folders
from ..progress import Progress

Findings = dict[str, Any]
"""What was found, in values that JSON holds."""

# What composing needs beyond requirements.txt; the rest of requirements-dev.txt serves tests and training.
NEEDED = ("torch", "torchvision", "diffusers", "open_clip_torch")
# Name -> what it is for. Of the decoders, any source may need one; of the encoders, .mp4 and motion need theirs.
ENCODERS = {"libx264": ".mp4", "libvpx-vp9": ".webm", "mpeg4": "motion"}
DECODERS = ("h264", "hevc", "vp9", "av1")


def examine(hash: bool = False, progress: Progress | None = None) -> Findings:
    """Looks at everything that composing depends on, and composes a small video to see whether it works.

    Args:
        hash: also compute the SHA-256 of the models that are found, which reads them as a whole.
    """
    checks: dict[str, Callable[[], Any]] = {
        "python": lambda: {"version": platform.python_version(), "system": platform.platform()},
        "libraries": libraries,
        "devices": devices,
        "codecs": codecs,
        "models": lambda: models(hash, progress),
        "compiler": compiler,
        "disk": disk,
        "problem": problem,
    }
    findings: Findings = {}
    for name, look in checks.items():
        try:
            findings[name] = look()
        except ImportError as error:  # told once, under libraries
            findings[name] = f"cannot be told: {error}"
    return {"works": findings["problem"] is None, **findings}


def libraries() -> list[Findings]:
    """Every requirement, which version of it is here, and whether that satisfies it."""
    from packaging.requirements import Requirement

    found = []
    for text, needed in _requirements():
        requirement = Requirement(text)
        version = _version(requirement.name)
        satisfied = version is not None and requirement.specifier.contains(version, prereleases=True)
        found.append(
            {
                "name": requirement.name,
                "wanted": str(requirement.specifier),
                "version": version,
                "satisfied": satisfied,
                "needed": needed or requirement.name in NEEDED,
            }
        )
    return found


def _requirements() -> Iterator[tuple[str, bool]]:
    """Requirements by the files beside the core, or by its own metadata where pip installed it without them; and
    whether nothing works without them."""
    files = [PROJECT / "requirements.txt", PROJECT / "requirements-dev.txt"]
    if not files[0].is_file():
        yield from ((text, "extra ==" not in text) for text in metadata.requires("videocomposer") or [])
        return
    for file in files:
        lines = (line.partition("#")[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
        yield from ((line, file is files[0]) for line in lines if line)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def devices() -> list[Findings]:
    """Where composing can run, and the types that make sense for the weights there."""
    import torch

    found: list[Findings] = [
        {
            "name": "cpu",
            "what": torch.backends.cpu.get_cpu_capability(),
            "threads": torch.get_num_threads(),
            "cores": os.cpu_count(),
            "dtypes": ["fp32"],
        }
    ]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        capability = (properties.major, properties.minor)
        found.append(
            {
                "name": f"cuda:{index}",
                "what": properties.name,
                "capability": ".".join(map(str, capability)),
                "memory": total,
                "free": free,
                # bf16 is computed in hardware from Ampere on; fp8 only stores, so it asks for nothing.
                "dtypes": ["fp16", *(["bf16"] if capability >= (8, 0) else []), "fp8"],
            }
        )
    if torch.backends.mps.is_available():
        found.append({"name": "mps", "what": platform.processor() or "Apple", "dtypes": ["fp16", "fp32"]})
    return found


def codecs() -> Findings:
    """Which of the encoders and decoders that may be needed are here."""
    import av
    from PIL import features

    def is_here(name: str, mode: str) -> bool:
        try:
            return bool(av.codec.Codec(name, mode))
        except av.codec.codec.UnknownCodecError:
            return False

    return {
        "encoders": {name: is_here(name, "w") for name in ENCODERS},
        "decoders": {name: is_here(name, "r") for name in DECODERS},
        "pillow": {"gif": True, "webp": bool(features.check("webp"))},
    }


def models(hash: bool = False, progress: Progress | None = None) -> Findings:
    """The table of models, with what of it was found; sizes in bytes."""
    from ..files import sha256

    folders = model_folders()
    found = find_model_files(folders)

    def describe(item: Any) -> Findings:
        known = item.model.sha256
        right = sha256(item.path, progress) == known if hash and known else None
        return {"path": str(item.path), "size": item.path.stat().st_size, "right_size": item.right_size, "right": right}

    return {
        "folders": [{"path": str(folder), "exists": folder.is_dir()} for folder in folders],
        "files": [
            {**vars(model), "found": [describe(item) for item in found if item.model == model]} for model in MODELS
        ],
    }


def compiler() -> str | None:
    """The C++ compiler that torch.compile needs on the CPU."""
    return shutil.which(os.environ.get("CXX", "g++"))


def disk() -> list[Findings]:
    """Free space where results, models and temporary files go, in bytes."""
    places = {"results": Path.cwd(), "models": model_folders()[0], "temporary files": Path(tempfile.gettempdir())}
    found = []
    for what, folder in places.items():
        there = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        found.append({"what": what, "path": str(folder), "free": shutil.disk_usage(there).free})
    return found


def problem() -> str | None:
    """Why composing with the bundled checkpoint does not work, and what to do; None where it works. It is tried."""
    missing = [f"{item['name']}{item['wanted']}" for item in libraries() if item["needed"] and not item["satisfied"]]
    if missing:
        return f"{', '.join(missing)} are missing or of another version: run ./vc --setup, or install them with pip."
    try:
        from .running import run
        from .settings import Settings

        with tempfile.TemporaryDirectory() as folder:
            run(Settings(text="a red circle", frames=2, steps=1, scale=1, out=Path(folder) / "trial.mp4"))
    except Exception as error:  # whatever it is, it is what the user came to see
        return f"composing a trial with the bundled checkpoint failed with {type(error).__name__}: {error}"
    return None


# --- As text --------------------------------------------------------------------------------------------------------


def as_text(findings: Findings) -> str:
    """The findings for people, a few lines for each."""
    lines = [f"Python {findings['python']['version']} on {findings['python']['system']}"]
    sections = (
        ("Libraries", "libraries", _library_lines),
        ("Devices", "devices", _device_lines),
        ("Codecs", "codecs", _codec_lines),
        ("Models (the bundled checkpoint needs none of them)", "models", _model_lines),
    )
    for title, name, describe in sections:
        content = findings[name]
        lines += ["", title, *(f"  {line}" for line in ([content] if isinstance(content, str) else describe(content)))]
    compiler = findings["compiler"]
    lines += ["", f"torch.compile: {compiler or 'no C++ compiler, so --compile works on CUDA alone: install g++'}"]
    lines += [f"{item['what']}: {_amount(item['free'])} free in {item['path']}" for item in findings["disk"]]
    problem = findings["problem"]
    lines += ["", "Composing with the bundled checkpoint works." if problem is None else f"It does not work: {problem}"]
    return "\n".join(lines)


def _library_lines(found: list[Findings]) -> list[str]:
    def say(item: Findings) -> str:
        if item["satisfied"]:
            return f"{item['name']} {item['version']}"
        what = "missing" if item["version"] is None else f"{item['version']} is another version"
        return f"{item['name']} {what}: {item['wanted']} is wanted" + (
            "" if item["needed"] else " by tests or training"
        )

    return [", ".join(say(item) for item in found if item["satisfied"])] + [
        say(item) for item in found if not item["satisfied"]
    ]


def _device_lines(found: list[Findings]) -> list[str]:
    return [
        f"{item['name']}: {item['what']}"
        + (f", {item['threads']} threads of {item['cores']}" if "threads" in item else "")
        + (f", compute capability {item['capability']}" if "capability" in item else "")
        + (f", {_amount(item['memory'])}, {_amount(item['free'])} free" if "memory" in item else "")
        + f"; weights in {' or '.join(item['dtypes'])}"
        for item in found
    ]


def _codec_lines(found: Findings) -> list[str]:
    def say(kind: str, note: Callable[[str], str] = lambda name: "") -> str:
        return f"{kind}: " + ", ".join(
            f"{name}{note(name)}{'' if here else ' MISSING'}" for name, here in found[kind].items()
        )

    return [say("encoders", lambda name: f" for {ENCODERS[name]}"), say("decoders"), say("pillow")]


def _model_lines(found: Findings) -> list[str]:
    lines = [
        f"searched: {folder['path']}" + ("" if folder["exists"] else " (no such folder)") for folder in found["folders"]
    ]
    for model in found["files"]:
        lines += [f"{'found' if model['found'] else 'missing'}: {model['name']}, {model['purpose']}"]
        lines += [f"  {_found_line(item, model)}" for item in model["found"]]
        if not model["found"]:
            lines += [
                f"  {_amount(model['size'])} from {model['source']}",
                f"  put it into {found['folders'][0]['path']}; {KINDS[model['kind']]}; "
                f"SHA-256 {model['sha256'] or 'unknown'}",
            ]
    return lines


def _found_line(item: Findings, model: Findings) -> str:
    size = "" if item["right_size"] else f", not the published {_amount(model['size'])}: halved, or cut off"
    verdicts = {True: ", SHA-256 right", False: f", SHA-256 WRONG: get it again from {model['source']}", None: ""}
    return f"{item['path']} ({_amount(item['size'])}{size}{verdicts[item['right']]})"


def _amount(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
