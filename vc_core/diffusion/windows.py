"""Context windows: videos with more frames than the network was trained for, as overlapping windows along time."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral

import torch
from torch import Tensor

from ..errors import UserError, check_type
from .guidance import Denoiser


@dataclass(frozen=True)
class Windows:
    """How a long video is split into windows.

    Attributes:
        length: frames of a window, at least 1.
        overlap: frames that neighbouring windows share, less than `length`; by default half of it.
        carry: factor on the strength of the single image and the single sketch in all windows but the first. They show
            how the video begins. With 1, the scenery stays most similar, but moving objects are pulled back to where
            they began. With 0, they move freely, but the scenery is forgotten.
    """

    length: int
    overlap: int | None = None
    carry: float = 0.5

    def __post_init__(self) -> None:
        check_type("The length of windows", self.length, Integral, "an integer")
        check_type("The overlap of windows", self.overlap, Integral | None, "an integer")
        if self.length < 1:
            raise UserError(f"The length of windows must be at least 1 frame, got {self.length}.")
        if self.overlap is None:
            object.__setattr__(self, "overlap", self.length // 2)
        if not 0 <= self.overlap < self.length:
            raise UserError(
                f"The overlap of windows of {self.length} frames must be from 0 to {self.length - 1}, "
                f"got {self.overlap}."
            )

    def spans(self, frames: int) -> list[slice]:
        """The windows of a video of `frames` frames. All are full: the last one is moved back to end with the video.

        If the video is not longer than a window, return one span with the entire video.
        """
        last = max(0, frames - self.length)
        starts = [*range(0, last, self.length - self.overlap), last]
        return [slice(start, min(start + self.length, frames)) for start in starts]

    def weights(self, frames: int) -> list[Tensor]:
        """The weight of each window at each of its frames, `(length,)`. At every frame of the video the sum is 1.

        The weights are a tent with slopes as long as the overlap: a window fades in where the previous one fades out.
        """
        spans, total = self.spans(frames), torch.zeros(frames)
        rise = torch.arange(1, spans[0].stop + 1) / (self.overlap + 1)
        tent = torch.minimum(rise, rise.flip(0)).clamp(max=1)
        for span in spans:
            total[span] += tent
        return [tent / total[span] for span in spans]


class WindowedDenoiser:
    """The blended predictions of windows: `denoiser(x, t)` for x `(B, C, F, h, w)` of all frames.

    At every step, each window is denoised separately, with its own encoded conditions. Predictions of overlapping
    windows are averaged (MultiDiffusion, arXiv 2302.08113, for images; Gen-L-Video, arXiv 2305.18264, for videos).

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
