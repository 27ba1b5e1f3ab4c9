"""Nodes that add conditions and a style to CONDITIONING, which every sampler passes to the network."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io
from node_helpers import conditioning_set_values

from ..vc_core.conditions import CONDITIONS as TABLE
from ..vc_core.conditions import Condition, Schedule, strength_note
from ..vc_core.diffusion.guidance import Embedded
from ..vc_core.errors import UserError
from ..vc_core.extract.refit import refit
from .host.carried import CONDITIONS_KEY, STYLE_KEY
from .host.running import say
from .inputs import (
    CATEGORY,
    ConditionType,
    ConditionValue,
    Target,
    check_memory,
    schedule_inputs,
    schema,
    size_inputs,
    target,
)
from .motion import checked

_WHAT = {
    "motion": "Motion, from Motion Vectors, Motion from Tracks or Camera Motion.",
    "depth": "Depth, from Depth Sequence.",
    "sketch": "Sketches, from Sketch Sequence.",
    "mask": "A video with an area to repaint, from Mask Sequence.",
    "single_image": "The first frame, from Single Image.",
    "single_sketch": "One sketch for the entire video, from Single Sketch.",
}


class STCEncode(io.ComfyNode):
    """Add the spatial and temporal conditions of a video to CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        frames, width, height = size_inputs("the same as the connected conditions, otherwise ")
        return schema(
            node_id="STCEncode",
            display_name="STC Encode (VideoComposer)",
            category=CATEGORY,
            description="Collects all conditions for the sampler and creates the empty latent of the video.",
            search_aliases=["spatio-temporal condition", "empty latent video", "videocomposer"],
            inputs=[
                io.Model.Input("model", tooltip="The VideoComposer model that will sample."),
                io.Conditioning.Input("positive", tooltip="The prompt: what the video should show."),
                io.Conditioning.Input("negative", tooltip="The negative prompt: what it should not show."),
                width,
                height,
                frames,
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="Number of videos to generate at once."),
                *(ConditionType.Input(name, optional=True, tooltip=_WHAT.get(name, name)) for name in TABLE),
            ],
            outputs=[
                io.Conditioning.Output("positive_out", display_name="positive",
                                       tooltip="With the conditions, for a sampler."),
                io.Conditioning.Output("negative_out", display_name="negative",
                                       tooltip="With the conditions, for a sampler."),
                io.Latent.Output("latent", display_name="latent", tooltip="The empty 5-D latent of the video."),
                io.Float.Output("fps", display_name="fps",
                                tooltip="Frames per second for Create Video, so that the result plays as fast as the "
                                        "VIDEO of its conditions. Without a VIDEO: the checkpoint's rate."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, width, height, frames, batch_size, **sockets: ConditionValue
    ) -> io.NodeOutput:
        wired = [checked(sockets[name], name, name) for name in TABLE if sockets.get(name) is not None]
        # A condition of strength 0 gives exactly the result of one that is not connected.
        wired = [value for value in wired if value.condition.strength != 0.0]
        # In this order: the user's value, the conditions' value, the checkpoint's value.
        lengths = [value.requested[0] for value in wired if TABLE[value.condition.name].kind == "temporal"]
        wired_height, wired_width = (next((v.requested[i] for v in wired if v.requested[i]), 0) for i in (1, 2))
        goal = target(model, frames or max(lengths, default=0), width or wired_width, height or wired_height)
        for value in wired:
            _check(value, goal)
            check_memory(value.condition.name, goal)
        values = [value.for_video(goal) for value in wired]
        conditions = tuple(_fitted(value.condition, goal) for value in values)
        rate, rate_note = _rate(goal, values)
        notes = [_changes(*item) for item in zip(wired, values, conditions, strict=True)]
        strong = [strength_note(c.name, c.strength) for c in conditions]
        say(*(note for group in notes for note in group), rate_note, *strong)
        device = comfy.model_management.intermediate_device()
        latent = torch.zeros(batch_size, 4, goal.frames, goal.size[0] // 8, goal.size[1] // 8, device=device)
        if conditions:
            positive, negative = (
                conditioning_set_values(
                    _without_these(side, name, conditions), {CONDITIONS_KEY: conditions}, append=True
                )
                for name, side in (("positive", positive), ("negative", negative))
            )
        return io.NodeOutput(positive, negative, {"samples": latent}, rate)


def _without_these(side: Any, socket: str, conditions: tuple[Condition, ...]) -> Any:
    """Return a CONDITIONING unchanged. Raises `UserError` if it already carries one of the conditions."""
    present = {condition.name for _, carried in side for condition in carried.get(CONDITIONS_KEY, ())}
    if twice := present & {condition.name for condition in conditions}:
        raise UserError(
            f"The input at the socket '{socket}' already has a '{min(twice)}' condition from another STC Encode. "
            f"Disconnect '{min(twice)}' from one of the two nodes."
        )
    return side


def _changes(before: ConditionValue, after: ConditionValue, fitted: Condition) -> list[str]:
    """Return notes on a condition that was computed again, because its node has no model, or that was resampled."""
    old, new = ("{0} x {2}x{1}".format(*condition.tensor.shape[2:]) for condition in (after.condition, fitted))
    if after.condition.tensor is not fitted.tensor:
        return [f"{fitted.name}: resampled from {old} to {new} (frames x width x height)."]
    if before.condition.tensor is fitted.tensor:
        return []
    notes = [note for note in after.result.notes if note and note not in before.result.notes]
    return [f"{fitted.name}: computed again for this model, {new} (frames x width x height).", *notes]


def _rate(goal: Target, values: list[ConditionValue]) -> tuple[float, str]:
    """Return the frames per second at which the result plays as fast as the VIDEO of its conditions, and a note.

    The first condition from a VIDEO decides; the note says so if others differ. Without any, it is the checkpoint's.
    """
    rates = {}
    for value in (value for value in values if value.result.rate is not None):
        count = value.condition.tensor.shape[2]  # `refit` spreads these frames over those of the video
        factor = (goal.frames - 1) / (count - 1) if 1 < count != goal.frames > 1 else 1.0
        rates[value.condition.name] = value.result.rate * factor
    if not rates:
        return goal.config.rate, ""
    first, *others = rates
    listed = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    differ = any(rates[other] != rates[first] for other in others)
    note = f"The conditions have different frame rates ({listed}). fps is the rate of {first}." if differ else ""
    return rates[first], note


def _check(value: ConditionValue, goal: Target) -> None:
    """Raise `UserError` if the checkpoint has no encoder for a condition, or expects another motion format."""
    name, ours, theirs = value.condition.name, goal.config, value.config
    if name not in ours.unet.conditions:
        raise UserError(
            f"The checkpoint '{ours.name}' does not support the condition '{name}'. It supports "
            f"{', '.join(ours.unet.conditions) or 'none'}. Disconnect '{name}', or load another checkpoint."
        )
    layouts = ours.extraction.motion_layout, theirs.extraction.motion_layout
    if name == "motion" and value.recompute is None and layouts[0] != layouts[1]:
        raise UserError(
            f"Expected motion for the checkpoint '{ours.name}' ({layouts[0]}) at the socket 'motion', got motion for "
            f"'{theirs.name}' ({layouts[1]}). Connect the same model to both nodes."
        )


def _fitted(condition: Condition, goal: Target) -> Condition:
    """Return a condition as the network expects it, resampled if it was computed for another video."""
    tensor = refit(condition.name, condition.tensor, goal.size, goal.frames, goal.config.extraction, condition.video)
    return replace(condition, tensor=tensor, video=goal.size)


class StyleEmbed(io.ComfyNode):
    """Add the style of an image to CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="StyleEmbed",
            display_name="Style Embed (VideoComposer)",
            category=CATEGORY,
            description="Gives the video the style of an image: the image is added to the prompt as a token.",
            search_aliases=["style transfer", "image prompt", "reference image", "videocomposer"],
            inputs=[
                io.Conditioning.Input("positive", tooltip="The prompt: what the video should show."),
                io.Conditioning.Input("negative", tooltip="The negative prompt: what it should not show."),
                *schedule_inputs("the style"),
                io.ClipVision.Input("clip_vision", optional=True,
                                    tooltip="The checkpoint's image encoder. For the released one: OpenCLIP ViT-H/14."),
                io.Image.Input("image", optional=True,
                               tooltip="The style image, or one image for each video of a batch."),
                io.ClipVisionOutput.Input("clip_vision_output", optional=True,
                                          tooltip="Instead of clip_vision and image: the output of CLIP Vision "
                                                  "Encode."),
            ],
            outputs=[
                io.Conditioning.Output("positive_out", display_name="positive",
                                       tooltip="With the style, for STC Encode or a sampler."),
                io.Conditioning.Output("negative_out", display_name="negative",
                                       tooltip="With the style, for STC Encode or a sampler."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, positive, negative, strength, start_percent, end_percent, **sockets) -> io.NodeOutput:
        clip_vision, image, encoded = map(sockets.get, ("clip_vision", "image", "clip_vision_output"))
        if (clip_vision is None) != (image is None) or (image is None) == (encoded is None):
            raise UserError("Connect either both 'clip_vision' and 'image', or only 'clip_vision_output'.")
        schedule = Schedule(strength, start_percent, end_percent)
        schedule.check("style")
        if any(STYLE_KEY in carried for side in (positive, negative) for _, carried in side):
            raise UserError(
                "The input at 'positive' or 'negative' already has a style from another Style Embed. A video can only "
                "have one style: bypass one of the two nodes."
            )
        say(strength_note("style", strength))
        if strength == 0.0:
            return io.NodeOutput(positive, negative)
        if encoded is None:
            encoded = clip_vision.encode_image(image[..., :3].float())
        embedding = encoded["image_embeds"].float()[:, None]
        return io.NodeOutput(
            conditioning_set_values(positive, {STYLE_KEY: Embedded(embedding, schedule)}),
            conditioning_set_values(negative, {STYLE_KEY: Embedded(None, replace(schedule, strength=1.0))}),
        )


NODES: list[Any] = [STCEncode, StyleEmbed]
