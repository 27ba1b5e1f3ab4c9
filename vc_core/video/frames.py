"""The frame plan that all extractors of one source share, and the frames that it selects."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError, check_type, counted
from . import hdr
from .decoding import decode
from .limits import FASTEST, check_rate, check_size
from .opening import Media
from .packets import NEVER, Index
from .sequences import VideoSource, media
from .showing import filtering, stored_picture
from .timeline import extent, index

RELEASED_RATE = 4  # frames per second that the released pipeline samples from a clip that is long enough


# --- What a file is, and which of its frames are used ---------------------------------------------------------------


@dataclass(frozen=True)
class VideoInfo:
    """The result of `probe`. Width and height are as shown: with square pixels, and rotated as the file says."""

    path: Path
    width: int
    height: int
    frames: int
    rate: Fraction  # average frames per second
    duration: float  # seconds from the first frame's start to the last one's end
    codec: str
    note: str = ""  # a sentence about what was decided for the user, e.g. for HDR or a folder of images


@dataclass(frozen=True)
class FramePlan:
    """Which frames of a source are used: `frames` of them, at start, start + 1/rate, ... (seconds).

    Frames are selected as by ffmpeg's `fps` filter: each frame is assigned to the nearest of these ticks, and a tick
    shows the last frame assigned to it (or to the nearest earlier tick that has one).
    `plan_frames` creates one plan per source, and every extractor receives it, so that all use the same frames.
    """

    start: float
    rate: Fraction
    frames: int


def probe(source: VideoSource) -> VideoInfo:
    """Open a video, decode its first frame and describe the video.

    Raises UserError if the path is missing, a folder without images, an image, without a video stream, or unreadable.
    """
    with media(source) as video:
        if images := video.pictures:
            (height, width), frames, seconds = images.size, len(images.times) - 1, images.times[-1] * images.time_base
            rate = (frames / seconds).limit_denominator(1001)
            return VideoInfo(Path(video.name), width, height, frames, rate, float(seconds), images.kind, images.note)
        picture = stored_picture(video)
        (height, width), note = picture.shown, hdr.note(video, picture.transfer)
        return VideoInfo(Path(video.name), width, height, *extent(video), picture.codec, note)


def plan_frames(
    info: VideoInfo,
    frames: int = 16,
    rate: float | Fraction | None = None,
    start: float = 0.0,
    usual: float = RELEASED_RATE,
) -> FramePlan:
    """Return the frame plan of a source.

    Without `rate`, use the released rule (tools/videocomposer/datasets.py): `usual` frames per second, or, if the clip
    has no more than `frames` frames at that rate, int(frames / duration) + 1. The released number of frames is 16; its
    duration is the number of frames divided by the average rate. `start` is in seconds. A plan of one frame uses the
    frame shown at the start.

    Raises UserError if the start is at or after the clip's end, or if the clip is too short: without `rate`, if fewer
    than `frames` frames of the source remain from `start` on (repeated frames would not move); with `rate`, if the
    remaining seconds contain fewer than `frames` frames at that rate. Also for a rate outside 0.01 to 1000.
    """
    check_type("info", info, VideoInfo, "what probe() returns for a clip")
    check_type("frames", frames, Integral, "an integer")
    check_type("rate", rate, Real | None, "a number of frames per second")
    if frames < 1:
        raise UserError(f"{info.path}: The number of frames must be at least 1, got {frames}.")
    start = float(start)
    if start < 0 or not math.isfinite(start):
        raise UserError(f"{info.path}: The start must be 0 seconds or later, got {start}.")
    if start and start >= info.duration:
        raise UserError(
            f"{info.path} is {info.duration:g} seconds long, so it has no frames from {start:g} s on. Use an earlier "
            "start."
        )
    nominal = info.frames / float(info.rate) - start  # as the released code computes it
    seconds = info.duration - start
    if rate is None:
        remaining = max(0, info.frames - math.ceil(start * info.rate))
        if remaining < frames:
            raise UserError(
                f"{info.path} is too short. Expected at least {frames} frames ({frames / float(info.rate):.2f} s) from "
                f"{start:g} s on, got {counted(remaining, 'frame')}. Use a longer clip, an earlier start or fewer "
                "frames."
            )
        chosen = usual if nominal * usual > frames else int(frames / nominal) + 1
        if round(seconds * chosen) < frames:  # the average rate is wrong (variable frame rates): use the duration
            chosen = int(frames / seconds) + 1
        if frames == 1:
            chosen = min(chosen, FASTEST)
        check_rate(f"{info.path}: The automatic rate for such a short clip", chosen)
        return FramePlan(start, Fraction(chosen).limit_denominator(1001), frames)
    check_rate(f"{info.path}: The rate", rate)
    available = max(round(seconds * rate), 1 if seconds > 0 else 0)  # one frame is always shown at the start
    if available < frames:
        raise UserError(
            f"{info.path} is too short. Expected {frames} frames ({frames / float(rate):.2f} s) at {float(rate):g} per "
            f"second from {start:g} s on, got {counted(available, 'frame')}. Use a longer clip, a higher rate or fewer "
            "frames."
        )
    # A time base that every encoder can store: MPEG-4 has 16 bits for the ticks per second.
    return FramePlan(start, Fraction(rate).limit_denominator(max(1, min(1001, int(65535 / rate)))), frames)


# --- Frames ---------------------------------------------------------------------------------------------------------


def planned_frames(source: VideoSource, plan: FramePlan, *filters: tuple[str, str]) -> Iterator:
    """Yield the plan's frames as av.VideoFrame, as shown (see `filtering`), through further ffmpeg filters.

    Frames are selected as by ffmpeg's `fps` filter, like in the released pipeline. Pixels and motion vectors both come
    from here, so they always belong to the same frames. Segments between keyframes without planned frames are not
    decoded. The filters must process each frame independently.

    Raises UserError if the source cannot be read or has fewer frames.
    """
    with media(source) as video:
        table = planned_index(video, plan)
        yield from pictures(video, table, chosen_times(video, table, plan), filters)


WINDOW = 60
"""Seconds whose packets `every_frame` keeps in memory at a time."""


def every_frame(
    source: VideoSource, *filters: tuple[str, str], start: float = 0.0, end: float = math.inf
) -> Iterator[tuple[float, Any]]:
    """Yield (seconds from the first frame's start, av.VideoFrame) for each frame shown first at `start` or later and
    before `end`, as shown and filtered as in `planned_frames`.

    The memory does not grow with the length of the video, unless its keyframes are more than `WINDOW` apart. Raises
    UserError at the first frame that cannot be read, and if frames are missing at the end, after yielding the others.
    """
    with media(source) as video:
        begin, seconds, last = Fraction(start).limit_denominator(10**6), Fraction(WINDOW), -math.inf
        while begin < end:
            table = planned_index(video, FramePlan(float(begin), Fraction(1), math.ceil(seconds)))

            def moment(time: int, table: Index = table) -> Fraction:
                return (time - table.origin) * table.time_base

            until = min(begin + seconds, end)
            times = [time for time in table.times if time > last and begin <= moment(time) < until]
            for time, frame in zip(times, pictures(video, table, times, filters), strict=True):
                last = time
                yield float(moment(time)), frame
            if table.end is not None and moment(table.times[-1]) < until:
                _check_end(video, float(moment(table.end)), end)
                return
            # A window is decoded from the keyframe before it, which costs at most as much as the window itself.
            lead = begin - moment(table.packets[0].time) if table.packets and table.packets[0].time != NEVER else 0
            begin, seconds = begin + seconds, max(Fraction(WINDOW), lead)


def _check_end(video: Media, seconds: float, end: float) -> None:
    """Raise UserError if a video ends at `seconds`, earlier than it says and than `end`."""
    if video.pictures:
        return
    _, rate, duration = extent(video)
    if seconds + 0.02 * duration + 2 / rate < min(end, duration):  # what containers say is not exact
        raise UserError(
            f"{video} is truncated or shorter than it says. Its frames end at {seconds:.2f} s instead of "
            f"{duration:.2f} s. Use a complete file."
        )


def pictures(video: Media, table: Index, times: Sequence[int], filters: Sequence[tuple[str, str]]) -> Iterator:
    """Yield the frames at the index's `times` (ascending) as av.VideoFrame, as shown, through further ffmpeg filters. A
    time that occurs several times yields the same frame as often."""
    run, counts = filtering(video, filters, table.aspect, table.colour), Counter(times)
    images = video.pictures.shown([*counts]) if video.pictures else (f for _, f in decode(video, table, [*counts]))
    for count, frame in zip(counts.values(), images, strict=True):
        yield from repeat(run(frame), count)


def planned_index(video: Media, plan: FramePlan) -> Index:
    """Return an index of the packets that contain the plan's frames."""
    if images := video.pictures:  # no packets, and all times are known
        base, (*times, end) = images.time_base, images.times
        return Index(images.kind, base, 0, Fraction(plan.start) / base, end // len(times), (), tuple(times), end)
    return index(video, plan.start, float((plan.frames + 1) / plan.rate))


def chosen_times(video: Media, table: Index, plan: FramePlan) -> list[int]:
    """Return the time, in the stream's time base, of the frame that is shown at each tick of the plan."""
    rate = table.time_base * plan.rate
    ticks = [math.floor((time - table.start) * rate + Fraction(1, 2)) for time in table.times]
    chosen = [table.times[max(0, bisect_right(ticks, tick) - 1)] for tick in range(plan.frames)]
    if table.headless and table.seek is None and ticks[0] > 0:
        raise UserError(
            f"{video} begins with frames that refer to missing frames. It can be decoded from "
            f"{float((table.times[0] - table.origin) * table.time_base):.2f} s on. Start there or later."
        )
    if table.end is not None:
        available = math.floor((table.end - table.start) * rate + Fraction(1, 2))
        available = max(available, 1 if table.start < table.end else 0)
        if available < plan.frames:
            raise UserError(
                f"{video} is truncated or shorter than it says. Only {available} of the {plan.frames} frames expected "
                f"from {plan.start:g} s on at {float(plan.rate):g} per second can be read. Use a complete file or "
                "fewer frames."
            )
    return chosen


def read_frames(source: VideoSource, plan: FramePlan, size: tuple[int, int] | None = None) -> Tensor:
    """Return the plan's frames as a video tensor (1, 3, F, H, W) float32 in [0, 1].

    With `size` (h, w), each frame is scaled and centre-cropped as it arrives (`resize_crop`), so that large videos do
    not fill the memory. Colours are converted as `filtering` says. Raises UserError if some frames cannot be read, and
    for a size with a side above 16384.
    """
    frames = []
    if size is not None:
        check_size("The requested frame size", size)
    for frame in planned_frames(source, plan, ("format", "rgb24")):
        image = torch.from_numpy(frame.to_ndarray()).permute(2, 0, 1)[None]
        frames.append(image if size is None else resize_crop(image.float() / 255, size))
    video = torch.stack(frames, dim=2)  # (1, 3, F, H, W)
    return video.float() / 255 if size is None else video


def covering(source: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the (h, w) after scaling and the (top, left) of the crop when `resize_crop` resizes `source` (h, w)."""
    (height, width), (h, w) = source, size
    if h * width >= w * height:  # the height determines the scale
        scaled = (h, max(w, h * width // height))
    else:
        scaled = (max(h, w * height // width), w)
    return scaled, (round((scaled[0] - h) / 2), round((scaled[1] - w) / 2))


def resize_crop(x: Tensor, size: tuple[int, int], mode: str = "bilinear", antialias: bool = True) -> Tensor:
    """Scale `x` to just cover (h, w), then crop the centre, as Resize(short side) and CenterCrop do.

    x is float, (B, C, H, W) or (B, C, F, H, W); values keep their range with "bilinear". The released code uses
    `antialias=False` for motion maps.
    """
    h, w = size
    if x.dim() == 5:
        b, _, f = x.shape[:3]
        frames = resize_crop(x.transpose(1, 2).flatten(0, 1), size, mode, antialias)
        return frames.unflatten(0, (b, f)).transpose(1, 2)
    scaled, (top, left) = covering(tuple(x.shape[-2:]), size)
    if scaled != tuple(x.shape[-2:]):
        # "area" and "nearest" accept neither option
        options = {"align_corners": False, "antialias": antialias} if mode in ("bilinear", "bicubic") else {}
        x = F.interpolate(x, size=scaled, mode=mode, **options)
    return x[..., top : top + h, left : left + w]


def covering_scale(source: tuple[int, int], size: tuple[int, int]) -> float:
    """The scale factor with which a source of (h, w) covers `size` (h, w)."""
    return max(size[0] / source[0], size[1] / source[1])
