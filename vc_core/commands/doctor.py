"""What works on this machine, what is missing and where to get it: `./vc doctor`."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import amount
from ..progress import Progress
from ..published import KINDS, MODELS, PROJECT, ModelFile, find_models, model_folders, place_of

Findings = dict[str, Any]
"""What was found, in values that JSON holds."""

# What composing needs beyond requirements.txt; the rest of requirements-dev.txt serves tests and training.
NEEDED = ("torch", "torchvision", "diffusers", "open_clip_torch")
# Name -> what it is for. Of the decoders, any source may need one; of the encoders, .mp4 and motion need theirs.
ENCODERS = {"libx264": ".mp4", "libvpx-vp9": ".webm", "mpeg4": "motion"}
DECODERS = ("h264", "hevc", "vp9", "av1")


def examine(hash: bool = False, progress: Progress | None = None) -> Findings:
    """Looks at everything that composing depends on, and composes a small video to see whether it works. `hash` also
    computes the SHA-256 of the models that are found, which reads them as a whole."""
    checks: dict[str, Callable[[], Any]] = {
        "python": lambda: {"version": platform.python_version(), "system": platform.platform()},
        "libraries": libraries,
        "devices": devices,
        "codecs": codecs,
        "models": lambda: models(hash, progress),
        "compiler": lambda: shutil.which(os.environ.get("CXX", "g++")),  # that torch.compile needs on the CPU
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
        name, version = requirement.name, _version(requirement.name)
        satisfied = version is not None and requirement.specifier.contains(version, prereleases=True)
        wanted = {"name": name, "wanted": str(requirement.specifier), "version": version}
        found.append({**wanted, "satisfied": satisfied, "needed": needed or name in NEEDED})
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

    cpu = {"name": "cpu", "what": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    found: list[Findings] = [{**cpu, "cores": os.cpu_count(), "dtypes": ["fp32"]}]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        # bf16 is computed in hardware from Ampere on; fp8 only stores, so it asks for nothing.
        dtypes = ["fp16", "bf16", "fp8"] if properties.major >= 8 else ["fp16", "fp8"]
        card = {"name": f"cuda:{index}", "what": properties.name}
        capability = f"{properties.major}.{properties.minor}"
        found.append({**card, "capability": capability, "memory": total, "free": free, "dtypes": dtypes})
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
    from ..checkpoint.files import sha256

    def describe(model: ModelFile, path: Path) -> Findings:
        right = sha256(path, progress) == model.sha256 if hash and model.sha256 else None
        size = {"size": path.stat().st_size, "right_size": model.has_size_of(path)}
        return {"path": str(path), **size, "right": right}

    folders = model_folders()
    found = find_models(folders)
    return {
        "folders": [{"path": str(folder), "exists": folder.is_dir()} for folder in folders],
        "files": [
            {**vars(model), "place": str(place_of(model)), "found": [describe(model, path) for path in found[model]]}
            for model in MODELS
        ],
    }


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
        from .compose import run
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
    for title, name, describe in (
        ("Libraries", "libraries", _library_lines),
        ("Devices", "devices", _device_lines),
        ("Codecs", "codecs", _codec_lines),
        ("Models (the bundled checkpoint needs none of them)", "models", _model_lines),
    ):
        found = findings[name]
        lines += ["", title, *(f"  {line}" for line in ([found] if isinstance(found, str) else describe(found)))]
    no_compiler = "no C++ compiler, so --compile works on CUDA alone: install g++"
    lines += ["", f"torch.compile: {findings['compiler'] or no_compiler}"]
    lines += [f"{item['what']}: {amount(item['free'])} free in {item['path']}" for item in findings["disk"]]
    problem = findings["problem"]
    lines += ["", "Composing with the bundled checkpoint works." if problem is None else f"It does not work: {problem}"]
    return "\n".join(lines)


def _library_lines(found: list[Findings]) -> Iterator[str]:
    yield ", ".join(f"{item['name']} {item['version']}" for item in found if item["satisfied"])
    for item in found:
        if not item["satisfied"]:
            what = "missing" if item["version"] is None else f"{item['version']} is another version"
            by = "" if item["needed"] else " by tests or training"
            yield f"{item['name']} {what}: {item['wanted']} is wanted{by}"


def _device_lines(found: list[Findings]) -> Iterator[str]:
    for item in found:
        threads = f", {item['threads']} threads of {item['cores']}" if "threads" in item else ""
        capability = f", compute capability {item['capability']}" if "capability" in item else ""
        memory = f", {amount(item['memory'])}, {amount(item['free'])} free" if "memory" in item else ""
        weights = f"weights in {' or '.join(item['dtypes'])}"
        yield f"{item['name']}: {item['what']}{threads}{capability}{memory}; {weights}"


def _codec_lines(found: Findings) -> Iterator[str]:
    for kind, those in found.items():
        purposes = {name: f" for {ENCODERS[name]}" if kind == "encoders" else "" for name in those}
        said = (f"{name}{purposes[name]}{'' if here else ' MISSING'}" for name, here in those.items())
        yield f"{kind}: {', '.join(said)}"


def _model_lines(found: Findings) -> Iterator[str]:
    for folder in found["folders"]:
        yield f"searched: {folder['path']}{'' if folder['exists'] else ' (no such folder)'}"
    for model in found["files"]:
        yield f"{'found' if model['found'] else 'missing'}: {model['name']}, {model['purpose']}"
        size = amount(model["size"]) if model["size"] else "its size is unknown,"
        wrong = f", SHA-256 WRONG: get it again from {model['source']}"
        for item in model["found"]:
            cut = "" if item["right_size"] else f", not the published {size}: halved, or cut off"
            verdict = {True: ", SHA-256 right", False: wrong, None: ""}[item["right"]]
            yield f"  {item['path']} ({amount(item['size'])}{cut}{verdict})"
        if not model["found"]:
            yield f"  {size} from {model['source']}; ./vc get {model['name']}"
            use = KINDS[model["kind"]]
            yield f"  put it into {model['place']}; {use}; SHA-256 {model['sha256'] or 'unknown'}"
