"""Inputs that several nodes share, with their ranges, defaults and tooltips."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..vc_core.conditions import CONDITIONS as TABLE
from ..vc_core.conditions import Condition
from ..vc_core.config import Config
from ..vc_core.errors import UserError, counted
from ..vc_core.extract.motion.drag import Paths
from ..vc_core.extract.pictures import picture_of
from ..vc_core.extract.sources import Source
from ..vc_core.memory import available
from ..vc_core.video import FramePlan, VideoInfo, plan_frames, probe
from .host.model import config_of
from .host.pictures import animation
from .host.running import say

CATEGORY = "VideoComposer"
ConditionType = io.Custom("VC_CONDITION")
MAX_SIDE = 16384
AUTOMATIC = {
    **dict.fromkeys(("frame_rate", "frames", "width", "height", "nominal_height", "depth_scale", "radius"), 0),
    **dict.fromkeys(("canvas_width", "canvas_height", "steps", "cfg", "context_length"), 0),
    "context_overlap": -1,
    "tile_size": 0,
    "tile_overlap": -1,
}
"""Input -> its value for "automatic", if its range allows it. web/auto.js shows `auto` instead of the value."""


def schema(**values: Any) -> io.Schema:
    """Return an `io.Schema`. Arguments that this ComfyUI version does not support are dropped; see also `AUTOMATIC`."""
    for item in values["inputs"]:
        if item.id in AUTOMATIC and item.min <= AUTOMATIC[item.id]:
            item.extra_dict = {**(item.extra_dict or {}), "videocomposer_auto": AUTOMATIC[item.id]}
    supported = {f.name for f in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in values.items() if name in supported})


def advanced(*inputs: io.Input) -> list[io.Input]:
    """Mark inputs as advanced: newer ComfyUI pages fold them away."""
    for item in inputs:
        item.extra_dict = {**(item.extra_dict or {}), "advanced": True}
    return list(inputs)


def numbers(*rows: tuple[str, Any, Any, Any, Any, str]) -> list[io.Input]:
    """Number inputs from rows of (id, default, minimum, maximum, step, tooltip). An integer default gives an INT."""
    return [
        (io.Int if isinstance(default, int) else io.Float).Input(
            name, default=default, min=low, max=high, step=step, tooltip=text
        )
        for name, default, low, high, step, text in rows
    ]


def model_input() -> io.Input:
    text = (
        "The VideoComposer model that will sample; it sets size, length and format of the condition. If not connected, "
        "STC Encode uses its own model."
    )
    return io.Model.Input("model", optional=True, tooltip=text)


def plan_inputs() -> list[io.Input]:
    """The frame plan: which frames of a video are used. The same plan always selects the same frames."""
    return numbers(
        ("start_time", 0.0, 0.0, 1e6, 0.01, "Where to start in the VIDEO, in seconds. Must be 0 for an IMAGE batch."),
        ("frame_rate", 0.0, 0.0, 1000.0, 0.01, "Frames sampled per second of the VIDEO; must be 0 for an IMAGE "
         "batch. 0 = the checkpoint's training rate (released: 4), more for short clips."),
    )  # fmt: skip


def size_inputs(first: str = "") -> list[io.Input]:
    """The video's length and size. 0 takes the value that the text `first` names, otherwise the checkpoint's."""
    auto = f"0 = {first}the checkpoint's training size."
    return numbers(
        ("frames", 0, 0, 100000, None,
         f"Number of frames to generate. 0 = {first}the checkpoint's training length."),
        ("width", 0, 0, MAX_SIDE, 8, f"Width of the generated video in pixels, a multiple of 8. {auto}"),
        ("height", 0, 0, MAX_SIDE, 8, f"Height of the generated video in pixels, a multiple of 8. {auto}"),
    )  # fmt: skip


def window_inputs() -> list[io.Input]:
    """How long videos are split, see `host.sampling.in_windows`."""
    return numbers(
        ("context_length", 0, 0, 100000, None,
         "Frames per window in long videos. 0 = the checkpoint's training length."),
        ("context_overlap", -1, -1, 100000, None,
         "Frames that neighbouring windows share. -1 = half a window. More is smoother but slower."),
    )  # fmt: skip


def schedule_inputs(what: str) -> list[io.Input]:
    """Strength and schedule of a condition."""
    return numbers(
        ("strength", 1.0, 0.0, 10.0, 0.01, f"How strongly {what} acts. 1 = normal, 0 = switched off."),
        (
            "start_percent",
            0.0,
            0.0,
            1.0,
            0.001,
            f"When {what} starts, as a fraction of the noise schedule (0 = first step).",
        ),
        (
            "end_percent",
            1.0,
            0.0,
            1.0,
            0.001,
            f"When {what} ends, as a fraction of the noise schedule (1 = last step).",
        ),
    )


# --- Conditions, and the videos that they are for -------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The video that a condition is computed for.

    Attributes:
        requested: (frames, height, width) as far as they are known. 0 is a value that only the checkpoint decides.
        draft: no model is connected yet. The values that it would set are the released checkpoint's for now.
    """

    config: Config
    frames: int
    size: tuple[int, int]
    requested: tuple[int, int, int] = (0, 0, 0)
    draft: bool = False

    def source(self, clip: Any = None, plan: FramePlan | None = None) -> Source:
        """Return a clip as the core's `Source`, from which it computes conditions for this video."""
        return Source(clip, plan, self.size, self.config.extraction)


@dataclass(frozen=True)
class DrawResult:
    """What a node computes as a condition for a video.

    Attributes:
        tensor: in the format that the checkpoint expects, see `Condition`.
        notes: automatic decisions that the user should know about.
        rate: frames sampled per second of the source VIDEO; None if the source is not a VIDEO.
        paths: of a motion by hand: where the points of the first frame move.
    """

    tensor: Tensor
    notes: tuple[str, ...] = ()
    rate: float | None = None
    paths: Paths | None = None


Draw = Callable[[Target], DrawResult]


@dataclass(frozen=True)
class ConditionValue:
    """The value of a VC_CONDITION socket: a condition and the video that it was computed for.

    Attributes:
        config: the config of the checkpoint that the condition was computed for.
        requested: (frames, height, width) of that video; 0 if neither a model nor the user sets a value.
        result: what the node computed.
        recompute: computes the condition for another video. None if a model was connected, see `for_video`.
    """

    condition: Condition
    config: Config
    requested: tuple[int, int, int]
    result: DrawResult
    recompute: Draw | None = None

    def for_video(self, goal: Target) -> ConditionValue:
        """Return this condition computed for `goal`, or unchanged if its node had a model connected."""
        if self.recompute is None:
            return self
        result = self.recompute(goal)
        condition = replace(self.condition, tensor=result.tensor, video=goal.size)
        return ConditionValue(condition, goal.config, (goal.frames, *goal.size), result)


def target(model: Any, frames: int, width: int, height: int, like: ConditionValue | None = None) -> Target:
    """Return the video that the size inputs describe for a model; `model` is None if no model is connected.

    Args:
        like: the condition to which this one is added. Without a model, this one is computed for the same video.

    Raises:
        UserError: the width or height is not a multiple of 8.
    """
    requested = (frames, height, width)
    config, is_final = Config() if model is None else config_of(model), model is not None
    if model is None and like is not None and like.condition.strength != 0.0:
        requested = tuple(own or other for own, other in zip(requested, like.requested, strict=True))
        config, is_final = like.config, like.recompute is None
    length, size = requested[0] or config.frames, (requested[1] or config.height, requested[2] or config.width)
    if size[0] % 8 or size[1] % 8:
        raise UserError(
            f"Expected a width and height that are multiples of 8, such as 256x256, got {size[1]}x{size[0]}. "
            "Change width and height."
        )
    return Target(config, length, size, (length, *size) if is_final else requested, not is_final)


def condition_output(name: str, goal: Target, draw: Draw, strength: float, start: float, end: float) -> io.NodeOutput:
    """Return a condition node's outputs, which the node also shows: the condition and an image of it.

    At strength 0 the condition is blank, whatever the other inputs are: STCEncode treats it as not connected.
    """
    if strength == 0.0:
        table = TABLE[name]
        frames = goal.frames if table.kind == "temporal" else 1
        blank = torch.zeros(1, table.channels, frames, *goal.source().at(name))
        result = DrawResult(blank, ("Switched off: strength is 0.",))
        images = channels_last(blank[:, :1])
        value = ConditionValue(Condition(name, blank, 0.0, video=goal.size), goal.config, goal.requested, result)
    else:
        check_memory(name, goal)
        draw = _remembering(draw) if goal.draft else draw
        result = draw(goal)
        condition = Condition(name, result.tensor, strength, start, end, goal.size)
        value = ConditionValue(condition, goal.config, goal.requested, result, draw if goal.draft else None)
        images = channels_last(picture_of(name, result.tensor))
    say(*result.notes)
    shown = images if strength else images[:1]
    return io.NodeOutput(value, images, ui=animation(shown, result.rate or goal.config.rate))


def check_memory(name: str, goal: Target) -> None:
    """Raise `UserError` if a condition of this name does not fit into memory. Resizing needs it three times."""
    table = TABLE[name]
    frames = goal.frames if table.kind == "temporal" else 1
    need = 3 * table.channels * frames * math.prod(goal.source().at(name)) * torch.float32.itemsize
    if need > (free := available(torch.device("cpu"))):
        raise UserError(
            f"The condition '{name}' of {counted(frames, 'frame')} of {goal.size[1]}x{goal.size[0]} needs about "
            f"{need / 1e9:.0f} GB of memory, but {free / 1e9:.1f} GB are free. Choose a smaller width, height or "
            "number of frames."
        )


def _remembering(draw: Draw) -> Draw:
    """Wrap `draw` so that it keeps its last result: depth and sketch networks are slow."""
    last: dict[Any, DrawResult] = {}

    def remembered(goal: Target) -> DrawResult:
        key = goal.frames, goal.size, goal.config.extraction
        if key not in last:
            result = draw(goal)
            last.clear()
            last[key] = result
        return last[key]

    return remembered


# --- Videos and images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footage:
    """A video or images as input for the core.

    Attributes:
        source: what conditions are computed from.
        count: the number of frames in the input.
        chosen: the numbers of the frames that are used. They also select the matching masks.
        note: automatic decisions that the user should know about.
        rate: frames sampled per second of the video; None for images, which have no frame rate.
    """

    source: Source
    count: int
    chosen: Sequence[int]
    note: str
    rate: float | None = None

    def along(self, frames: Tensor) -> tuple[Tensor, str]:
        """Select the plan's frames from `(1, C, N, H, W)`, which has a frame for each source frame or plan frame."""
        if frames.shape[2] == self.count != len(self.chosen):
            return frames[:, :, list(self.chosen)], ""
        return spread(frames, len(self.chosen))


def footage(video: Any, goal: Target, start_time: float, frame_rate: float) -> Footage:
    """Select the frames of a VIDEO or an IMAGE batch that a condition is computed from.

    Raises:
        UserError: the file cannot be read or ends before the plan does, or an image batch has a frame plan.
    """
    if isinstance(video, Tensor):
        if start_time or frame_rate:
            raise UserError(
                "'video' is an IMAGE batch, which has no frame rate. Set start_time and frame_rate to 0, or connect a "
                "VIDEO."
            )
        frames, note = spread(channels_first(video), goal.frames)
        plan = FramePlan(0.0, Fraction(goal.config.rate).limit_denominator(1001), goal.frames)
        return Footage(goal.source(frames, plan), len(video), evenly(len(video), goal.frames), note)
    # get_stream_source() fails for VideoFromComponents in ComfyUI 0.3.64, and returns the untrimmed file of a trimmed
    # VIDEO.
    parts = video.get_components() if isinstance(video, InputImpl.VideoFromComponents) or trimmed(video) else None
    if parts is None:
        clip = video.get_stream_source()
        info = probe(clip)
    else:
        count, rate = len(parts.images), Fraction(parts.frame_rate)
        height, width = parts.images.shape[1:3]
        info = VideoInfo(Path("The VIDEO"), width, height, count, rate, float(count / rate), "raw")
    plan = plan_frames(info, goal.frames, frame_rate or None, start_time, goal.config.extraction.sampling_rate)
    # The frames that ffmpeg's `fps` filter selects from a video of constant frame rate.
    ticks = (Fraction(plan.start) + (i + Fraction(1, 2)) / plan.rate for i in range(plan.frames))
    chosen = [max(0, min(info.frames - 1, math.ceil(tick * info.rate) - 1)) for tick in ticks]
    if parts is not None:
        clip = channels_first(parts.images[chosen])
    note = " ".join(filter(None, (seconds(plan), info.note)))
    return Footage(goal.source(clip, plan), info.frames, chosen, note, float(plan.rate))


def still(image: Tensor, goal: Target) -> Footage:
    """Return the first image of a batch."""
    note = f"Only the first of {len(image)} images is used." if len(image) > 1 else ""
    return Footage(goal.source(channels_first(image[:1])), 1, (0,), note)


def seconds(plan: FramePlan) -> str:
    """Return a sentence that says which part of a clip a plan uses."""
    if plan.frames == 1:
        return f"Uses the frame at {plan.start:.2f} s of the clip."
    last, rate = plan.start + float((plan.frames - 1) / plan.rate), float(plan.rate)
    return f"Uses {plan.start:.2f} s to {last:.2f} s of the clip, {rate:g} frame{'' if rate == 1 else 's'} per second."


def trimmed(video: Any) -> bool:
    """Whether a VIDEO is only a part of its file, which newer ComfyUI versions allow."""
    if not hasattr(video, "as_trimmed"):
        return False
    info = probe(video.get_stream_source())
    return float(video.get_duration()) < info.duration - float(1 / info.rate)


def evenly(total: int, count: int) -> list[int]:
    """Return `count` frame numbers, evenly spaced from the first to the last of `total` frames."""
    return torch.linspace(0, total - 1, count).round().long().tolist()


def spread(frames: Tensor, count: int) -> tuple[Tensor, str]:
    """Select `count` frames evenly from `(B, C, F, H, W)`, and return a note if their number changed."""
    total = frames.shape[2]
    if total == count:
        return frames, ""
    note = "The same image is used for all frames." if total == 1 else f"{total} frames were spread over {count}."
    return frames[:, :, evenly(total, count)], note


def channels_first(images: Tensor) -> Tensor:
    """Convert IMAGE `(F, H, W, 3 or 4)` or MASK `(F, H, W)` to `(1, 3 or 1, F, H, W)` float32, alpha over white."""
    images = images.float()
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[-1] == 4:
        images = images[..., :3] * images[..., 3:] + 1 - images[..., 3:]
    return images.movedim(-1, 0)[None]


def channels_last(video: Tensor) -> Tensor:
    """Convert `(1, 1 or 3, F, H, W)` in [0, 1] to IMAGE `(F, H, W, 3)`."""
    return video[0].expand(3, -1, -1, -1).movedim(0, -1).float().clamp(0, 1).contiguous().cpu()
