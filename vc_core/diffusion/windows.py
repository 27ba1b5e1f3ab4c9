"""Context windows: more frames than a network was trained for, as overlapping windows along time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError
from .guidance import Denoiser


@dataclass(frozen=True)
class Windows:
    """How a long video is cut.

    Attributes:
        length: frames of a window, at least 1.
        overlap: frames that a window shares with the next, less than `length`; by default half of it.
        carry: factor on the strength of the single image and the single sketch in the windows after the first. They
            show how the video begins: 1 keeps the scenery best and holds what should have moved on near its first
            place; 0 lets it move and forgets the scenery.
    """

    length: int
    overlap: int | None = None
    carry: float = 0.5

    def __post_init__(self) -> None:
        if self.length < 1:
            raise UserError(f"Windows of {self.length} frames are not possible: expected at least 1.")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.length // 2)
        if not 0 <= self.overlap < self.length:
            raise UserError(
                f"Windows of {self.length} frames cannot overlap by {self.overlap}: expected 0 to {self.length - 1}."
            )

    def spans(self, frames: int) -> list[slice]:
        """The windows of a video of `frames` frames, all of them full: the last one is shifted back to the end.

        One span that holds the whole video where it is no longer than a window.
        """
        last = max(0, frames - self.length)
        starts = [*range(0, last, self.length - self.overlap), last]
        return [slice(start, min(start + self.length, frames)) for start in starts]

    def weights(self, frames: int) -> list[Tensor]:
        """How much each window counts at each of its frames, `(length,)`; at every frame of the video the sum is 1.

        A tent whose slopes are as long as the overlap, so that a window fades in where the one before fades out.
        """
        spans, total = self.spans(frames), torch.zeros(frames)
        rise = torch.arange(1, spans[0].stop + 1) / (self.overlap + 1)
        tent = torch.minimum(rise, rise.flip(0)).clamp(max=1)
        for span in spans:
            total[span] += tent
        return [tent / total[span] for span in spans]


class WindowedDenoiser:
    """The predictions of windows, blended: `denoiser(x, t)` for x `(B, C, F, h, w)` of all frames.

    At every step each window is denoised by itself, with what was encoded for it, and where windows overlap the
    predictions are averaged (MultiDiffusion, arXiv 2302.08113, for images; Gen-L-Video, arXiv 2305.18264, for videos).

    Args:
        denoisers: one for each of `windows.spans(frames)`.
    """

    def __init__(self, denoisers: Sequence[Denoiser], windows: Windows, frames: int):
        self.denoisers = tuple(denoisers)
        self.spans, self.weights = windows.spans(frames), windows.weights(frames)

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        blended = torch.zeros_like(x)
        for denoiser, span, weight in zip(self.denoisers, self.spans, self.weights, strict=True):
            blended[:, :, span] += weight.to(x)[:, None, None] * denoiser(x[:, :, span], t)
        return blended
