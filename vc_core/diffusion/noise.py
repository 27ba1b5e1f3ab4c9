"""The noise that sampling starts from: independent, shuffled between windows, or carried along a motion.

Each frame of every kind is standard normal and white. Only the frames depend on each other.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ..conditions import Condition
from ..config import ExtractionConfig
from ..errors import UserError, counted
from .windows import Windows

FINE = 8
"""Side of a latent pixel in pixels of the video. Warped noise moves in steps of one pixel of the video."""

WARPED = {"warped": 0.1, "warped_fully": 1.0}
"""Kind of noise -> the fraction of its variance that moves.

A network that was trained on independent noise obeys camera motion better if all of it moves, but it moves objects less
and mixes colours. With a tenth, objects and colours stay as with independent noise, and videos flicker less.
"""


def _independent(noise: Tensor, numbers: torch.Generator, windows: Windows, motion: Tensor | None) -> Tensor:
    return noise


def _shuffled(noise: Tensor, numbers: torch.Generator, windows: Windows, motion: Tensor | None) -> Tensor:
    """Give every window the noise of the first window in another order (FreeNoise, arXiv 2310.15169, section 4.1).

    The frames that are new in a window get the noise of those that the previous window had and this one does not, in
    random order.
    """
    frames, length, stride = noise.shape[1], windows.length, windows.length - windows.overlap
    if frames <= length:
        raise UserError(
            f"The noise 'shuffled' requires several windows, but {counted(frames, 'frame')} fit into one of {length}. "
            "Use more frames, shorter windows, or independent noise."
        )
    noise = noise.clone()
    for start in range(length, frames, stride):
        count = min(stride, frames - start)
        noise[:, start : start + count] = noise[:, start - length + torch.randperm(count, generator=numbers)]
    return noise


def _warped(
    noise: Tensor, numbers: torch.Generator, windows: Windows, motion: Tensor | None, *, fraction: float
) -> Tensor:
    """Carry a fraction of the noise along a motion (arXiv 2501.08331), so that it stays standard normal and white.

    A pixel of the latent is the sum of `FINE`² values of a finer noise. Every value of the finer noise moves as one
    piece, and to at most one place of the next frame; a place that nothing moves to gets a new value. So the values of
    a frame are independent, and so are their sums.
    """
    channels, _, height, width = noise.shape
    size = (height * FINE, width * FINE)
    place = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij")).flatten(1)  # (2, H W) as y, x
    order = torch.arange(place.shape[1])
    motion = F.interpolate(motion.float().movedim(0, 1), size, mode="bilinear", align_corners=False).flip(1).flatten(2)

    def new() -> Tensor:
        return torch.randn(channels, place.shape[1], generator=numbers)

    fine, rest, carried = new(), torch.zeros(place.shape), []
    for moved in motion:
        # `rest` is the part of its motion that a value has not made yet, up to half a pixel.
        near, _ = _index(place - moved, size)
        origin, inside = _index(place - moved - rest[:, near], size)
        first = torch.full_like(order, len(order)).scatter_reduce(0, origin[inside], order[inside], "amin")
        stays = inside & (first[origin] == order)
        fine = torch.where(stays, fine[:, origin], new())
        rest = torch.where(stays, place[:, origin] + rest[:, origin] + moved - place, 0.0)
        carried.append(F.avg_pool2d(fine.view(channels, *size), FINE) * FINE)
    return (1 - fraction) ** 0.5 * noise + fraction**0.5 * torch.stack(carried, dim=1)


def _index(position: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the indices `(n,)` of the pixels nearest to positions `(2, n)`, and whether these are in the frame."""
    (y, x), (height, width) = (position + 0.5).floor().long(), size  # `round` would move halves to even pixels
    inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
    return y.clamp(0, height - 1) * width + x.clamp(0, width - 1), inside


NOISES: dict[str, Callable[[Tensor, torch.Generator, Windows, Tensor | None], Tensor]] = {
    "independent": _independent,
    "shuffled": _shuffled,
    **{kind: partial(_warped, fraction=fraction) for kind, fraction in WARPED.items()},
}
"""Kind of noise -> the function that returns it, `(C, F, h, w)`, for independent noise of the same shape, a generator
of other random numbers, the windows, and the motion `(2, F, H, W)` in pixels of the video if it is required."""


def motion_for_noise(kind: str, conditions: Iterable[Condition], extraction: ExtractionConfig) -> Tensor | None:
    """Return the motion `(B or 1, 2, F, H, W)` that a kind of noise requires; None if it requires none.

    Raises:
        UserError: there is no motion, or it is not a dense field.
    """
    if kind not in WARPED:
        return None
    motion = next((c.tensor for c in conditions if c.name == "motion" and c.strength != 0.0), None)
    if motion is None:
        raise UserError(f"The noise '{kind}' requires the condition 'motion'. Add it, or use independent noise.")
    if extraction.motion_layout != "dense":
        raise UserError(
            f"The noise '{kind}' requires a dense motion field, but this checkpoint's motion is one vector per block. "
            "Use independent noise."
        )
    return motion


def arranged_noise(kind: str, noise: Tensor, seed: int, windows: Windows, motion: Tensor | None = None) -> Tensor:
    """Turn independent noise `(B, C, F, h, w)` into a kind of `NOISES`. Video i depends only on its noise and seed + i.

    Args:
        motion: see `motion_for_noise`; in pixels of the video.

    Raises:
        UserError: the kind requires several windows.
    """
    videos = []
    for i, video in enumerate(noise):
        numbers = torch.Generator().manual_seed((seed + i) ^ (2**64 - 1))  # other numbers than those of the noise
        field = None if motion is None else motion[i if len(motion) > 1 else 0]
        videos.append(NOISES[kind](video, numbers, windows, field))
    return torch.stack(videos)
