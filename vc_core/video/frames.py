"""The frame plan that every extractor of one source shares, and the frames that it chooses."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import repeat
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from . import hdr
from .decoding import decode
from .limits import FASTEST, check_rate, check_size
from .opening import Media
from .packets import Index
from .sequences import VideoSource, media
from .showing import filtering, stored_picture
from .timeline import extent, index

RELEASED_RATE = 4  # frames a second that the released pipeline samples from a clip that is long enough


# --- What a file is, and which of its frames are used ---------------------------------------------------------------


@dataclass(frozen=True)
class VideoInfo:
    """What `probe` found. Width and height are as shown: with square pixels, and turned as the file asks for."""

    path: Path
    width: int
    height: int
    frames: int
    rate: Fraction  # average frames a second
    duration: float  # seconds from the first frame's start to the last one's end
    codec: str
    note: str = ""  # a sentence on what is decided for the user, as of HDR or a folder of pictures


@dataclass(frozen=True)
class FramePlan:
    """Which frames of a source are used: `frames` of them, at start, start + 1/rate, ... (seconds).

    The choice is that of ffmpeg's `fps` filter: each frame's time goes to the nearest of these ticks, and the last
    one that a tick got is shown there (and on, until a later tick gets one).
    Made once per source by `plan_frames` and handed to every extractor, so that all of them speak of the same
    frames.
    """

    start: float
    rate: Fraction
    frames: int


def probe(source: VideoSource) -> VideoInfo:
    """Open a video, decode its first frame, and say what it is.

    Raises UserError where the path is missing, a folder, an image, without a video stream, or unreadable.
    """
    with media(source) as video:
        if row := video.pictures:
            (height, width), frames, seconds = row.size, len(row.times) - 1, row.times[-1] * row.time_base
            rate = (frames / seconds).limit_denominator(1001)
            return VideoInfo(Path(video.name), width, height, frames, rate, float(seconds), row.kind, row.note)
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
    """The frame plan of a source.

    Without `rate` it is the released rule (tools/videocomposer/datasets.py): `usual` frames a second, or, where the
    clip has no more than `frames` frames at that, int(frames / duration) + 1; the released number of frames is 16, its
    duration is the number of frames over the average rate. `start` is in seconds. A plan of one frame takes the one
    that is shown at the start.

    Raises UserError where the clip is too short: for the rule, where fewer than `frames` frames of the source
    remain from `start` on (it would have to repeat frames, which do not move); for a given rate, where the
    remaining seconds do not hold `frames` frames at that rate. Also for a rate outside 0.01 to 1000.
    """
    if frames < 1:
        raise UserError(f"{info.path}: {frames} frames were asked for: ask for at least 1.")
    start = float(start)
    if start < 0 or not math.isfinite(start):
        raise UserError(f"{info.path}: the start is {start} seconds: give a number of seconds from 0 on.")
    nominal = info.frames / float(info.rate) - start  # as the released code reckons
    seconds = info.duration - start
    if rate is None:
        left = max(0, info.frames - math.ceil(start * info.rate))
        if left < frames:
            raise UserError(
                f"{info.path}: too short, {left} frames remain from {start:g} s on and at least {frames} ("
                f"{frames / float(info.rate):.2f} s) are expected: use a longer clip, an earlier start or fewer frames."
            )
        chosen = usual if nominal * usual > frames else int(frames / nominal) + 1
        if round(seconds * chosen) < frames:  # an average rate that is off (variable frame rates): go by the clock
            chosen = int(frames / seconds) + 1
        if frames == 1:
            chosen = min(chosen, FASTEST)
        check_rate(f"{info.path}: the released rule's rate for a clip so short", chosen)
        return FramePlan(start, Fraction(chosen).limit_denominator(1001), frames)
    check_rate(f"{info.path}: the rate", rate)
    available = max(round(seconds * rate), 1 if seconds > 0 else 0)  # one frame is shown at the start itself
    if available < frames:
        raise UserError(
            f"{info.path}: too short, {available} frames at {float(rate):g} a second remain from {start:g} s on and "
            f"{frames} ({frames / float(rate):.2f} s) are expected: use a longer clip, a higher rate or fewer frames."
        )
    # A time base that every encoder can store: MPEG-4 has 16 bits for the ticks of a second.
    return FramePlan(start, Fraction(rate).limit_denominator(max(1, min(1001, int(65535 / rate)))), frames)


# --- Frames ---------------------------------------------------------------------------------------------------------


def planned_frames(source: VideoSource, plan: FramePlan, *filters: tuple[str, str]) -> Iterator:
    """The plan's frames as av.VideoFrame, one after the other, as shown, through further ffmpeg filters.

    The choice is ffmpeg's `fps` filter's, as in the released pipeline; what is done to each frame, `filtering` tells.
    Pixels and motion vectors both come from here, so they always speak of the same frames. Segments between keyframes
    that hold none of them are not decoded. The filters must treat each frame by itself.

    Raises UserError where the source cannot be read or has fewer frames.
    """
    with media(source) as video:
        table = planned_index(video, plan)
        yield from pictures(video, table, chosen_times(video, table, plan), filters)


def pictures(video: Media, table: Index, times: Sequence[int], filters: Sequence[tuple[str, str]]) -> Iterator:
    """The frames of the index's `times` (ascending) as av.VideoFrame, as shown, through further ffmpeg filters; one and
    the same as often as its time is there."""
    run, counts = filtering(video, filters, table.aspect, table.colour), Counter(times)
    found = video.pictures.shown([*counts]) if video.pictures else (f for _, f in decode(video, table, [*counts]))
    for count, frame in zip(counts.values(), found, strict=True):
        yield from repeat(run(frame), count)


def planned_index(video: Media, plan: FramePlan) -> Index:
    """The packets that the plan's frames are among."""
    if row := video.pictures:  # they have none, and all times are known
        base, (*times, end) = row.time_base, row.times
        return Index(row.kind, base, 0, Fraction(plan.start) / base, end // len(times), (), tuple(times), end)
    return index(video, plan.start, float((plan.frames + 1) / plan.rate))


def chosen_times(video: Media, table: Index, plan: FramePlan) -> list[int]:
    """For each tick of the plan the time (in the stream's time base) of the frame that is shown there."""
    rate = table.time_base * plan.rate
    ticks = [math.floor((time - table.start) * rate + Fraction(1, 2)) for time in table.times]
    found = [table.times[max(0, bisect_right(ticks, tick) - 1)] for tick in range(plan.frames)]
    if table.headless and table.seek is None and ticks[0] > 0:
        raise UserError(
            f"{video}: begins with frames that refer to missing ones, and can be decoded from "
            f"{float((table.times[0] - table.origin) * table.time_base):.2f} s on: start there or later."
        )
    if table.end is not None:
        available = math.floor((table.end - table.start) * rate + Fraction(1, 2))
        available = max(available, 1 if table.start < table.end else 0)
        if available < plan.frames:
            raise UserError(
                f"{video}: only {available} of the {plan.frames} frames expected from {plan.start:g} s on at "
                f"{float(plan.rate):g} a second could be read, so the file is shorter than it says or cut off: use a "
                "whole file or fewer frames."
            )
    return found


def read_frames(source: VideoSource, plan: FramePlan, size: tuple[int, int] | None = None) -> Tensor:
    """The plan's frames as a video tensor (1, 3, F, H, W) float32 in [0, 1].

    With `size` (h, w) each frame is scaled and centre-cropped as it arrives (`resize_crop`), which keeps large
    videos out of memory. Colours are made as `filtering` says. Raises UserError where the file cannot give them all,
    and for a size with a side above 16384.
    """
    frames = []
    if size is not None:
        check_size("The size that frames are asked for in", size)
    for frame in planned_frames(source, plan, ("format", "rgb24")):
        image = torch.from_numpy(frame.to_ndarray()).permute(2, 0, 1)[None]
        frames.append(image if size is None else resize_crop(image.float() / 255, size))
    video = torch.stack(frames, dim=2)  # (1, 3, F, H, W)
    return video.float() / 255 if size is None else video


def covering(source: tuple[int, int], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """What `resize_crop` does to a picture of `source` (h, w): the (h, w) it is scaled to, and the crop's corner."""
    (height, width), (h, w) = source, size
    if h * width >= w * height:  # the height decides
        scaled = (h, max(w, h * width // height))
    else:
        scaled = (max(h, w * height // width), w)
    return scaled, (round((scaled[0] - h) / 2), round((scaled[1] - w) / 2))


def resize_crop(x: Tensor, size: tuple[int, int], mode: str = "bilinear", antialias: bool = True) -> Tensor:
    """Scale so that (h, w) is just covered, then crop its centre, as Resize(short side) and CenterCrop do.

    x is float, (B, C, H, W) or (B, C, F, H, W); values keep their range under "bilinear". With
    `antialias=False` this is what the released code does to motion maps.
    """
    h, w = size
    if x.dim() == 5:
        b, _, f = x.shape[:3]
        frames = resize_crop(x.transpose(1, 2).flatten(0, 1), size, mode, antialias)
        return frames.unflatten(0, (b, f)).transpose(1, 2)
    scaled, (top, left) = covering(tuple(x.shape[-2:]), size)
    if scaled != tuple(x.shape[-2:]):
        # "area" and "nearest" know neither option
        options = {"align_corners": False, "antialias": antialias} if mode in ("bilinear", "bicubic") else {}
        x = F.interpolate(x, size=scaled, mode=mode, **options)
    return x[..., top : top + h, left : left + w]


def covering_scale(source: tuple[int, int], size: tuple[int, int]) -> float:
    """One pixel of a source of (h, w) in pixels of `size` (h, w), which it is scaled to cover."""
    return max(size[0] / source[0], size[1] / source[1])
