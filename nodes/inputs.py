"""Inputs that several nodes share: one place for their ranges, defaults and tooltips."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from comfy_api.latest import InputImpl, io
from torch import Tensor

from ..vc_core.conditions import CONDITIONS as TABLE
from ..vc_core.conditions import Condition, condition_size
from ..vc_core.config import Config
from ..vc_core.errors import UserError
from ..vc_core.extract.refit import refit
from ..vc_core.video import FramePlan, VideoInfo, plan_frames, probe
from .host.model import config_of
from .host.running import say

CATEGORY = "VideoComposer"
ConditionType = io.Custom("VC_CONDITION")
MAX_SIDE = 16384


def schema(**values: Any) -> io.Schema:
    """An `io.Schema`, without the arguments that this version of ComfyUI does not know yet."""
    known = {f.name for f in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in values.items() if name in known})


def advanced(*inputs: io.Input) -> list[io.Input]:
    """Inputs that newer pages fold away."""
    for one in inputs:
        one.extra_dict = {**(one.extra_dict or {}), "advanced": True}
    return list(inputs)


def model_input() -> io.Input:
    return io.Model.Input(
        "model", tooltip="The VideoComposer model that the condition is for: its size, length and kind follow it."
    )


def video_input(what: str) -> io.Input:
    return io.MultiType.Input(
        "video",
        [io.Video, io.Image],
        tooltip=f"{what} A VIDEO is read at the frame plan below; an IMAGE batch is spread over the frames.",
    )


def plan_inputs() -> list[io.Input]:
    """The frame plan: which frames of a video are used. Equal plans speak of equal frames."""
    return [
        io.Float.Input("start_time", default=0.0, min=0.0, max=1e6, step=0.01,
                       tooltip="Second of the VIDEO at which the frames begin. 0 for an IMAGE batch."),
        io.Float.Input("frame_rate", default=0.0, min=0.0, max=1000.0, step=0.01,
                       tooltip="Frames taken from a second of the VIDEO; 0 is as released: 4, and more of a clip that "
                               "is too short for that. 0 for an IMAGE batch."),
    ]  # fmt: skip


def size_inputs() -> list[io.Input]:
    """The video's length and size; 0 is as the checkpoint was trained."""
    return [
        io.Int.Input("frames", default=0, min=0, max=100000,
                     tooltip="Frames of the video to be made; 0: as many as the checkpoint was trained for."),
        io.Int.Input("width", default=0, min=0, max=MAX_SIDE, step=8,
                     tooltip="Width of the video to be made, in pixels; 0: as the checkpoint was trained."),
        io.Int.Input("height", default=0, min=0, max=MAX_SIDE, step=8,
                     tooltip="Height of the video to be made, in pixels; 0: as the checkpoint was trained."),
    ]  # fmt: skip


def schedule_inputs(what: str) -> list[io.Input]:
    """How much and when a condition counts."""
    return [
        io.Float.Input("strength", default=1.0, min=0.0, max=10.0, step=0.01,
                       tooltip=f"How much {what} counts; 0 is the same as leaving it out."),
        io.Float.Input("start_percent", default=0.0, min=0.0, max=1.0, step=0.001,
                       tooltip=f"Share of the noise schedule from which on {what} is there."),
        io.Float.Input("end_percent", default=1.0, min=0.0, max=1.0, step=0.001,
                       tooltip=f"Share of the noise schedule up to which {what} is there."),
    ]  # fmt: skip


@dataclass(frozen=True)
class Target:
    """The video that a condition is made for."""

    config: Config
    frames: int
    size: tuple[int, int]

    def at(self, name: str) -> tuple[int, int]:
        """(height, width) that the checkpoint takes a condition at."""
        return condition_size(name, self.size, self.config.extraction.condition_scale)

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """What was drawn at `drawing_size`, as the checkpoint takes it."""
        return refit(name, tensor, self.size, tensor.shape[2], self.config.extraction, self.size)


def target(model: Any, frames: int, width: int, height: int) -> Target:
    """What size inputs mean for a model. Raises `UserError` for sides that are no multiples of 8."""
    config = config_of(model)
    size = (height or config.height, width or config.width)
    if size[0] % 8 or size[1] % 8:
        raise UserError(f"The size {size[1]}x{size[0]} is not possible: expected multiples of 8, for instance 256x256.")
    return Target(config, frames or config.frames, size)


@dataclass(frozen=True)
class Made:
    """What a VC_CONDITION socket carries: a condition, which tells the video that it was made for.

    Attributes:
        config: of the checkpoint that it was made for.
        rate: frames a second of the VIDEO that it was taken from; None where it was not.
    """

    condition: Condition
    config: Config
    rate: float | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of that video."""
        return self.condition.video


def switched_off(name: str, goal: Target) -> io.NodeOutput:
    """What a condition node gives at strength 0, whatever its other inputs are: STCEncode takes it as unplugged."""
    table = TABLE[name]
    frames = goal.frames if table.kind == "temporal" else 1
    blank = torch.zeros(1, table.channels, frames, *goal.at(name))
    say("Switched off by strength 0.")
    return io.NodeOutput(made(name, blank, goal, 0.0, 0.0, 1.0), channels_last(blank[:, :1]))


def made(
    name: str, tensor: Tensor, goal: Target, strength: float, start: float, end: float, rate: float | None = None
) -> Made:
    return Made(Condition(name, tensor, strength, start, end, goal.size), goal.config, rate)


@dataclass(frozen=True)
class Footage:
    """A video or an image batch as the core takes it.

    Attributes:
        source: what the core's readers open, or the frames `(1, 3, F, H, W)` in [0, 1].
        plan: which frames of it are used.
        count: its number of frames.
        chosen: the numbers of those that are used, for what goes with them one by one, such as masks.
        note: what was decided for the user.
        rate: frames taken from each second of it; None for an image batch, which has no seconds.
    """

    source: Any
    plan: FramePlan
    count: int
    chosen: tuple[int, ...]
    note: str = ""
    rate: float | None = None

    def along(self, frames: Tensor) -> tuple[Tensor, str]:
        """Of frames `(1, C, N, H, W)` that go with the source's, or with the plan's, those of the plan."""
        if frames.shape[2] == self.count != self.plan.frames:
            return frames[:, :, list(self.chosen)], ""
        return spread(frames, self.plan.frames)


def footage(video: Any, goal: Target, start_time: float, frame_rate: float) -> Footage:
    """The frames of a VIDEO or an IMAGE batch that a condition is made from.

    Raises:
        UserError: a file that is unreadable or ends before the plan does, or a frame plan for an image batch.
    """
    if isinstance(video, Tensor):
        if start_time or frame_rate:
            raise UserError(
                "The socket 'video' holds an IMAGE batch, which has no seconds: set start_time and frame_rate to 0, or "
                "connect a VIDEO."
            )
        frames, note = spread(channels_first(video), goal.frames)
        plan = FramePlan(0.0, Fraction(goal.config.rate).limit_denominator(1001), goal.frames)
        return Footage(frames, plan, len(video), tuple(evenly(len(video), goal.frames)), note)
    if isinstance(video, InputImpl.VideoFromComponents) or trimmed(video):
        # The stream of the first fails in ComfyUI 0.3.64, that of a trimmed one is the whole file.
        parts = video.get_components()
        count, rate = len(parts.images), Fraction(parts.frame_rate)
        height, width = parts.images.shape[1:3]
        info = VideoInfo(Path("The VIDEO"), width, height, count, "header", rate, float(count / rate), "raw")
        plan = plan_frames(info, goal.frames, frame_rate or None, start_time)
        chosen = shown(info, plan)
        return Footage(channels_first(parts.images[list(chosen)]), plan, count, chosen, rate=float(plan.rate))
    source = video.get_stream_source()
    info = probe(source)
    plan = plan_frames(info, goal.frames, frame_rate or None, start_time)
    return Footage(source, plan, info.frames, shown(info, plan), rate=float(plan.rate))


def trimmed(video: Any) -> bool:
    """Whether a VIDEO is a part of its file, as newer versions' VIDEOs can be."""
    if not hasattr(video, "as_trimmed"):
        return False
    info = probe(video.get_stream_source())
    return float(video.get_duration()) < info.duration - float(1 / info.rate)


def shown(info: VideoInfo, plan: FramePlan) -> tuple[int, ...]:
    """Numbers of the frames that a plan takes of a video of even rate, as ffmpeg's `fps` filter takes them."""
    ticks = (Fraction(plan.start) + (i + Fraction(1, 2)) / plan.rate for i in range(plan.frames))
    return tuple(max(0, min(info.frames - 1, math.ceil(tick * info.rate) - 1)) for tick in ticks)


def evenly(given: int, count: int) -> list[int]:
    """`count` numbers of `given` frames, evenly from the first to the last."""
    return torch.linspace(0, given - 1, count).round().long().tolist()


def spread(frames: Tensor, count: int) -> tuple[Tensor, str]:
    """As many frames as asked for, evenly chosen from `(B, C, F, H, W)`, and a sentence where that changed them."""
    given = frames.shape[2]
    if given == count:
        return frames, ""
    note = "One image stands for all frames." if given == 1 else f"{given} frames were spread over {count}."
    return frames[:, :, evenly(given, count)], note


def channels_first(images: Tensor) -> Tensor:
    """IMAGE `(F, H, W, 3 or 4)` or MASK `(F, H, W)` to `(1, 3 or 1, F, H, W)` float32; alpha is laid over white."""
    images = images.float()
    if images.ndim == 3:
        images = images[..., None]
    if images.shape[-1] == 4:
        images = images[..., :3] * images[..., 3:] + 1 - images[..., 3:]
    return images.movedim(-1, 0)[None]


def channels_last(video: Tensor) -> Tensor:
    """`(1, 1 or 3, F, H, W)` in [0, 1] to IMAGE `(F, H, W, 3)`."""
    return video[0].expand(3, -1, -1, -1).movedim(0, -1).float().clamp(0, 1).contiguous().cpu()
