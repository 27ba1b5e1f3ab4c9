"""Named tensors in a file or in memory, and the dtypes that weights can be stored in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


Get = Callable[[str], Tensor]


@dataclass(frozen=True)
class Tensors:
    """Named tensors in a file or in memory. Until `get` is called, only names, shapes and dtypes are read.

    Attributes:
        source: their name in errors, usually a path.
        get: opens the file again and returns a function that returns the tensor of a name. Tensors of a file are views
            of one mapping, which is freed with the last of them.
        metadata: of a `.safetensors`.
        mapped: the tensors are views of a file, so opening it again costs nothing.
        packed: the file's dtype of tensors that are stored in one dtype and converted to another when they are read.
    """

    source: str
    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, torch.dtype]
    get: Callable[[], Get]
    metadata: Mapping[str, str] = field(default_factory=dict)
    mapped: bool = False
    packed: Mapping[str, torch.dtype] = field(default_factory=dict)

    @staticmethod
    def of(state: Mapping[str, Tensor], source: str = "the state dict") -> Tensors:
        """Wrap tensors that are in memory."""
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        return Tensors(source, shapes, {n: tensor.dtype for n, tensor in state.items()}, lambda: state.__getitem__)

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """Return some of these tensors under other names; `names` maps new names to old names."""

        def get() -> Get:
            inner = self.get()
            return lambda name: inner(names[name])

        return replace(
            self,
            shapes={new: self.shapes[old] for new, old in names.items()},
            dtypes={new: self.dtypes[old] for new, old in names.items()},
            get=get,
            packed={new: self.packed[old] for new, old in names.items() if old in self.packed},
        )

    def below(self, prefix: str, excluded: tuple[str, ...] = ()) -> Tensors:
        """Return the tensors whose names start with `prefix`, and with none of `excluded`; the prefix is removed."""
        names = [name for name in self.shapes if name.startswith(prefix) and not name.startswith(excluded)]
        return self.renamed({name[len(prefix) :]: name for name in names})

    def numel(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    def nbytes(self, name: str) -> int:
        """Return the size in the file."""
        return self.numel(name) * self.packed.get(name, self.dtypes[name]).itemsize

    def state(self) -> StateDict:
        """Return all tensors, mapped."""
        get = self.get()
        return {name: get(name) for name in self.shapes}


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
"""Names of the dtypes that weights can be stored in. fp8 is only for storage, not for computing."""
