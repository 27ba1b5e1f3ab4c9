"""The noise that sampling starts from: independent, shuffled between windows, or carried along a motion.

Every kind is standard normal, and independent between the pixels of a frame; only the frames depend on each other.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError, counted
from .windows import Windows

FINE = 8
"""Side of a latent pixel in pixels of the video. Warped noise moves in steps of one pixel of the video."""


def _independent(noise: Tensor, numbers: torch.Generator, windows: Windows, motion: Tensor | None) -> Tensor:
    return noise


def _shuffled(noise: Tensor, numbers: torch.Generator, windows: Windows, motion: Tensor | None) -> Tensor:
    """Give every window the noise of the first window in another order (FreeNoise, arXiv 2310.15169, section 4.1).

    The frames that are new in a window get the noise of those that the previous window had and this one does not, in
    random order.
    """
    frames, length = noise.shape[1], windows.length
    if frames <= length:
        raise UserError(
            f"The noise 'shuffled' requires several windows, but {counted(frames, 'frame')} fit into one of {length}. "
            "Use more frames, shorter windows, or independent noise."
        )
    noise = noise.clone()
    for start in range(length, frames, stride := length - windows.overlap):
        count = min(stride, frames - start)
        noise[:, start : start + count] = noise[:, start - length + torch.randperm(count, generator=numbers)]
    return noise


def _warped(noise: Tensor, numbers: torch.Generator, windows: Windows, motion: Tensor | None) -> Tensor:
    """Carry the noise along a motion (arXiv 2501.08331), in a way that keeps it standard normal and white.

    A pixel of the latent is the sum of `FINE`² values of a finer noise. Each value of the finer noise moves as one
    piece, and to at most one place of the next frame; a place that nothing moves to gets a new value. So the values of
    a frame are independent, and their sums are, too.
    """
    if motion is None:
        raise UserError("The noise 'warped' requires the condition 'motion'. Add it, or use independent noise.")
    _, frames, height, width = noise.shape
    size = (height * FINE, width * FINE)
    place = torch.stack(torch.meshgrid(*map(torch.arange, size), indexing="ij"))  # (2, H, W) as y, x
    order = torch.arange(size[0] * size[1])
    motion = F.interpolate(motion.float().movedim(0, 1), size, mode="bilinear", align_corners=False).flip(1)
    warped, fine, rest = [noise[:, 0]], _refined(noise[:, 0], numbers), torch.zeros(2, *size)
    for frame in range(1, frames):
        moved = motion[frame]
        # A value is up to half a pixel away from its exact position, the rest of its motion so far.
        near = _index(place - moved, size)[0]
        origin, inside = _index(place - moved - rest.flatten(1)[:, near].view_as(rest), size)
        first = torch.full_like(order, len(order)).scatter_reduce(0, origin[inside], order[inside], "amin")
        carried = inside & (first[origin] == order)
        new = _refined(noise[:, frame], numbers).flatten(1)
        fine = torch.where(carried, fine.flatten(1)[:, origin], new).view(-1, *size)
        before = torch.stack([origin // size[1], origin % size[1]]) + rest.flatten(1)[:, origin]
        rest = torch.where(carried, before + (moved - place).flatten(1), 0.0).view(2, *size)
        warped.append(F.avg_pool2d(fine, FINE) * FINE)
    return torch.stack(warped, dim=1)


def _index(position: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return the indices `(H * W,)` of the pixels next to positions `(2, H, W)`, and whether these are in the frame."""
    nearest = position.round().long().flatten(1)
    last = torch.tensor(size)[:, None] - 1
    inside = ((nearest >= 0) & (nearest <= last)).all(0)
    y, x = nearest.clamp(min=torch.zeros_like(last), max=last)
    return y * size[1] + x, inside


def _refined(noise: Tensor, numbers: torch.Generator) -> Tensor:
    """Return standard normal noise `(C, FINE h, FINE w)` whose blocks' sums, divided by `FINE`, are noise `(C, h, w)`."""
    channels, height, width = noise.shape
    fine = torch.randn(channels, height * FINE, width * FINE, generator=numbers)
    return fine + _spread(noise / FINE - F.avg_pool2d(fine, FINE))


def _spread(coarse: Tensor) -> Tensor:
    return coarse.repeat_interleave(FINE, 1).repeat_interleave(FINE, 2)


NOISES: dict[str, Callable[[Tensor, torch.Generator, Windows, Tensor | None], Tensor]] = {
    "independent": _independent,
    "shuffled": _shuffled,
    "warped": _warped,
}
"""Kind of noise -> the function that returns it, `(C, F, h, w)`, for independent noise of the same shape, a generator
of other random numbers, the windows, and the motion `(2, F, H, W)` in pixels of the video; None without motion."""


def arranged_noise(kind: str, noise: Tensor, seed: int, windows: Windows, motion: Tensor | None = None) -> Tensor:
    """Turn independent noise `(B, C, F, h, w)` into a kind of `NOISES`. Video i depends only on its noise and seed + i.

    Args:
        motion: the motion condition of a dense field, `(B or 1, 2, F, H, W)`.

    Raises:
        UserError: the kind requires a motion or several windows.
    """
    videos = []
    for i, video in enumerate(noise):
        numbers = torch.Generator().manual_seed((seed + i) ^ (2**64 - 1))  # other numbers than those of the noise
        field = None if motion is None else motion[i if len(motion) > 1 else 0]
        videos.append(NOISES[kind](video, numbers, windows, field))
    return torch.stack(videos)
