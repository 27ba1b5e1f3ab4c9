"""`./vc doctor`: show what works on this machine, what is missing, and where to get it."""

import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ..errors import amount, counted
from ..progress import Progress
from ..published import KINDS, MODELS, PROJECT, ModelFile, find_models, model_folders, place_of

Findings = dict[str, Any]
"""Results in JSON values."""

# Composing needs these in addition to requirements.txt. The rest of requirements-dev.txt is for tests and training.
NEEDED = ("torch", "torchvision", "diffusers", "open_clip_torch")
# Encoder -> its purpose. The decoders are for source videos.
ENCODERS = {"libx264": ".mp4", "libvpx-vp9": ".webm", "mpeg4": "motion"}
DECODERS = ("h264", "hevc", "vp9", "av1")


def examine(hash: bool = False, progress: Progress | None = None) -> Findings:
    """Check everything that composing depends on, and compose a small video as a trial.

    `hash` also computes the SHA-256 of the installed models, which reads them completely.
    """
    checks: dict[str, Callable[[], Any]] = {
        "python": lambda: {"version": platform.python_version(), "system": platform.platform()},
        "libraries": libraries,
        "devices": devices,
        "codecs": codecs,
        "models": lambda: models(hash, progress),
        "compiler": lambda: shutil.which(os.environ.get("CXX", "g++")),  # torch.compile needs it on the CPU
        "disk": disk,
        "problem": problem,
    }
    findings: Findings = {}
    for name, check in checks.items():
        try:
            findings[name] = check()
        except ImportError as error:  # libraries() lists what is missing
            findings[name] = f"unknown: {error}"
    return {"works": findings["problem"] is None, **findings}


def libraries() -> list[Findings]:
    """List every requirement, its installed version, and whether that version satisfies it."""
    from packaging.requirements import Requirement

    rows = []
    for text, needed in _requirements():
        requirement = Requirement(text)
        name, version = requirement.name, _version(requirement.name)
        satisfied = version is not None and requirement.specifier.contains(version, prereleases=True)
        row = {"name": name, "wanted": str(requirement.specifier), "version": version}
        rows.append({**row, "satisfied": satisfied, "needed": needed or name in NEEDED})
    return rows


def _requirements() -> Iterator[tuple[str, bool]]:
    """Yield each requirement and whether composing needs it.

    They come from the requirements files next to the core, or, if pip installed the core alone, from its metadata.
    """
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
    """List the devices that composing can run on, with the sensible dtypes for weights."""
    import torch

    cpu = {"name": "cpu", "what": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()}
    rows: list[Findings] = [{**cpu, "cores": os.cpu_count(), "dtypes": ["fp32"]}]
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        properties = torch.cuda.get_device_properties(index)
        free, total = torch.cuda.mem_get_info(index)
        # Ampere and later compute bf16 in hardware. fp8 is only a storage dtype, so every card supports it.
        dtypes = ["fp16", "bf16", "fp8"] if properties.major >= 8 else ["fp16", "fp8"]
        card = {"name": f"cuda:{index}", "what": properties.name}
        capability = f"{properties.major}.{properties.minor}"
        rows.append({**card, "capability": capability, "memory": total, "free": free, "dtypes": dtypes})
    if torch.backends.mps.is_available():
        rows.append({"name": "mps", "what": platform.processor() or "Apple", "dtypes": ["fp16", "fp32"]})
    return rows


def codecs() -> Findings:
    """Check which of the encoders and decoders are installed."""
    import av
    from PIL import features

    def is_installed(name: str, mode: str) -> bool:
        try:
            return bool(av.codec.Codec(name, mode))
        except av.codec.codec.UnknownCodecError:
            return False

    return {
        "encoders": {name: is_installed(name, "w") for name in ENCODERS},
        "decoders": {name: is_installed(name, "r") for name in DECODERS},
        "pillow": {"gif": True, "webp": bool(features.check("webp"))},
    }


def models(hash: bool = False, progress: Progress | None = None) -> Findings:
    """Return the table of models with the installed files of each; sizes in bytes."""
    from ..checkpoint.files import sha256

    def describe(model: ModelFile, path: Path) -> Findings:
        right = sha256(path, progress) == model.sha256 if hash and model.sha256 else None
        size = {"size": path.stat().st_size, "right_size": model.has_size_of(path)}
        return {"path": str(path), **size, "right": right}

    folders = model_folders()
    files = find_models(folders)
    return {
        "folders": [{"path": str(folder), "exists": folder.is_dir()} for folder in folders],
        "files": [
            {**vars(model), "place": str(place_of(model)), "found": [describe(model, path) for path in files[model]]}
            for model in MODELS
        ],
    }


def disk() -> list[Findings]:
    """Return the free space for results, models and temporary files, in bytes."""
    places = {"results": Path.cwd(), "models": model_folders()[0], "temporary files": Path(tempfile.gettempdir())}
    rows = []
    for what, folder in places.items():
        existing = next((path for path in (folder, *folder.parents) if path.exists()), Path("/"))
        rows.append({"what": what, "path": str(folder), "free": shutil.disk_usage(existing).free})
    return rows


def problem() -> str | None:
    """Compose a trial video with the bundled checkpoint. Returns what went wrong and what to do, or None."""
    missing = [f"{item['name']}{item['wanted']}" for item in libraries() if item["needed"] and not item["satisfied"]]
    if missing:
        wrong = f"These libraries are missing or have the wrong version: {', '.join(missing)}."
        return f"{wrong} Run ./vc --setup, or install them with pip."
    try:
        from .compose import run
        from .settings import Settings

        with tempfile.TemporaryDirectory() as folder:
            run(Settings(text="a red circle", frames=2, steps=1, scale=1, out=Path(folder) / "trial.mp4"))
    except Exception as error:  # any error at all is what the user needs to see
        return f"The trial failed with {type(error).__name__}: {error}"
    return None


# --- As text --------------------------------------------------------------------------------------------------------


def as_text(findings: Findings) -> str:
    """Format the findings for people."""
    lines = [f"Python {findings['python']['version']} on {findings['python']['system']}"]
    for title, name, describe in (
        ("Libraries", "libraries", _library_lines),
        ("Devices", "devices", _device_lines),
        ("Codecs", "codecs", _codec_lines),
        ("Models (optional: the bundled checkpoint needs none of them)", "models", _model_lines),
    ):
        result = findings[name]
        lines += ["", title, *(f"  {line}" for line in ([result] if isinstance(result, str) else describe(result)))]
    no_compiler = "no C++ compiler, so --compile works only on CUDA; install g++"
    lines += ["", f"torch.compile: {findings['compiler'] or no_compiler}"]
    lines += [f"{item['what']}: {amount(item['free'])} free in {item['path']}" for item in findings["disk"]]
    problem = findings["problem"]
    works = "Composing with the bundled checkpoint works."
    lines += ["", works if problem is None else f"Composing with the bundled checkpoint does not work. {problem}"]
    return "\n".join(lines)


def _library_lines(rows: list[Findings]) -> Iterator[str]:
    yield ", ".join(f"{item['name']} {item['version']}" for item in rows if item["satisfied"])
    for item in rows:
        if not item["satisfied"]:
            status = "is missing" if item["version"] is None else f"{item['version']} is the wrong version"
            by = "" if item["needed"] else " (only for tests or training)"
            yield f"{item['name']} {status}; expected {item['wanted'] or 'any version'}{by}"


def _device_lines(rows: list[Findings]) -> Iterator[str]:
    for item in rows:
        threads = f", {item['cores']} cores, {counted(item['threads'], 'thread')} used" if "threads" in item else ""
        capability = f", compute capability {item['capability']}" if "capability" in item else ""
        memory = f", {amount(item['memory'])}, {amount(item['free'])} free" if "memory" in item else ""
        weights = f"weights in {' or '.join(item['dtypes'])}"
        yield f"{item['name']}: {item['what']}{threads}{capability}{memory}; {weights}"


def _codec_lines(codecs: Findings) -> Iterator[str]:
    for kind, installed in codecs.items():
        purposes = {name: f" for {ENCODERS[name]}" if kind == "encoders" else "" for name in installed}
        items = (f"{name}{purposes[name]}{'' if here else ' MISSING'}" for name, here in installed.items())
        yield f"{kind}: {', '.join(items)}"


def _model_lines(models: Findings) -> Iterator[str]:
    for folder in models["folders"]:
        yield f"searched: {folder['path']}{'' if folder['exists'] else ' (does not exist)'}"
    for model in models["files"]:
        yield f"{'found' if model['found'] else 'not installed'}: {model['name']}, {model['purpose']}"
        size = amount(model["size"]) if model["size"] else "size not published"
        wrong = f", SHA-256 WRONG; download it again from {model['source']}"
        for item in model["found"]:
            cut = "" if item["right_size"] else f", expected {size}: in half precision, or incomplete"
            verdict = {True: ", SHA-256 correct", False: wrong, None: ""}[item["right"]]
            yield f"  {item['path']} ({amount(item['size'])}{cut}{verdict})"
        if not model["found"]:
            yield f"  download: ./vc get {model['name']}, or {model['source']} ({size})"
            use = KINDS[model["kind"]]
            yield f"  folder: {model['place']}; {use}; SHA-256 {model['sha256'] or 'not published'}"
