"""Layouts: where the parameters of a network are in a file, under which names and with which shapes. One table is used
for reading and writing."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError, counted, shorten
from ..progress import Progress
from .tensors import StateDict, Tensors

WINDOW = 2**28
"""Bytes that are copied out of a mapped file before the file is mapped again, which frees the pages."""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Origin:
    """Where one parameter is in a file: in the tensors with these names (usually one), joined along their first
    dimension. Each of them has this shape in the file. The order of the numbers is the parameter's, whatever the shape,
    unless the file contains the transposed matrix (`transposed`)."""

    names: tuple[str, ...]
    shape: Shape
    transposed: bool = False

    def join(self, get: Callable[[str], Tensor], shape: Shape) -> Tensor:
        """Return the parameter with this shape, as a view if possible."""
        pieces = [get(name) for name in self.names]
        joined = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return (joined.t() if self.transposed else joined).reshape(shape)

    def part(self, parameter: Tensor) -> StateDict:
        """Return the file's tensors for a parameter; the reverse of `join`."""
        joined = parameter.t() if self.transposed else parameter
        if len(self.names) == 1:
            return {self.names[0]: joined.reshape(self.shape)}
        pieces = joined.reshape(len(self.names) * self.shape[0], *self.shape[1:]).split(self.shape[0])
        return dict(zip(self.names, pieces, strict=True))


Layout = Mapping[str, Origin]
"""Our parameter's name -> where it is in the file."""


def shapes_of(module: nn.Module) -> Shapes:
    """Return the shapes of a module's parameters and buffers; it may be on meta."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def names_of(layout: Layout) -> set[str]:
    return {name for origin in layout.values() for name in origin.names}


def unused(layout: Layout, tensors: Tensors) -> list[str]:
    """Return the names of tensors that a layout does not contain."""
    used = names_of(layout)
    return [name for name in tensors.shapes if name not in used]


def unused_note(names: Collection[str]) -> str:
    """Return a note on unused tensors: how many and which."""
    return f"{counted(len(names), 'tensor is', 'tensors are')} not used: {shorten(names)}"


def check(layout: Layout, tensors: Tensors, what: str) -> None:
    """Raise a `UserError` that lists the tensors of the layout that are missing, have another shape or are not floating
    point. `what` names the network in the message."""
    expected = {name: tuple(origin.shape) for origin in layout.values() for name in origin.names}
    missing = [name for name in expected if name not in tensors.shapes]
    shapes = {name: tuple(tensors.shapes[name]) for name in expected if name in tensors.shapes}
    sizes = [
        f"{name} is {shape}, expected {expected[name]}" for name, shape in shapes.items() if shape != expected[name]
    ]
    integers = [f"{name} is {tensors.dtypes[name]}" for name in shapes if not tensors.dtypes[name].is_floating_point]
    other_model = "The file belongs to another model. Use another file"
    quantised = "The file is quantised or damaged. Use a file in fp32, fp16, bf16 or fp8"
    incomplete = "The file is incomplete or belongs to another model. Download or save it again"
    for wrong, problem, advice in (
        (missing, f"lacks {counted(len(missing), 'tensor')} of {what}", incomplete),
        (sizes, f"has {counted(len(sizes), 'tensor')} of another shape than {what}", other_model),
        (integers, f"has {counted(len(integers), 'tensor')} of {what} not in floating point", quantised),
    ):
        if wrong:
            raise UserError(f"{tensors.source} {problem} ({shorten(wrong)}). {advice}.")


def fill(
    module: nn.Module,
    layout: Layout,
    tensors: Tensors,
    what: str,
    dtype: Callable[[str, Shape], torch.dtype] | torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    ignored: Collection[str] | None = None,
) -> None:
    """Fill a module that was built on meta with its parameters and buffers, without a second copy of them: as views of
    the mapped file if dtype and device are the file's. Otherwise they are copied one by one, and at most `WINDOW` bytes
    of the file are in memory in addition.

    Args:
        what: see `check`, which runs first.
        dtype: of the result, or a function of a parameter's name and shape.
        device: of the result; on `meta` the file is checked and no tensor is read.
        progress: called as `progress("loading", done, total)`, in MiB of the file.
        ignored: unused tensors that cause no warning; None: all of them.
    """
    check(layout, tensors, what)
    if ignored is not None and (extra := [name for name in unused(layout, tensors) if name not in ignored]):
        warnings.warn(f"{tensors.source}: {unused_note(extra)}", stacklevel=2)
    if torch.device(device).type == "meta":
        return
    shapes, filled, on_cpu = shapes_of(module), {}, torch.device(device).type == "cpu"
    # Copies use a separate mapping: a mapping that views keep alive never frees its pages.
    views = tensors.get()
    copies = tensors.get() if tensors.mapped else views
    copied, done, total = 0, 0, sum(tensors.nbytes(name) for name in names_of(layout))
    for name, origin in layout.items():
        first, *others = origin.names
        target = dtype(name, shapes[name]) if callable(dtype) else dtype
        is_view = on_cpu and not others and not origin.transposed
        is_view = is_view and tensors.dtypes[first] == target and first not in tensors.packed
        source = origin.join(views if is_view else copies, shapes[name])
        filled[name] = source.to(device, target).contiguous()
        copied += 0 if is_view else source.nbytes
        del source
        if copied > WINDOW and tensors.mapped:
            copies, copied = tensors.get(), 0
        done += sum(map(tensors.nbytes, origin.names))
        if progress is not None:
            progress("loading", done >> 20, total >> 20)
    module.load_state_dict(filled, assign=True)


def part(state: Mapping[str, Tensor], layout: Layout) -> StateDict:
    """Return a module's state under the names and shapes of a layout, as views."""
    result: StateDict = {}
    for name, origin in layout.items():
        result |= origin.part(state[name].detach())
    return result
