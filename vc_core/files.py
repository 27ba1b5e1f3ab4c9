"""Files of tensors: `.safetensors`, and PyTorch's pickled ones without their code. Mapped, never read as a whole."""

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from .atomic import check_place, written_beside
from .errors import UserError
from .progress import Progress

StateDict = dict[str, Tensor]
Get = Callable[[str], Tensor]

PICKLED = (".pth", ".pt", ".ckpt", ".bin")
SUFFIXES = (".safetensors", *PICKLED)


@dataclass(frozen=True)
class Tensors:
    """Named tensors that lie in a file, or in memory, of which only names, shapes and types are read until asked.

    Attributes:
        source: what errors call them, a path as a rule.
        shapes, dtypes: by name.
        get: opens them anew and returns a function from a name to its tensor. Tensors of a file are mapped: views of
            one mapping, which is given back with the last of them.
        metadata: of a `.safetensors`.
        mapped: the tensors are views of a file, so that opening it again costs nothing.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    get: Callable[[], Get]
    metadata: Mapping[str, str] = field(default_factory=dict)
    mapped: bool = False

    @staticmethod
    def of(state: Mapping[str, Tensor], source: str = "the state dict") -> "Tensors":
        """Tensors that are in memory already."""
        return Tensors(
            source,
            {name: tuple(tensor.shape) for name, tensor in state.items()},
            {name: tensor.dtype for name, tensor in state.items()},
            lambda: state.__getitem__,
        )

    def renamed(self, names: Mapping[str, str]) -> "Tensors":
        """Some of these under other names: `names` from the new name to this one's."""

        def get() -> Get:
            inner = self.get()
            return lambda name: inner(names[name])

        return Tensors(
            self.source,
            {new: self.shapes[old] for new, old in names.items()},
            {new: self.dtypes[old] for new, old in names.items()},
            get,
            self.metadata,
            self.mapped,
        )

    def below(self, prefix: str) -> "Tensors":
        """Those whose name starts with `prefix`, without it."""
        return self.renamed({name[len(prefix) :]: name for name in self.shapes if name.startswith(prefix)})

    def numel(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    def nbytes(self, name: str) -> int:
        return self.numel(name) * self.dtypes[name].itemsize

    def state(self) -> StateDict:
        """All of them, mapped."""
        get = self.get()
        return {name: get(name) for name in self.shapes}


def open_tensors(path: str | Path) -> Tensors:
    """The tensors of a `.safetensors`, or of a `.pth`, `.pt`, `.ckpt` or `.bin` as torch saves them.

    A `state_dict` inside is taken out; what is beside the tensors, such as a step count, is left behind. Pickled
    files are read with `weights_only=True`: one that holds code is refused.

    Raises:
        UserError: no such file, or one that is truncated, damaged, of another kind, or holds code.
    """
    path = Path(path)
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, and a checkpoint was expected: name the file in it.")
    if not os.path.isfile(path):
        raise UserError(f"There is no checkpoint at {path}: check the path.")
    with _told(path):
        return (_open_safetensors if path.suffix.lower() == ".safetensors" else _open_pickled)(path)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Makes one sentence of whatever a damaged file makes of the readers; some say nothing, some write pages."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join([type(error).__name__, *str(error).splitlines()[:1]])[:200]
        raise UserError(
            f"{path} cannot be read as a checkpoint ({reason}): it is truncated or not a .safetensors or .pth of "
            "tensors; download or save it again."
        ) from error


def _reopened(path: Path, load: Callable[[], Get]) -> Callable[[], Get]:
    """Opens a file anew, as long as it is the one that was read."""

    def identity() -> tuple[int, int] | None:
        return (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None

    before = identity()

    def get() -> Get:
        if identity() != before:
            raise UserError(f"{path} has changed or gone since it was read: start again.")
        with _told(path):
            return load()

    return get


def _open_safetensors(path: Path) -> Tensors:
    def load() -> Get:
        return safetensors.safe_open(path, framework="pt").get_tensor

    with safetensors.safe_open(path, framework="pt") as file:
        known = Tensors.of({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (it is no dictionary)
        metadata = file.metadata() or {}
    return Tensors(str(path), known.shapes, known.dtypes, _reopened(path, load), metadata, mapped=True)


def _open_pickled(path: Path) -> Tensors:
    mapped = _is_zip(path)

    def load() -> StateDict:
        with torch.serialization.safe_globals(_STAND_INS):
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        state = state.get("state_dict", state) if isinstance(state, dict) else state
        tensors = {k: t for k, t in state.items() if _is_plain(t)} if isinstance(state, dict) else {}
        if not tensors or not all(isinstance(name, str) for name in tensors):
            raise UserError(f"{path} does not hold named tensors: expected a state dict of a network.")
        return tensors

    known = Tensors.of(load())
    get = _reopened(path, lambda: load().__getitem__)
    return Tensors(str(path), known.shapes, known.dtypes, get, mapped=mapped)


def _is_plain(value: Any) -> bool:
    """A tensor with numbers of its own: none that is sparse, quantised or on meta."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not (value.is_meta or value.is_quantized)


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(2) == b"PK"  # torch's format since 2020; the one before it cannot be mapped


class _Ignored:
    """Stands for objects that training programs left in a checkpoint and that nothing here looks at."""

    def __init__(self, *_: Any, **__: Any):
        pass


# Stable Diffusion's own .ckpt files hold the state of a Lightning callback. Nothing of Lightning is imported.
_STAND_INS: list[Any] = [(_Ignored, "pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint")]


def check_target(path: Path) -> None:
    """Refuses a name that `save_tensors` cannot write to. Raises `UserError`."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"{path} cannot be written: expected a name that ends in .safetensors or .pth.")
    check_place(path)


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Writes a `.safetensors`, or, by the name's ending, a `.pth`; the file appears whole or not at all.

    Raises:
        UserError: a name with another ending, metadata for a `.pth`, or a folder that does not exist.
    """
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
            torch.save(ready, temporary)
        else:
            safetensors.torch.save_file(ready, temporary, {**(metadata or {}), "format": "pt"})
            temporary.chmod(0o644)  # safetensors makes files that only their owner can read


def is_there(path: str | os.PathLike) -> bool:
    """Whether a path is that of a file or a folder: of no device, which may have no end, and no name that none can
    have, at which pathlib raises."""
    return os.path.isfile(path) or os.path.isdir(path)


def sha256(path: str | Path, progress: Progress | None = None) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    digest, done, total = hashlib.sha256(), 0, os.path.getsize(path)
    for block in _blocks(path):
        digest.update(block)
        done += len(block)
        if progress is not None:
            progress("hashing", done // 2**20, total // 2**20)
    return digest.hexdigest()


def _blocks(path: str | Path, size: int = 2**24) -> Iterator[bytes]:
    with open(path, "rb") as file:
        while block := file.read(size):
            yield block
