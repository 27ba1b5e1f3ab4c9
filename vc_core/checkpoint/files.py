"""Files of tensors: `.safetensors`, and PyTorch's pickled ones without their code. Mapped, never read as a whole."""

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
"""What diffusers calls the file of a network in its folder."""
_SUBFOLDERS = ("", "unet", "vae", "text_encoder", "image_encoder")
_IN_FOLDERS = [
    f"{stem}{variant}{suffix}"
    for suffix in (".safetensors", ".bin", ".safetensors.index.json", ".bin.index.json")
    for variant in ("", ".fp16")
    for stem in ("diffusion_pytorch_model", "model", "pytorch_model")
]
"""Of one network the first that is there is taken."""


# --- Reading --------------------------------------------------------------------------------------------------------


def files_of(path: str | Path) -> list[Path]:
    """The files of tensors at a path: itself; of a folder as diffusers writes it those of its network, or of its
    pipeline's networks, the UNet's first. Raises `UserError` for a folder without any."""
    path = Path(path)
    if not os.path.isdir(path):
        return [path]
    places = ([path / name / file for file in _IN_FOLDERS] for name in _SUBFOLDERS)
    found = [next(filter(os.path.isfile, files), None) for files in places]
    if not any(found):
        raise UserError(
            f"{path} is a folder, and a checkpoint was expected: name the file in it, or a folder of diffusers' with "
            f"{DIFFUSERS} or unet/{DIFFUSERS}."
        )
    return [file for file in found if file is not None]


def open_tensors(path: str | Path) -> Tensors:
    """The tensors of a `.safetensors`, which is known by its first bytes, or of a `.pth`, `.pt`, `.ckpt` or `.bin` as
    torch saves them: the state dict in it, see `INSIDE`, without what is beside that, such as a step count.

    A pickled one is read with `weights_only=True`. What has a scale beside it is multiplied, see
    `vc_core.checkpoint.scales`. Raises `UserError` for no such file, or one that is truncated,
    damaged, of another kind, quantised, or holds code.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, and a checkpoint was expected: name the file in it.")
    if not os.path.isfile(path):
        raise UserError(f"There is no checkpoint at {path}: check the path.")
    with _told(path):
        with open(path, "rb") as file:
            head = file.read(4096)
        if other := next((said for start, said in _OTHERS.items() if re.match(start, head, re.DOTALL)), None):
            raise UserError(f"{path} {other}.")
        pickled = path.suffix.lower() in PICKLED and (head[5:8], head[8:9]) != (b"\0\0\0", b"{")
        return unscaled(_open_pickled(path, head.startswith(b"PK")) if pickled else _open_safetensors(path))


# The length that a .safetensors begins with may be any of these characters, but then a NUL follows.
_TEXT = rb"(?=[^\0]*\Z)\s*"
_OTHERS = {
    b"GGUF": "is a GGUF file, whose numbers are not read here: get the model as a .safetensors in fp32, fp16, bf16 or "
    "fp8",
    _TEXT + b"version https://git-lfs": "is a pointer of Git LFS and not the file itself: get that with `git lfs "
    "pull`, or download it from its page",
    _TEXT + b"<": "is a web page and not the file itself: download it again from the link on that page",
    _TEXT + rb'\{.*"weight_map"': "is the index of a sharded checkpoint, whose tensors are in the files beside it that "
    "it names: join them into one .safetensors, and name that",
    _TEXT + rb"\{": "is a text of JSON, and a .safetensors or .pth of tensors was expected: name the file that it "
    "belongs to",
}
"""How files begin that come in place of checkpoints, and what is said of them."""


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Makes one sentence of whatever a damaged file makes of the readers; some say nothing, some write pages."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EIO):
            raise UserError(f"{path} cannot be read ({error.strerror}): check its permissions and its disk.") from error
        if foreign := re.search(r"[Uu]nsupported (?:global: GLOBAL|class) ([\w.]+)", str(error)):
            raise UserError(
                f"{path} holds other objects than tensors ({foreign[1]}), which could run anything when they are read: "
                "save its state dict alone, or get it as a .safetensors."
            ) from error
        reason = re.sub(r"Weights only load failed\..*|\x1b\[\d*m", "", str(error), flags=re.DOTALL)
        reason = " ".join([type(error).__name__, *reason.splitlines()[:1]])[:200].strip()
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}): it is truncated or not a .safetensors or .pth of "
            "tensors; download or save it again."
        ) from error


def _tensors_of_file(path: Path, load: Callable[[], Get], known: StateDict, **more: Any) -> Tensors:
    """The tensors of a file, which `load` opens anew as long as it is the one that was read."""

    def identity() -> tuple[int, int] | None:
        return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None

    before = identity()

    def get() -> Get:
        if identity() != before:
            raise UserError(f"{path} has changed or gone since it was read: start again.")
        with _told(path):
            return load()

    return replace(Tensors.of(known, str(path)), get=get, **more)


def _open_safetensors(path: Path) -> Tensors:
    def load() -> Get:
        return safetensors.safe_open(path, framework="pt").get_tensor

    with safetensors.safe_open(path, framework="pt") as file:
        known = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it is no dictionary)
        return _tensors_of_file(path, load, known, metadata=file.metadata() or {}, mapped=True)


def _open_pickled(path: Path, mapped: bool) -> Tensors:
    """`mapped`: a zip, torch's format since 2020; the one before it cannot be mapped."""

    def load() -> StateDict:
        with torch.serialization.safe_globals([_STAND_IN]):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        tensors = _named_tensors(state)
        if not tensors or not all(isinstance(name, str) for name in tensors):
            raise UserError(f"{path} does not hold named tensors: expected a state dict of a network.")
        return tensors

    return _tensors_of_file(path, lambda: load().__getitem__, load(), mapped=mapped)


INSIDE = ("state_dict", "model_state_dict", "ema", "model_ema", "params_ema", "model", "module", "params", "network")
"""Where programs keep the network's tensors in what they save, in the order in which they are looked for: averaged
weights before those of the last step, as they are what the others are for."""


def _named_tensors(state: Any, deep: int = 3) -> StateDict:
    """The tensors of a saved object by name, or of the first of `INSIDE` in it that has any; empty where none has. One
    that is sparse, quantised or on meta has no numbers of its own."""
    if not isinstance(state, dict) or not deep:
        return {}
    inner = (_named_tensors(state[name], deep - 1) for name in INSIDE if name in state)
    tensors = {name: one for name, one in state.items() if isinstance(one, Tensor) and one.layout == torch.strided}
    plain = {name: one for name, one in tensors.items() if not (one.is_meta or one.is_quantized)}
    return next(filter(None, inner), None) or plain


class _Ignored:
    """Stands for objects that training programs left in a checkpoint and that nothing here looks at."""

    def __init__(self, *_: Any, **__: Any):
        pass


# Stable Diffusion's own .ckpt files hold the state of a Lightning callback. Nothing of Lightning is imported.
_STAND_IN = (_Ignored, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")


def sha256(path: str | Path, progress: Progress | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal; of a folder, see `files_of`, that of its files, joined."""
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
    """Refuses a name that `save_tensors` cannot write to. Raises `UserError`."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} cannot be written: expected a name that ends in .safetensors or .pth.")
    check_place(path)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a `.safetensors`, or, by the name's ending, a `.pth`, which holds no metadata; the file appears whole or
    not at all. Raises `UserError` for a name with another ending, or a folder that does not exist."""
    path = Path(path)
    check_target(path)
    ready: StateDict = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        ready[name] = tensor.detach().cpu().contiguous()
        if ready[name].data_ptr() in seen:  # one tensor under two names, which a .safetensors has no way to say
            ready[name] = ready[name].clone()
        seen.add(ready[name].data_ptr())
    with written_beside(path) as temporary:
        if path.suffix.lower() in PICKLED:
            save_pickled(ready, temporary)
        else:
            safetensors.torch.save_file(ready, temporary, {**(metadata or {}), "format": "pt"})
            temporary.chmod(0o644)  # safetensors makes files that only their owner can read


class _Noting(io.BufferedWriter):
    """A file that remembers why it could not be written."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            self.error = error
            raise


def save_pickled(state: Mapping[str, Any], path: str | Path) -> None:
    """`torch.save`, but of a failed write it raises the system's `OSError`: torch says neither of what nor why."""
    with _Noting(io.FileIO(path, "w")) as file:
        try:
            torch.save(state, file)
        except RuntimeError as error:
            raise (file.error or error) from error
