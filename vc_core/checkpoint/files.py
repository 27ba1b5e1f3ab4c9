"""Files of tensors: `.safetensors`, and PyTorch's pickled files without running their code. Files are memory-mapped,
never read completely."""

import errno
import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..disk import check_place, written_beside
from ..errors import UserError
from ..progress import Progress
from .scales import unscaled
from .tensors import Get, StateDict, Tensors

PICKLED = (".pth", ".pt", ".ckpt", ".bin")
SUFFIXES = (".safetensors", *PICKLED)
DIFFUSERS = "diffusion_pytorch_model.safetensors"
"""Diffusers' name for the file of a network in its folder."""
_SUBFOLDERS = ("", "unet", "vae", "text_encoder", "image_encoder")
_IN_FOLDERS = [
    f"{stem}{variant}{suffix}"
    for suffix in (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
    for variant in ("", ".fp16")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
]
"""File names of one network, in order; the first that exists is used."""


# --- Reading --------------------------------------------------------------------------------------------------------


def files_of(path: str | Path) -> list[Path]:
    """Return the tensor files at a path: the file itself, or, for a folder that diffusers wrote, the file of its
    network or of each network of its pipeline, the UNet's first. Raises `UserError` for a folder without such files."""
    path = Path(path)
    if not os.path.isdir(path):
        return [path]
    places = ([path / name / file for file in _IN_FOLDERS] for name in _SUBFOLDERS)
    matches = [next(filter(os.path.isfile, files), None) for files in places]
    if not any(matches):
        raise UserError(
            f"Expected a checkpoint, but {path} is a folder without {DIFFUSERS} or unet/{DIFFUSERS}. Pass the path of "
            "a file, or of a folder that diffusers wrote."
        )
    return [file for file in matches if file is not None]


def open_tensors(path: str | Path) -> Tensors:
    """Open the tensors of a `.safetensors`, recognized by its first bytes, or of a `.pth`, `.pt`, `.ckpt` or `.bin` as
    torch saves them: the state dict, see `INSIDE`, without other entries such as a step count.

    Pickled files are read with `weights_only=True`. Scaled weights are multiplied by their scales, see
    `vc_core.checkpoint.scales`. Raises `UserError` if the file is missing, cut off, damaged, of another kind or
    quantised, or if it contains code.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"Expected a checkpoint, but {path} is a folder. Pass the path of a file.")
    if not os.path.isfile(path):
        raise UserError(f"There is no checkpoint at {path}. Check the path.")
    with _clear_errors(path):
        with open(path, "rb") as file:
            head = file.read(4096)
        if other := next((text for start, text in _OTHERS.items() if re.match(start, head, re.DOTALL)), None):
            raise UserError(f"{path} {other}.")
        pickled = path.suffix.lower() in PICKLED and (head[5:8], head[8:9]) != (b"\0\0\0", b"{")
        return unscaled(_open_pickled(path, head.startswith(b"PK")) if pickled else _open_safetensors(path))


# A .safetensors begins with a length, whose bytes may be any of these characters; but then a NUL follows.
_TEXT = rb"(?=[^\0]*\Z)\s*"
# PNG, JPEG, GIF; WebP and AVI; HEIC, AVIF, MP4 and MOV; Matroska and WebM.
_MEDIA = rb"\x89PNG|\xff\xd8\xff[\xc0-\xff]|GIF8|RIFF.{4}(WEBP|AVI)|.{4}ftyp|\x1a\x45\xdf\xa3"
_OTHERS = {
    b"GGUF": "is a GGUF file, which is not supported. Download the model as a .safetensors in fp32, fp16, bf16 or fp8",
    _TEXT
    + b"version https://git-lfs": "is a Git LFS pointer, not the file itself. Run `git lfs pull`, or download the "
    "file from its page",
    _TEXT + b"<": "is a web page, not the file itself. Download the file again from the link on that page",
    _TEXT
    + rb'\{.*"weight_map"': "is the index of a sharded checkpoint and contains no tensors. Join the files that it "
    "lists into one .safetensors, and pass that file",
    _TEXT + rb"\{": "is a JSON file. Expected a .safetensors or .pth with tensors. Pass the file that it describes",
    rb"\Z": "is empty. Download or save it again",
    _MEDIA: "is an image or a video, not a checkpoint. Pass a .safetensors or .pth",
    rb"[\t\n\r -~\x80-\xff]{9,}\Z": "is a text file, not a checkpoint. Pass a .safetensors or .pth",
}
"""First bytes of files that users confuse with checkpoints -> the message about them."""


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    """Turn any error that a damaged file causes in the libraries into one short `UserError`; some of their messages are
    empty, others fill pages."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EIO):
            raise UserError(f"{path} cannot be read ({error.strerror}). Check its permissions and its disk.") from error
        if foreign := re.search(r"[Uu]nsupported (?:global: GLOBAL|class) ([\w.]+)", str(error)):
            raise UserError(
                f"{path} contains objects that are not tensors ({foreign[1]}). Loading them could run any code. Save "
                "only its state dict, or download it as a .safetensors."
            ) from error
        reason = re.sub(r"Weights only load failed\..*|\x1b\[\d*m", "", str(error), flags=re.DOTALL)
        reason = " ".join([type(error).__name__, *reason.splitlines()[:1]])[:200].strip()
        kind, advice = next(text for pattern, text in _DAMAGES.items() if re.search(pattern, reason))
        raise UserError(f"{path} {kind} ({reason}). {advice}.") from error


_DAMAGES = {
    "header too small|header length|incomplete metadata|central directory|EOF|out of range|a ZIP|Invalid argument": (
        "is cut off or damaged",
        "Download or save it again",
    ),
    "": ("is not a checkpoint, or it is damaged", "Pass a .safetensors or .pth with tensors, or download it again"),
}
"""Reasons in a library's message -> what is wrong with the file, and what to do."""


def _tensors_of_file(path: Path, load: Callable[[], Get], state: StateDict, **more: Any) -> Tensors:
    """Return the tensors of a file. `load` opens the file again, unless it has changed since it was read."""

    def identity() -> tuple[int, int] | None:
        return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None

    before = identity()

    def get() -> Get:
        if identity() != before:
            raise UserError(f"{path} was changed or deleted after it was read. Start again.")
        with _clear_errors(path):
            return load()

    return replace(Tensors.of(state, str(path)), get=get, **more)


def _open_safetensors(path: Path) -> Tensors:
    def load() -> Get:
        return safetensors.safe_open(path, framework="pt").get_tensor

    with safetensors.safe_open(path, framework="pt") as file:
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dictionary)
        return _tensors_of_file(path, load, state, metadata=file.metadata() or {}, mapped=True)


def _open_pickled(path: Path, mapped: bool) -> Tensors:
    """Open a pickled file. `mapped`: it is a zip, torch's format since 2020; the format before it cannot be mapped."""

    def load() -> StateDict:
        with torch.serialization.safe_globals([_STAND_IN]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        tensors = _named_tensors(state)
        if not tensors or not all(isinstance(name, str) for name in tensors):
            raise UserError(f"{path} contains no named tensors. Expected the state dict of a network. Save only that.")
        return tensors

    return _tensors_of_file(path, lambda: load().__getitem__, load(), mapped=mapped)


INSIDE = ("state_dict", "model_state_dict", "ema", "model_ema", "params_ema", "model", "module", "params", "network")
"""Keys under which programs save the network's tensors, in the order in which they are tried: averaged weights before
those of the last step, because the averaged weights are the ones to use."""


def _named_tensors(state: Any, deep: int = 3) -> StateDict:
    """Return the tensors of a saved object by name, or those under the first key of `INSIDE` that has tensors; empty if
    none has. Sparse, quantised and meta tensors are left out, because they have no plain numbers."""
    if not isinstance(state, dict) or not deep:
        return {}
    inner = (_named_tensors(state[name], deep - 1) for name in INSIDE if name in state)
    tensors = {name: item for name, item in state.items() if isinstance(item, Tensor) and item.layout == torch.strided}
    plain = {name: tensor for name, tensor in tensors.items() if not (tensor.is_meta or tensor.is_quantized)}
    return next(filter(None, inner), None) or plain


class _Ignored:
    """Stands for objects that training programs save in a checkpoint and that this project does not use."""

    def __init__(self, *_: Any, **__: Any):
        pass


# Stable Diffusion's own .ckpt files contain the state of a Lightning callback. Lightning is not imported.
_STAND_IN = (_Ignored, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")


def sha256(path: str | Path, progress: Progress | None = None) -> str:
    """Return the SHA-256 of a file, in hexadecimal; for a folder, see `files_of`, that of its files, joined."""
    files = files_of(path)
    digest, done, total = hashlib.sha256(), 0, sum(map(os.path.getsize, files))
    for each in files:
        with open(each, "rb") as file:
            while block := file.read(2**24):
                digest.update(block)
                done += len(block)
                if progress is not None:
                    progress("hashing", done // 2**20, total // 2**20)
    return digest.hexdigest()


# --- Writing --------------------------------------------------------------------------------------------------------


def check_target(path: Path) -> None:
    """Raise `UserError` if `save_tensors` cannot write to this path."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} cannot be written. Expected a name that ends in .safetensors or .pth.")
    check_place(path)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a `.safetensors` or, depending on the suffix, a `.pth`, which stores no metadata. The file appears complete
    or not at all. Raises `UserError` for another suffix, or if the folder does not exist."""
    path = Path(path)
    check_target(path)
    ready: StateDict = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        ready[name] = tensor.detach().cpu().contiguous()
        if ready[name].data_ptr() in seen:  # one tensor under two names, which a .safetensors cannot express
            ready[name] = ready[name].clone()
        seen.add(ready[name].data_ptr())
    with written_beside(path) as temporary:
        if path.suffix.lower() in PICKLED:
            save_pickled(ready, temporary)
        else:
            safetensors.torch.save_file(ready, temporary, {**(metadata or {}), "format": "pt"})
            temporary.chmod(0o644)  # safetensors writes files that only their owner can read


class _ErrorKeeper(io.BufferedWriter):
    """A file that stores the error of a failed write."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def save_pickled(state: Mapping[str, Any], path: str | Path) -> None:
    """Save as `torch.save` does, but raise the system's `OSError` if writing fails: torch names neither file nor
    reason."""
    with _ErrorKeeper(io.FileIO(path, "w")) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            raise (file.error or error) from error
