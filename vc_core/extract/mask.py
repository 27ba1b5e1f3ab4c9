"""Masks: which pixels of a video are kept, and the masked video that the network sees."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UserError
from ..video import IMAGES, FramePlan, frame_files, read_frames, read_image, resize_crop
from .drawing import Rectangle, Shape, Stroke, chosen, draw_shapes, half
from .sketch import as_sketch

POLARITIES = ("paint", "keep")
"""What a mask's white can mean: to be painted anew, as painting programs and ComfyUI have it, or to be kept."""


def read_mask(
    path: str | os.PathLike,
    plan: FramePlan | int,
    white: str = "paint",
    size: tuple[int, int] | None = None,
) -> Tensor:
    """A keep map (1, 1, F, H, W) of {0, 1}, 1 = keep, from an image, a video, or a folder of images.

    An image stands for every frame; a video mask needs the source's frame plan, so that both show the same moments
    (for images, the number of frames will do). A folder holds one image for each frame of the plan, in the order of
    their names, numbers counted as such. `white` is one of `POLARITIES`. Halfway grey and brighter counts as white;
    transparent counts as white. With `size` (h, w) it is scaled and centre-cropped as the source is. Raises UserError
    for another word, an unreadable file, or a folder with another number of images.
    """
    path = Path(path)
    chosen(f"meaning of white in the mask {path}", white, POLARITIES)
    frames = plan if isinstance(plan, int) else plan.frames
    if path.is_dir():
        picture = _read_images(path, frames, size)
    elif path.suffix.lower() in IMAGES:
        picture = read_image(path)[:, :, None]
    elif isinstance(plan, FramePlan):
        picture = read_frames(path, plan, size)
    else:
        raise UserError(
            f"{path}: is no image, and a mask video needs the frame plan of its source: "
            "give a .png, or the source video too."
        )
    return as_mask(picture, white, frames, size)


def _read_images(folder: Path, frames: int, size: tuple[int, int] | None) -> Tensor:
    """The images of a folder (1, 3, F, H, W), in the order of their names."""
    files = frame_files(folder, frames)
    pictures = [resize_crop(image, size) if size else image for image in map(read_image, files)]
    for file, picture in zip(files, pictures, strict=True):
        if picture.shape != pictures[0].shape:
            raise UserError(f"{file}: the mask is of another size than {files[0].name}: make them of one size.")
    return torch.stack(pictures, dim=2)


def as_mask(
    picture: Tensor, white: str = "paint", frames: int | None = None, size: tuple[int, int] | None = None
) -> Tensor:
    """A keep map (B, 1, F, H, W) of {0, 1}, 1 = keep, from a picture of a mask.

    picture: (B, 1 or 3, H, W) or (B, 1 or 3, F, H, W) in [0, 1]; a single frame stands for all `frames`. 0.5 and
    brighter counts as white, whose meaning is one of `POLARITIES`. With `size` (h, w) it is scaled and
    centre-cropped. Raises UserError for another word, shape or number of frames, or values outside [0, 1].
    """
    chosen("meaning of white in a mask", white, POLARITIES)
    video = picture[:, :, None] if picture.ndim == 4 else picture
    if video.ndim != 5 or video.shape[1] not in (1, 3):
        raise UserError(
            f"The mask has the shape {tuple(picture.shape)}: expected (batch, 1 or 3, height, width), or the same with "
            "frames before the height."
        )
    if frames is not None and video.shape[2] not in (1, frames):
        raise UserError(f"The mask has {video.shape[2]} frames: expected {frames}, or 1 for all of them.")
    video = video.float()
    if not ((video >= -1e-4) & (video <= 1 + 1e-4)).all():
        raise UserError("The mask has values outside 0..1: expected 0 for black and 1 for white.")
    if size is not None and video.shape[-2:] != tuple(size):
        video = resize_crop(video, size)
    bright = as_sketch(video) >= 0.5 - 1e-4  # the weights of grey sum to 1 but for rounding
    keep = (bright if white == "keep" else ~bright).float()
    return keep if frames is None else keep.expand(-1, -1, frames, -1, -1)


def masked_video(video: Tensor, keep: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """What the network sees of a mask: (B, 4, F, H, W), RGB in [-1, 1] times keep, then keep.

    video: (B, 3, F, H, W) in [0, 1]; keep: (B or 1, 1, F or 1, H, W), 1 = keep, 0 = to be painted. With `size` (h, w)
    both are brought to it first, so that the keep map stays one of {0, 1} and nothing of what is painted is seen.
    """
    if video.shape[-2:] != keep.shape[-2:]:
        raise ValueError(f"video and keep map differ in size: {tuple(video.shape)} and {tuple(keep.shape)}")
    if size is not None and tuple(video.shape[-2:]) != tuple(size):
        video, keep = resize_crop(video, size), (resize_crop(keep, size) >= 0.5 - 1e-4).to(keep)
    keep = keep.to(video).expand(video.shape[0], 1, *video.shape[2:])
    return torch.cat([(video * 2 - 1) * keep, keep], dim=1)


# ---------------------------------------------------------------------------------------------------------------
# Drawn masks
# ---------------------------------------------------------------------------------------------------------------


def drawn_mask(
    shapes: Sequence[Shape],
    frames: int,
    size: tuple[int, int],
    canvas: tuple[int, int] | None = None,
    easing: str = "linear",
) -> Tensor:
    """A keep map (1, 1, F, H, W) of {0, 1}, 1 = keep: what the shapes cover is to be painted; see `draw_shapes`."""
    return 1 - draw_shapes(shapes, frames, size, canvas, easing)


REFERENCE = 512
"""Shorter side of the canvas that the released training drew its masks on. Its lengths below are in its pixels."""

Draw = Callable[[int, int], int]
"""A whole number from the first on and below the second."""


def _strokes(draw: Draw, width: int, height: int) -> list[Shape]:
    """1 to 5 strokes of 1 to 5 segments, each with its own length, width and one of four directions."""
    shapes: list[Shape] = []
    for number in range(draw(1, 6)):
        x, y = draw(0, width), draw(0, height)
        travel = _travel(draw)
        for _ in range(draw(1, 6)):
            angle = (0.01 + draw(0, 4)) * (-1 if number % 2 == 0 else 1)  # radians from straight down
            length, thickness = draw(10, 210), draw(5, 105)
            end = (
                min(max(int(x + length * math.sin(angle)), 0), width),
                min(max(int(y + length * math.cos(angle)), 0), height),
            )
            shapes.append(Stroke(((x, y), end), thickness, travel))
            x, y = end
    return shapes


def _rectangles(draw: Draw, width: int, height: int) -> list[Shape]:
    """1 to 4 rectangles that keep 10 from the edges, with sides of 30 to 149."""
    shapes: list[Shape] = []
    for _ in range(draw(1, 5)):
        w, h = draw(30, 150), draw(30, 150)
        left, top = draw(10, width - 10 - w + 1), draw(10, height - 10 - h + 1)
        shapes.append(Rectangle(left, top, left + w, top + h, _travel(draw)))
    return shapes


def _half(draw: Draw, width: int, height: int) -> list[Shape]:
    return [half(("top", "bottom", "left", "right")[draw(0, 4)], (height, width), _travel(draw))]


def _travel(draw: Draw) -> tuple[float, float]:
    """How far a shape moves over the clip: up to a quarter of the canvas each way."""
    return draw(-REFERENCE // 4, REFERENCE // 4 + 1), draw(-REFERENCE // 4, REFERENCE // 4 + 1)


RANDOM_MASKS: dict[str, tuple[float, Callable[[Draw, int, int], list[Shape]]]] = {
    "strokes": (0.7, _strokes),
    "rectangles": (0.2, _rectangles),
    "half": (0.1, _half),
}
"""Kinds of random masks, with the share that each has in the released training (tools/videocomposer/datasets.py)."""


def random_mask(
    frames: int,
    size: tuple[int, int],
    generator: torch.Generator,
    kind: str | None = None,
    moving: bool = False,
) -> Tensor:
    """A random keep map (1, 1, F, H, W) of {0, 1}, 1 = keep, as the released training drew them.

    Drawn on a canvas with a shorter side of 512 and of the video's shape, so that masks look the same at every size.
    The same state of the generator gives the same shapes whether or not they are moving, at every size of one shape.

    Args:
        kind: one of `RANDOM_MASKS`; None draws it too, by the released shares.
        moving: each shape travels; the released training's are the same in all frames.

    Raises:
        UserError: an unknown kind.
    """

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    if kind is None:
        shares = torch.tensor([share for share, _ in RANDOM_MASKS.values()])
        kind = list(RANDOM_MASKS)[int(torch.multinomial(shares, 1, generator=generator))]
    _, shapes_of = RANDOM_MASKS[chosen("kind of mask", kind, tuple(RANDOM_MASKS))]
    height, width = canvas = tuple(round(side * REFERENCE / min(size)) for side in size)
    shapes = shapes_of(draw, width, height)
    if not moving:
        shapes = [replace(shape, travel=(0.0, 0.0)) for shape in shapes]
    return drawn_mask(shapes, frames, size, canvas)
