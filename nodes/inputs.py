"""Inputs that several nodes share: one place for their ranges, defaults and tooltips."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
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
from .host.pictures import animation
from .host.running import say

CATEGORY = "VideoComposer"
ConditionType = io.Custom("VC_CONDITION")
MAX_SIDE = 16384
AUTOMATIC = {
    **dict.fromkeys(("frame_rate", "frames", "width", "height", "nominal_height", "depth_scale", "radius"), 0),
    **dict.fromkeys(("canvas_width", "canvas_height", "cfg", "context_length"), 0),
    "context_overlap": -1,
}
"""The value of an input that leaves it to the node, where it may have that: web/auto.js shows `auto` in its place."""


def schema(**values: Any) -> io.Schema:
    """An `io.Schema`, without the arguments that this version of ComfyUI does not know yet; see also `AUTOMATIC`."""
    for one in values["inputs"]:
        if one.id in AUTOMATIC and one.min <= AUTOMATIC[one.id]:
            one.extra_dict = {**(one.extra_dict or {}), "videocomposer_auto": AUTOMATIC[one.id]}
    known = {f.name for f in fields(io.Schema)}
    return io.Schema(**{name: value for name, value in values.items() if name in known})


def advanced(*inputs: io.Input) -> list[io.Input]:
    """Inputs that newer pages fold away."""
    for one in inputs:
        one.extra_dict = {**(one.extra_dict or {}), "advanced": True}
    return list(inputs)


def model_input() -> io.Input:
    return io.Model.Input(
        "model", optional=True,
        tooltip="The VideoComposer model that the condition is for: its size, length and kind follow it. Without one "
                "STCEncode makes the condition for its own.",
    )  # fmt: skip


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


# ---------------------------------------------------------------------------------------------------------------
# Conditions, and the videos that they are for
# ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """The video that a condition is made for.

    Attributes:
        asked: its (frames, height, width) where they are known; 0 is what the checkpoint says that is not known yet.
        draft: whether that is so: no model was given, and the rest is as the released checkpoint's.
    """

    config: Config
    frames: int
    size: tuple[int, int]
    asked: tuple[int, int, int] = (0, 0, 0)
    draft: bool = False

    def at(self, name: str) -> tuple[int, int]:
        """(height, width) that the checkpoint takes a condition at."""
        return condition_size(name, self.size, self.config.extraction.condition_scale)

    def fitted(self, name: str, tensor: Tensor) -> Tensor:
        """What was drawn at `drawing_size`, as the checkpoint takes it."""
        return refit(name, tensor, self.size, tensor.shape[2], self.config.extraction, self.size)


@dataclass(frozen=True)
class Drawn:
    """A condition as a node draws it for a video.

    Attributes:
        tensor: as the checkpoint takes it, see `Condition`.
        picture: what the network sees, `(1, 1 or 3, F, h, w)` in [0, 1].
        notes: what was decided for the user.
        rate: frames taken from each second of the VIDEO that it is from; None where it is from none.
    """

    tensor: Tensor
    picture: Tensor
    notes: tuple[str, ...] = ()
    rate: float | None = None


Draw = Callable[[Target], Drawn]


@dataclass(frozen=True)
class Made:
    """What a VC_CONDITION socket carries: a condition, which tells the video that it was made for.

    Attributes:
        config: of the checkpoint that it was made for.
        asked: (frames, height, width) of that video, 0 where neither a model nor the user says.
        drawn: what the node drew.
        draw: draws it for another video, where no model said which one; see `Made.for_video`.
    """

    condition: Condition
    config: Config
    asked: tuple[int, int, int]
    drawn: Drawn
    draw: Draw | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of that video."""
        return self.condition.video

    @property
    def rate(self) -> float | None:
        return self.drawn.rate

    def for_video(self, goal: Target) -> Made:
        """This condition, drawn for a video that is known only now; itself where a model had said which one."""
        if self.draw is None:
            return self
        drawn = self.draw(goal)
        condition = replace(self.condition, tensor=drawn.tensor, video=goal.size)
        return Made(condition, goal.config, (goal.frames, *goal.size), drawn)


def target(model: Any, frames: int, width: int, height: int, like: Made | None = None) -> Target:
    """What size inputs mean for a model.

    Args:
        model: a MODEL, or None where none is connected.
        like: another condition, to which this one is added: without a model it is made for the same video.

    Raises:
        UserError: sides that are no multiples of 8.
    """
    asked = (frames, height, width)
    config, known = Config() if model is None else config_of(model), model is not None
    if model is None and like is not None and like.condition.strength != 0.0:
        asked = tuple(own or other for own, other in zip(asked, like.asked, strict=True))
        config, known = like.config, like.draw is None
    length, size = asked[0] or config.frames, (asked[1] or config.height, asked[2] or config.width)
    if size[0] % 8 or size[1] % 8:
        raise UserError(f"The size {size[1]}x{size[0]} is not possible: expected multiples of 8, for instance 256x256.")
    return Target(config, length, size, (length, *size) if known else asked, not known)


def condition_output(name: str, goal: Target, draw: Draw, strength: float, start: float, end: float) -> io.NodeOutput:
    """What a condition node gives, and shows on itself: the condition and what the network sees of it."""
    if strength == 0.0:
        return switched_off(name, goal)
    draw = _remembering(draw) if goal.draft else draw
    drawn = draw(goal)
    say(*drawn.notes)
    condition = Condition(name, drawn.tensor, strength, start, end, goal.size)
    value = Made(condition, goal.config, goal.asked, drawn, draw if goal.draft else None)
    images = channels_last(drawn.picture)
    return io.NodeOutput(value, images, ui=animation(images, drawn.rate or goal.config.rate))


def switched_off(name: str, goal: Target) -> io.NodeOutput:
    """What a condition node gives at strength 0, whatever its other inputs are: STCEncode takes it as unplugged."""
    table = TABLE[name]
    frames = goal.frames if table.kind == "temporal" else 1
    blank = torch.zeros(1, table.channels, frames, *goal.at(name))
    say("Switched off by strength 0.")
    value = Made(Condition(name, blank, 0.0, video=goal.size), goal.config, goal.asked, Drawn(blank, blank[:, :1]))
    images = channels_last(blank[:, :1])
    return io.NodeOutput(value, images, ui=animation(images[:1], goal.config.rate))


def _remembering(draw: Draw) -> Draw:
    """It again, but for the last video it does not draw twice: networks for depth and sketches take their time."""
    last: list[Any] = []

    def remembered(goal: Target) -> Drawn:
        key = goal.frames, goal.size, goal.config.extraction
        if not last or last[0] != key:
            last[:] = key, draw(goal)
        return last[1]

    return remembered


# ---------------------------------------------------------------------------------------------------------------
# Videos and images
# ---------------------------------------------------------------------------------------------------------------


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
    note: str
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
        return Footage(channels_first(parts.images[list(chosen)]), plan, count, chosen, seconds(plan), float(plan.rate))
    source = video.get_stream_source()
    info = probe(source)
    plan = plan_frames(info, goal.frames, frame_rate or None, start_time)
    note = " ".join(filter(None, (seconds(plan), info.note)))
    return Footage(source, plan, info.frames, shown(info, plan), note, float(plan.rate))


def seconds(plan: FramePlan) -> str:
    """Which seconds of a clip a plan takes, as a sentence."""
    if plan.frames == 1:
        return f"Second {plan.start:.2f} of the clip."
    last, rate = plan.start + float((plan.frames - 1) / plan.rate), float(plan.rate)
    return f"Seconds {plan.start:.2f} to {last:.2f} of the clip, {rate:g} frame{'' if rate == 1 else 's'} a second."


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
