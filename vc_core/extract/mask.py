"""Masks: which pixels of a video are kept, and the masked video that the network sees."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError, counted
from ..video import FramePlan, frame_files, is_image, read_frames, read_image, resize_crop
from .drawing import Rectangle, Shape, Stroke, chosen, draw_shapes, half
from .sketch.methods import as_sketch

POLARITIES = ("paint", "keep")
"""What white in a mask can mean: repaint, as in painting programs and ComfyUI, or keep."""


@dataclass(frozen=True)
class Mask:
    """A mask after interpretation.

    Attributes:
        keep: (B, 1, F, H, W) of {0, 1}, 1 = keep, 0 = repaint.
        labels: the mask contains no white, so everything that is not black counts as white.
    """

    keep: Tensor
    labels: bool = False

    @property
    def note(self) -> str:
        """A sentence for users about what it repaints."""
        painted = 1 - self.keep
        fraction, frames = painted.mean().item(), self.keep.shape[2]
        idle = int((painted.sum((0, 1, 3, 4)) == 0).sum())
        why = " It contains no white, so everything that is not black counts as white." if self.labels else ""
        if fraction in (0, 1):
            what = "nothing" if fraction == 0 else "the entire frame"
            return f"Mask: {what} is repainted. Use another mask, or change what its white means.{why}"
        some = f", and nothing in {counted(idle, 'frame')} of {frames}" if idle else ""
        percent = f"{100 * fraction:.0f}" if fraction >= 0.005 else "less than 1"
        return f"Mask: {percent} percent of the frame area is repainted{some}.{why}"


def load_mask(path: str | os.PathLike, plan: FramePlan, white: str, size: tuple[int, int]) -> Mask:
    """Read a mask (1, 1, F, H, W) from an image, a video, or a folder of images.

    An image applies to every frame; a video is read at the times of the source's plan. A folder contains one image for
    each frame of the plan, in natural order of their names. `white` is one of `POLARITIES`. `mask_of` explains what
    counts as white; transparent pixels do. The mask is scaled to `size` (h, w) and centre-cropped like the source.
    Raises UserError for an unknown `white`, an unreadable file, or a wrong number of images in a folder.
    """
    path = Path(path)
    chosen(f"meaning of white in the mask {path}", white, POLARITIES)
    if path.is_dir():
        bright, coloured = [], []

        def images() -> Iterator[Tensor]:  # one at a time: images may be large, only resized ones stay in memory
            for image in map(read_image, frame_files(path, plan.frames)):
                bright.append(resize_crop(as_sketch(image), size))
                coloured.append(resize_crop(_not_black(image), size))
                yield image

        labels = _are_labels(images())
        return Mask(_keep(torch.stack(coloured if labels else bright, dim=2), white), labels)
    frames = read_image(path)[:, :, None] if is_image(path) else read_frames(path, plan, size)
    return mask_of(frames, white, plan.frames, size)


def mask_of(video: Tensor, white: str, frames: int, size: tuple[int, int]) -> Mask:
    """Interpret images as a mask (B, 1, F, H, W).

    A grey level of 0.5 and brighter counts as white; what white means is one of `POLARITIES`. Label masks contain no
    white: levels 0 and 1 of 255, numbered objects, or palette colours on black (DAVIS). In them, everything that is not
    black counts as white.

    video: (B, 1 or 3, F or 1, H, W) in [0, 1]; a single frame applies to all `frames`. It is scaled to `size` (h, w)
    and centre-cropped. Raises UserError for an unknown `white`, another shape or number of frames, or values outside
    [0, 1].
    """
    chosen("meaning of white in a mask", white, POLARITIES)
    if video.ndim != 5 or video.shape[1] not in (1, 3):
        raise UserError(f"The mask has shape {tuple(video.shape)}. Expected (batch, 1 or 3, frames, height, width).")
    if video.shape[2] not in (1, frames):
        raise UserError(f"The mask has {video.shape[2]} frames. Expected {frames}, or 1 for all of them.")
    video = video.float()
    if not ((video >= -1e-4) & (video <= 1 + 1e-4)).all():
        raise UserError("The mask has values outside 0..1. Expected 0 for black to 1 for white.")
    labels = _are_labels([video])
    whiteness = _not_black(video) if labels else as_sketch(video)
    if whiteness.shape[-2:] != tuple(size):
        whiteness = resize_crop(whiteness, size)
    return Mask(_keep(whiteness, white).expand(-1, -1, frames, -1, -1), labels)


def _keep(whiteness: Tensor, white: str) -> Tensor:
    """Return the keep map (B, 1, F, H, W) of {0, 1} for a whiteness of the same shape in [0, 1]."""
    bright = whiteness >= 0.5 - 1e-4  # the weights of grey sum to 1, except for rounding
    return (bright if white == "keep" else ~bright).float()


DARK = 0.1
"""Level of the brightest channel below which a colour counts as black, because video files do not store exact black."""

FEW = 16
"""The most grey levels of a label mask; a mask with soft edges has more."""


def _not_black(video: Tensor) -> Tensor:
    """(B, 1 or 3, ...) -> (B, 1, ...) of {0, 1}: 1 where a label mask shows a label."""
    dark = DARK if _coloured(video).any() else 0.0
    return (video.amax(1, keepdim=True) > dark).float()


def _coloured(video: Tensor) -> Tensor:
    return video.amax(1) - video.amin(1) > DARK


def _are_labels(images: Iterable[Tensor]) -> bool:
    """Whether the images (B, 1 or 3, ...) of a mask, taken together, are labels: on black, and without white."""
    black = white = False
    visible, coloured, brightest, levels = 0, 0, 0.0, set()
    for image in images:
        peak, grey, colours = image.amax(1), as_sketch(image), int(_coloured(image).sum())
        black |= (peak <= (DARK if colours else 0)).any().item()
        white |= (image.amin(1) > 1 - DARK).any().item()
        visible, coloured = visible + int((peak > DARK).sum()), coloured + colours
        brightest = max(brightest, grey.max().item())
        if brightest < 0.5:
            levels.update(grey.unique().tolist()[: FEW + 1])
    dull = 0 < brightest < 0.5 - 1e-4 and len(levels) <= FEW
    return black and not white and (dull or coloured * 20 >= visible > 0)


def masked_video(video: Tensor, keep: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """The mask condition (B, 4, F, H, W): RGB in [-1, 1] times keep, then keep.

    video: (B, 3, F, H, W) in [0, 1]; keep: (B or 1, 1, F or 1, H, W), 1 = keep, 0 = repaint. With `size` (h, w), both
    are resized to it first, so that the keep map stays in {0, 1} and no repainted pixel leaks into the RGB.
    """
    if video.shape[-2:] != keep.shape[-2:]:
        raise ValueError(f"video and keep map differ in size: {tuple(video.shape)} and {tuple(keep.shape)}")
    if size is not None and tuple(video.shape[-2:]) != tuple(size):
        video, keep = resize_crop(video, size), (resize_crop(keep, size) >= 0.5 - 1e-4).to(keep)
    keep = keep.to(video).expand(video.shape[0], 1, *video.shape[2:])
    return torch.cat([(video * 2 - 1) * keep, keep], dim=1)


REFERENCE = 512
"""Shorter side of the canvas on which the released training drew its masks. Lengths below are in its pixels."""

Draw = Callable[[int, int], int]
"""A random integer, at least the first argument and below the second."""


def _strokes(draw: Draw, width: int, height: int) -> list[Shape]:
    """1 to 5 strokes of 1 to 5 segments, each with its own length, width and one of four directions."""
    shapes: list[Shape] = []
    for number in range(draw(1, 6)):
        x, y = draw(0, width), draw(0, height)
        _travel(draw)
        for _ in range(draw(1, 6)):
            angle = (0.01 + draw(0, 4)) * (-1 if number % 2 == 0 else 1)  # radians from straight down
            length, thickness = draw(10, 210), draw(5, 105)
            end = (
                min(max(int(x + length * math.sin(angle)), 0), width),
                min(max(int(y + length * math.cos(angle)), 0), height),
            )
            shapes.append(Stroke((x, y), end, thickness))
            x, y = end
    return shapes


def _rectangles(draw: Draw, width: int, height: int) -> list[Shape]:
    """1 to 4 rectangles at least 10 from the edges, with sides of 30 to 149."""
    shapes: list[Shape] = []
    for _ in range(draw(1, 5)):
        w, h = draw(30, 150), draw(30, 150)
        left, top = draw(10, width - 10 - w + 1), draw(10, height - 10 - h + 1)
        shapes.append(Rectangle(left, top, left + w, top + h))
        _travel(draw)
    return shapes


def _half(draw: Draw, width: int, height: int) -> list[Shape]:
    side = ("top", "bottom", "left", "right")[draw(0, 4)]
    _travel(draw)
    return [half(side, (height, width))]


def _travel(draw: Draw) -> None:
    """Draw two unused numbers, so that a seed gives the same mask as in earlier versions."""
    for _ in range(2):
        draw(-REFERENCE // 4, REFERENCE // 4 + 1)


RANDOM_MASKS: dict[str, tuple[float, Callable[[Draw, int, int], list[Shape]]]] = {
    "strokes": (0.7, _strokes),
    "rectangles": (0.2, _rectangles),
    "half": (0.1, _half),
}
"""Kinds of random masks, with their probabilities in the released training (tools/videocomposer/datasets.py)."""


def random_mask(frames: int, size: tuple[int, int], generator: torch.Generator, kind: str | None = None) -> Tensor:
    """A random keep map (1, 1, F, H, W) of {0, 1}, 1 = keep, as in the released training: the same in all frames.

    It is drawn on a canvas with a shorter side of 512 and the video's aspect ratio, so that masks look the same at
    every size. `kind` is one of `RANDOM_MASKS`; None draws a kind with the released probabilities. Raises UserError
    for another kind.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    if kind is None:
        probabilities = torch.tensor([probability for probability, _ in RANDOM_MASKS.values()])
        kind = list(RANDOM_MASKS)[int(torch.multinomial(probabilities, 1, generator=generator))]
    _, shapes_of = RANDOM_MASKS[chosen("kind of mask", kind, RANDOM_MASKS)]
    height, width = canvas = tuple(round(side * REFERENCE / min(size)) for side in size)
    return 1 - draw_shapes(shapes_of(draw, width, height), size, canvas).expand(-1, -1, frames, -1, -1)
