"""Named tensors that lie in a file or in memory, and the types that they may have."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

StateDict = dict[str, Tensor]


Get = Callable[[str], Tensor]


@dataclass(frozen=True)
class Tensors:
    """Named tensors that lie in a file, or in memory, of which only names, shapes and types are read until asked.

    Attributes:
        source: what errors call them, a path as a rule.
        get: opens them anew and returns a function from a name to its tensor. Tensors of a file are mapped: views of
            one mapping, which is given back with the last of them.
        metadata: of a `.safetensors`.
        mapped: the tensors are views of a file, so that opening it again costs nothing.
        packed: of those that the file holds in another type and that are unpacked when they are asked for, that type.
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
        """Tensors that are in memory already."""
        shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
        return Tensors(source, shapes, {n: tensor.dtype for n, tensor in state.items()}, lambda: state.__getitem__)

    def renamed(self, names: Mapping[str, str]) -> Tensors:
        """Some of these under other names: `names` from the new name to this one's."""

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

    def below(self, prefix: str, but: tuple[str, ...] = ()) -> Tensors:
        """Those whose name starts with `prefix`, without it, and with none of `but`."""
        names = [name for name in self.shapes if name.startswith(prefix) and not name.startswith(but)]
        return self.renamed({name[len(prefix) :]: name for name in names})

    def numel(self, name: str) -> int:
        return torch.Size(self.shapes[name]).numel()

    def nbytes(self, name: str) -> int:
        """In the file."""
        return self.numel(name) * self.packed.get(name, self.dtypes[name]).itemsize

    def state(self) -> StateDict:
        """All of them, mapped."""
        get = self.get()
        return {name: get(name) for name in self.shapes}


DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp8": torch.float8_e4m3fn}
"""Names of the types that weights can be stored in. fp8 is a type to store in only."""
