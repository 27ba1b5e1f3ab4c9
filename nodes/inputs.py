"""Inputs that several nodes share: one place for their ranges, defaults and tooltips."""

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
from ..vc_core.errors import UserError
from ..vc_core.extract.pictures import picture_of
from ..vc_core.extract.sources import Source
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


def numbers(*rows: tuple[str, Any, Any, Any, Any, str]) -> list[io.Input]:
    """Number inputs of a table of id, default, least, most, step and tooltip; of whole numbers where the default is."""
    return [
        (io.Int if isinstance(default, int) else io.Float).Input(
            name, default=default, min=low, max=high, step=step, tooltip=text
        )
        for name, default, low, high, step, text in rows
    ]


def model_input() -> io.Input:
    text = (
        "The VideoComposer model that the condition is for: its size, length and kind follow it. Without one STCEncode "
        "makes the condition for its own."
    )
    return io.Model.Input("model", optional=True, tooltip=text)


def plan_inputs() -> list[io.Input]:
    """The frame plan: which frames of a video are used. Equal plans speak of equal frames."""
    return numbers(
        ("start_time", 0.0, 0.0, 1e6, 0.01, "Second of the VIDEO at which the frames begin. 0 for an IMAGE batch."),
        ("frame_rate", 0.0, 0.0, 1000.0, 0.01, "Frames taken from a second of the VIDEO; 0 is as the checkpoint was "
         "trained, 4 as released, and more of a clip that is too short for that. 0 for an IMAGE batch."),
    )  # fmt: skip


def size_inputs(first: str = "") -> list[io.Input]:
    """The video's length and size; 0 is as what is named `first`, else as the checkpoint was trained."""
    trained = f"{first}as the checkpoint was trained."
    return numbers(
        ("frames", 0, 0, 100000, None,
         f"Frames of the video to be made; 0: {first}as many as the checkpoint was trained for."),
        ("width", 0, 0, MAX_SIDE, 8, f"Width of the video to be made, in pixels; 0: {trained}"),
        ("height", 0, 0, MAX_SIDE, 8, f"Height of the video to be made, in pixels; 0: {trained}"),
    )  # fmt: skip


def schedule_inputs(what: str) -> list[io.Input]:
    """How much and when a condition counts."""
    return numbers(
        ("strength", 1.0, 0.0, 10.0, 0.01, f"How much {what} counts; 0 is the same as leaving it out."),
        ("start_percent", 0.0, 0.0, 1.0, 0.001, f"Share of the noise schedule from which on {what} is there."),
        ("end_percent", 1.0, 0.0, 1.0, 0.001, f"Share of the noise schedule up to which {what} is there."),
    )


# --- Conditions, and the videos that they are for -------------------------------------------------------------------


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

    def source(self, clip: Any = None, plan: FramePlan | None = None) -> Source:
        """A clip, as the core makes conditions of it for this video."""
        return Source(clip, plan, self.size, self.config.extraction)


@dataclass(frozen=True)
class Drawn:
    """A condition as a node draws it for a video: its tensor, as the checkpoint takes it, see `Condition`.

    Attributes:
        notes: what was decided for the user.
        rate: frames taken from each second of the VIDEO that it is from; None where it is from none.
    """

    tensor: Tensor
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

    def for_video(self, goal: Target) -> Made:
        """This condition, drawn for a video that is known only now; itself where a model had said which one."""
        if self.draw is None:
            return self
        drawn = self.draw(goal)
        condition = replace(self.condition, tensor=drawn.tensor, video=goal.size)
        return Made(condition, goal.config, (goal.frames, *goal.size), drawn)


def target(model: Any, frames: int, width: int, height: int, like: Made | None = None) -> Target:
    """What size inputs mean for a model, or where None is connected.

    `like` is another condition, to which this one is added: without a model it is made for the same video. Raises
    `UserError` for sides that are no multiples of 8.
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
    """What a condition node gives, and shows on itself: the condition and what the network sees of it.

    Of strength 0 that is a blank, whatever its other inputs are: STCEncode takes it as unplugged.
    """
    if strength == 0.0:
        table = TABLE[name]
        frames = goal.frames if table.kind == "temporal" else 1
        drawn = Drawn(torch.zeros(1, table.channels, frames, *goal.source().at(name)), ("Switched off by strength 0.",))
        images = channels_last(drawn.tensor[:, :1])
        value = Made(Condition(name, drawn.tensor, 0.0, video=goal.size), goal.config, goal.asked, drawn)
    else:
        draw = _remembering(draw) if goal.draft else draw
        drawn = draw(goal)
        condition = Condition(name, drawn.tensor, strength, start, end, goal.size)
        value = Made(condition, goal.config, goal.asked, drawn, draw if goal.draft else None)
        images = channels_last(picture_of(name, drawn.tensor))
    say(*drawn.notes)
    shown = images if strength else images[:1]
    return io.NodeOutput(value, images, ui=animation(shown, drawn.rate or goal.config.rate))


def _remembering(draw: Draw) -> Draw:
    """It again, but for the last video it does not draw twice: networks for depth and sketches take their time."""
    last: dict[Any, Drawn] = {}

    def remembered(goal: Target) -> Drawn:
        key = goal.frames, goal.size, goal.config.extraction
        if key not in last:
            drawn = draw(goal)
            last.clear()
            last[key] = drawn
        return last[key]

    return remembered


# --- Videos and images ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Footage:
    """A video or images as the core takes them.

    Attributes:
        source: what conditions are made of.
        count: its number of frames.
        chosen: the numbers of those that are used, for what goes with them one by one, such as masks.
        note: what was decided for the user.
        rate: frames taken from each second of it; None for images, which have no seconds.
    """

    source: Source
    count: int
    chosen: Sequence[int]
    note: str
    rate: float | None = None

    def along(self, frames: Tensor) -> tuple[Tensor, str]:
        """Of frames `(1, C, N, H, W)` that go with the source's, or with the plan's, those of the plan."""
        if frames.shape[2] == self.count != len(self.chosen):
            return frames[:, :, list(self.chosen)], ""
        return spread(frames, len(self.chosen))


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
        return Footage(goal.source(frames, plan), len(video), evenly(len(video), goal.frames), note)
    # The stream of the first fails in ComfyUI 0.3.64, that of a trimmed one is the whole file.
    parts = video.get_components() if isinstance(video, InputImpl.VideoFromComponents) or trimmed(video) else None
    if parts is None:
        clip = video.get_stream_source()
        info = probe(clip)
    else:
        count, rate = len(parts.images), Fraction(parts.frame_rate)
        height, width = parts.images.shape[1:3]
        info = VideoInfo(Path("The VIDEO"), width, height, count, rate, float(count / rate), "raw")
    plan = plan_frames(info, goal.frames, frame_rate or None, start_time, goal.config.extraction.sampling_rate)
    # As ffmpeg's `fps` filter takes them of a video of even rate.
    ticks = (Fraction(plan.start) + (i + Fraction(1, 2)) / plan.rate for i in range(plan.frames))
    chosen = [max(0, min(info.frames - 1, math.ceil(tick * info.rate) - 1)) for tick in ticks]
    if parts is not None:
        clip = channels_first(parts.images[chosen])
    note = " ".join(filter(None, (seconds(plan), info.note)))
    return Footage(goal.source(clip, plan), info.frames, chosen, note, float(plan.rate))


def still(image: Tensor, goal: Target) -> Footage:
    """The first of a batch of images."""
    note = f"The first of {len(image)} images is used." if len(image) > 1 else ""
    return Footage(goal.source(channels_first(image[:1])), 1, (0,), note)


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
