"""Conditions and styles onto CONDITIONING, where every sampler passes them on to the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from node_helpers import conditioning_set_values

from ..vc_core.conditions import CONDITIONS as TABLE
from ..vc_core.conditions import Condition, Schedule
from ..vc_core.diffusion.guidance import Embedded
from ..vc_core.errors import UserError
from ..vc_core.extract.refit import refit
from .host.carried import CONDITIONS_KEY, STYLE_KEY
from .host.running import say
from .inputs import CATEGORY, ConditionType, Made, Target, schedule_inputs, schema, size_inputs, target
from .motion import checked

_WHAT = {
    "motion": "Motion, from MotionVectorExtract or made by hand.",
    "depth": "Depth, from DepthSequence.",
    "sketch": "Sketches, from VCSketchSequence.",
    "mask": "A video with an area to paint, from VCMaskSequence.",
    "single_image": "The first frame, from VCSingleImage.",
    "single_sketch": "One sketch for the whole video, from VCSingleSketch.",
}


class STCEncode(io.ComfyNode):
    """All spatial and temporal conditions of a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        frames, width, height = size_inputs("as the connected conditions, else ")
        return schema(
            node_id="STCEncode",
            display_name="STC Encode (VideoComposer)",
            category=CATEGORY,
            description="Gives the network's STC-encoders their conditions and makes the empty latent of the video. "
            "The encoders run while sampling, once for each window.",
            search_aliases=["spatio-temporal condition", "empty latent video", "videocomposer"],
            inputs=[
                io.Model.Input("model", tooltip="The VideoComposer model that will sample."),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Conditioning.Input("negative", tooltip="What it does not show."),
                width,
                height,
                frames,
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many videos are made at once."),
                *(ConditionType.Input(name, optional=True, tooltip=_WHAT.get(name, name)) for name in TABLE),
            ],
            outputs=[
                io.Conditioning.Output("positive_out", display_name="positive", tooltip="For a sampler."),
                io.Conditioning.Output("negative_out", display_name="negative", tooltip="For a sampler."),
                io.Latent.Output("latent", display_name="latent", tooltip="The empty latent of the video, 5-D."),
                io.Float.Output("fps", display_name="fps",
                                tooltip="Frames a second for Create Video: as many as the conditions took from a "
                                        "second of their VIDEO, so that it plays as fast, else as the checkpoint was "
                                        "trained."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, positive, negative, width, height, frames, batch_size, **sockets: Made) -> io.NodeOutput:
        wired = [checked(sockets[name], name, name) for name in TABLE if sockets.get(name) is not None]
        # A condition of no strength is one that is not there, to the bit.
        wired = [value for value in wired if value.condition.strength != 0.0]
        # As asked for, else as the conditions were made, else as the checkpoint was trained.
        lengths = [value.asked[0] for value in wired if TABLE[value.condition.name].kind == "temporal"]
        high, wide = (next((value.asked[i] for value in wired if value.asked[i]), 0) for i in (1, 2))
        goal = target(model, frames or max(lengths, default=0), width or wide, height or high)
        for value in wired:
            _check(value, goal)
        drawn = [value.for_video(goal) for value in wired]
        conditions = tuple(_fitted(value.condition, goal) for value in drawn)
        rate, odd = _rate(goal, drawn)
        notes = [_told(*each) for each in zip(wired, drawn, conditions, strict=True)]
        say(*(note for told in notes for note in told), odd)
        device = comfy.model_management.intermediate_device()
        latent = torch.zeros(batch_size, 4, goal.frames, goal.size[0] // 8, goal.size[1] // 8, device=device)
        if conditions:
            positive, negative = (
                conditioning_set_values(_without(side, name, conditions), {CONDITIONS_KEY: conditions}, append=True)
                for name, side in (("positive", positive), ("negative", negative))
            )
        return io.NodeOutput(positive, negative, {"samples": latent}, rate)


def _without(side: Any, socket: str, conditions: tuple[Condition, ...]) -> Any:
    """A CONDITIONING that has none of the conditions yet, as it is. Raises `UserError` for one that has."""
    there = {condition.name for _, carried in side for condition in carried.get(CONDITIONS_KEY, ())}
    if twice := there & {condition.name for condition in conditions}:
        raise UserError(
            f"The socket '{socket}' has been through another STCEncode, which gave it '{min(twice)}' already: unplug "
            "that condition in one of the two."
        )
    return side


def _told(given: Made, drawn: Made, fitted: Condition) -> list[str]:
    """What was done to a condition: drawn for this video because no model was connected to its node, or resampled."""
    size, now = ("{0} x {2}x{1}".format(*one.tensor.shape[2:]) for one in (drawn.condition, fitted))
    if drawn.condition.tensor is not fitted.tensor:
        return [f"{fitted.name}: resampled from {size} to {now} (frames x width x height)."]
    if given.condition.tensor is fitted.tensor:
        return []
    notes = [note for note in drawn.drawn.notes if note and note not in given.drawn.notes]
    return [f"{fitted.name}: drawn anew for this model, {now} (frames x width x height).", *notes]


def _rate(goal: Target, wired: list[Made]) -> tuple[float, str]:
    """Frames a second at which a video plays as fast as the VIDEO that its conditions were taken from.

    That of the first of them, and a sentence where they differ; without any, what the checkpoint was trained for.
    """
    rates = {}
    for value in (value for value in wired if value.drawn.rate is not None):
        given = value.condition.tensor.shape[2]  # spread from the first to the last over the frames of the video
        denser = (goal.frames - 1) / (given - 1) if 1 < given != goal.frames > 1 else 1.0
        rates[value.condition.name] = value.drawn.rate * denser
    if not rates:
        return goal.config.rate, ""
    first, *others = rates
    told = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    differ = any(rates[other] != rates[first] for other in others)
    note = f"The conditions differ in frames a second ({told}): fps is that of {first}." if differ else ""
    return rates[first], note


def _check(value: Made, goal: Target) -> None:
    """Raises `UserError` for a condition that the checkpoint has no encoder for, or made for one of another kind."""
    name, ours, theirs = value.condition.name, goal.config, value.config
    if name not in ours.unet.conditions:
        raise UserError(
            f"The socket '{name}' is connected, and the checkpoint '{ours.name}' was trained without such a "
            f"condition (it has {', '.join(ours.unet.conditions) or 'none'}): unplug it, or load another checkpoint."
        )
    layouts = ours.extraction.motion_layout, theirs.extraction.motion_layout
    if name == "motion" and value.draw is None and layouts[0] != layouts[1]:
        raise UserError(
            f"The socket 'motion' holds motion made for the checkpoint '{theirs.name}' ({layouts[1]}) and the model "
            f"here is '{ours.name}' ({layouts[0]}): connect one model to both nodes."
        )


def _fitted(condition: Condition, goal: Target) -> Condition:
    """A condition as the network takes it for this video, resampled where it was made for another one."""
    tensor = refit(condition.name, condition.tensor, goal.size, goal.frames, goal.config.extraction, condition.video)
    return replace(condition, tensor=tensor, video=goal.size)


class StyleEmbed(io.ComfyNode):
    """The style of an image."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StyleEmbed",
            display_name="Style Embed (VideoComposer)",
            category=CATEGORY,
            description="Gives a video the style of an image, as a token beside the text.",
            search_aliases=["style transfer", "image prompt", "reference image", "videocomposer"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Conditioning.Input("negative", tooltip="What it does not show."),
                *schedule_inputs("the style"),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="The checkpoint's image tower; for the released one OpenCLIP ViT-H/14."),
                io.Image.Input("image", optional=True,
                               tooltip="The style image. Several are one for each video of a batch."),
                io.ClipVisionOutput.Input("clip_vision_output", optional=True,
                                          tooltip="In place of the two above: what CLIPVisionEncode made of the "
                                                  "image."),
            ],
            outputs=[
                io.Conditioning.Output("positive_out", display_name="positive", tooltip="For STCEncode or a sampler."),
                io.Conditioning.Output("negative_out", display_name="negative", tooltip="For STCEncode or a sampler."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, positive, negative, strength, start_percent, end_percent, **sockets) -> io.NodeOutput:
        clip_vision, image, seen = map(sockets.get, ("clip_vision", "image", "clip_vision_output"))
        if (clip_vision is None) != (image is None) or (image is None) == (seen is None):
            raise UserError(
                "A style comes from the sockets 'clip_vision' and 'image' together, or from 'clip_vision_output' "
                "alone: connect one of the two."
            )
        schedule = Schedule(strength, start_percent, end_percent)
        schedule.check("style")
        if any(STYLE_KEY in carried for side in (positive, negative) for _, carried in side):
            raise UserError(
                "The sockets 'positive' and 'negative' have been through another StyleEmbed, and a video takes one "
                "style: bypass one of the two."
            )
        if strength == 0.0:
            return io.NodeOutput(positive, negative)
        if seen is None:
            seen = clip_vision.encode_image(image[..., :3].float())
        embedding = seen["image_embeds"].float()[:, None]
        return io.NodeOutput(
            conditioning_set_values(positive, {STYLE_KEY: Embedded(embedding, schedule)}),
            conditioning_set_values(negative, {STYLE_KEY: Embedded(None, replace(schedule, strength=1.0))}),
        )


NODES: list[Any] = [STCEncode, StyleEmbed]
