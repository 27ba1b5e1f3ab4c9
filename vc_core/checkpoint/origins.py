"""Layouts: where the parameters of a network lie in a file, under whose names and in whose shapes. One table serves
both ways, reading and writing."""

import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError, counted, shorten
from ..progress import Progress
from .tensors import StateDict, Tensors

WINDOW = 2**28
"""Bytes that are copied out of a mapped file before its mapping is renewed, which gives the pages back."""

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]


@dataclass(frozen=True)
class Origin:
    """Where one parameter lies in a file: in the tensors of these names (one as a rule), joined along their first
    dimension. Each has this shape there; the numbers are in the parameter's order, whatever the shape, unless the file
    holds a matrix whose transpose is the parameter (`transposed`)."""

    names: tuple[str, ...]
    shape: Shape
    transposed: bool = False

    def join(self, get: Callable[[str], Tensor], shape: Shape) -> Tensor:
        """The parameter, of the given shape; a view where that is possible."""
        pieces = [get(name) for name in self.names]
        whole = pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        return (whole.t() if self.transposed else whole).reshape(shape)

    def part(self, parameter: Tensor) -> StateDict:
        """The tensors of the file that hold a parameter; the reverse of `join`."""
        whole = parameter.t() if self.transposed else parameter
        if len(self.names) == 1:
            return {self.names[0]: whole.reshape(self.shape)}
        pieces = whole.reshape(len(self.names) * self.shape[0], *self.shape[1:]).split(self.shape[0])
        return dict(zip(self.names, pieces, strict=True))


Layout = Mapping[str, Origin]
"""Our parameter's name -> where it lies."""


def shapes_of(module: nn.Module) -> Shapes:
    """The parameters and buffers of a module, which may be on meta."""
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def names_of(layout: Layout) -> set[str]:
    return {name for origin in layout.values() for name in origin.names}


def unused(layout: Layout, tensors: Tensors) -> list[str]:
    """The tensors that a layout has no place for."""
    known = names_of(layout)
    return [name for name in tensors.shapes if name not in known]


def unused_note(names: Collection[str]) -> str:
    """What is said of tensors that have no place: how many and which."""
    return f"{counted(len(names), 'tensor is', 'tensors are')} not used: {shorten(names)}"


def check(layout: Layout, tensors: Tensors, what: str) -> None:
    """Raises a `UserError` that lists what of the layout is missing, of another shape or no floating point. `what`
    names the network, for the message."""
    wanted = {name: tuple(origin.shape) for origin in layout.values() for name in origin.names}
    missing = [name for name in wanted if name not in tensors.shapes]
    there = {name: (tuple(tensors.shapes[name]), tensors.dtypes[name]) for name in wanted if name in tensors.shapes}
    sizes = [f"{n} is {shape}, expected {wanted[n]}" for n, (shape, _) in there.items() if shape != wanted[n]]
    integers = [f"{name} is {dtype}" for name, (_, dtype) in there.items() if not dtype.is_floating_point]
    get = "the file is quantised or damaged; get one in fp32, fp16, bf16 or fp8"
    for wrong, has, but, advice in (
        (missing, "lacks", f"of {what}", ": the file is incomplete or of another model; download or save it again"),
        (sizes, "has", f"of another shape than {what}", ": the file is of another model"),
        (integers, "has", "not of floating-point numbers", f", as {what} needs: {get}"),
    ):
        if wrong:
            raise UserError(f"{tensors.source} {has} {counted(len(wrong), 'tensor')} {but} ({shorten(wrong)}){advice}.")


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
    """Gives a module that was built on meta its parameters and buffers, without a second copy of them anywhere: views
    of the mapped file where type and device are the file's; else they are copied one by one, and never more than
    `WINDOW` bytes of the file stay in memory beside them.

    Args:
        what: see `check`, which comes first.
        dtype: of the result; or a function of a parameter's name and shape.
        device: of the result; on `meta` the file is checked and nothing is read.
        progress: called as `progress("loading", done, total)`, in MiB of the file.
        ignored: of the tensors that the layout has no place for, those that go without a warning; None: all of them.
    """
    check(layout, tensors, what)
    if ignored is not None and (extra := [name for name in unused(layout, tensors) if name not in ignored]):
        warnings.warn(f"{tensors.source}: {unused_note(extra)}", stacklevel=2)
    if torch.device(device).type == "meta":
        return
    shapes, filled, on_cpu = shapes_of(module), {}, torch.device(device).type == "cpu"
    # What is copied comes from a mapping of its own: one that views keep alive would give no pages back.
    views = tensors.get()
    copies = tensors.get() if tensors.mapped else views
    copied, done, total = 0, 0, sum(tensors.nbytes(name) for name in names_of(layout))
    for name, origin in layout.items():
        first, *others = origin.names
        wanted = dtype(name, shapes[name]) if callable(dtype) else dtype
        stays = on_cpu and not others and not origin.transposed
        stays = stays and tensors.dtypes[first] == wanted and first not in tensors.packed
        source = origin.join(views if stays else copies, shapes[name])
        filled[name] = source.to(device, wanted).contiguous()
        copied += 0 if stays else source.nbytes
        del source
        if copied > WINDOW and tensors.mapped:
            copies, copied = tensors.get(), 0
        done += sum(map(tensors.nbytes, origin.names))
        if progress is not None:
            progress("loading", done >> 20, total >> 20)
    module.load_state_dict(filled, assign=True)


def part(state: Mapping[str, Tensor], layout: Layout) -> StateDict:
    """A module's state under the names and shapes of a layout: views, no copies."""
    result: StateDict = {}
    for name, origin in layout.items():
        result |= origin.part(state[name].detach())
    return result
