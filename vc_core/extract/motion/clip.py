"""The frames of a plan, from a file with its index, or from a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from ...errors import UserError
from ...video.frames import FramePlan, chosen_times, pictures, planned_index
from ...video.opening import Media
from ...video.packets import Index
from ...video.sequences import VideoSource, media
from ...video.showing import filtering


@dataclass(frozen=True)
class Clip:
    """The frames of a plan.

    Attributes:
        name: for messages.
        times: time of each frame of the plan, in the file's time base.
        shown: a function from ffmpeg filters to the frames as displayed, filtered.
        video, table: the file and its index; None for frames of a tensor.
    """

    name: str
    plan: FramePlan
    times: Sequence[int]
    shown: Callable[[list[tuple[str, str]]], Iterator]
    video: Media | None = None
    table: Index | None = None


@contextmanager
def opened_clip(source: VideoSource | Tensor, plan: FramePlan) -> Iterator[Clip]:
    """Open a source and yield the frames of the plan. Raises UserError if it cannot be read."""
    if isinstance(source, Tensor):
        frames = tensor_pictures(source, plan)
        yield Clip("The tensor of frames", plan, range(plan.frames), lambda filters: filtered(frames, filters))
        return
    with media(source) as video:
        table = planned_index(video, plan)
        times = chosen_times(video, table, plan)
        yield Clip(str(video), plan, times, lambda filters: pictures(video, table, times, filters), video, table)


def tensor_pictures(frames: Tensor, plan: FramePlan) -> Iterator:
    """Convert a tensor (F, 3, H, W) or (1, 3, F, H, W) in [0, 1] to av.VideoFrames.

    Raises UserError for another shape, another number of frames than the plan's, or values that are not finite.
    """
    import av

    if frames.dim() == 5 and frames.shape[:2] == (1, 3):
        frames = frames[0].transpose(0, 1)
    if frames.dim() != 4 or frames.shape[1] != 3 or len(frames) != plan.frames or not frames.is_floating_point():
        raise UserError(
            f"The tensor of frames is {tuple(frames.shape)} of {frames.dtype}. Expected floating-point (F, 3, H, W) or "
            f"(1, 3, F, H, W) with the plan's F = {plan.frames}."
        )
    if not torch.isfinite(frames).all():
        raise UserError("The tensor of frames contains values that are not finite. Expected colours in [0, 1].")
    pixels = ((each.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0) for each in frames)
    return (av.VideoFrame.from_ndarray(each.contiguous().cpu().numpy(), format="rgb24") for each in pixels)


def filtered(frames: Iterable, filters: list[tuple[str, str]]) -> Iterator:
    """Yield the frames after ffmpeg filters."""
    run = filtering("The tensor of frames", filters)
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base = number, Fraction(1, 25)
        yield run(frame)
