"""Nodes that fix frames of a video, or its rough course, before it is sampled."""

from __future__ import annotations

import re
from typing import Any

import torch
from comfy_api.latest import io

from ..vc_core.diffusion.hold import reduced
from ..vc_core.errors import UserError, counted
from ..vc_core.extract.keyframes import keyframes
from ..vc_core.extract.motion.drag import drag
from .conditions import outputs
from .host.running import say
from .host.vae import FramewiseVAE
from .inputs import (
    CATEGORY,
    ConditionType,
    DrawResult,
    channels_first,
    channels_last,
    condition_output,
    numbers,
    schema,
    size_inputs,
    target,
)
from .motion import checked


def parse_indices(text: str) -> list[int]:
    """Read frame numbers separated by commas; `0:4` is 0, 1, 2, 3. Raises `UserError`."""
    numbers: list[int] = []
    for part in filter(None, re.split(r"[,\s]+", text.strip())):
        match = re.fullmatch(r"(-?\d{1,6})(?::(-?\d{1,6}))?", part)
        if match is None:
            raise UserError(f"'indices' contains {part}. Expected frame numbers such as 0, -1 or 0:4.")
        first, end = int(match[1]), match[2]
        numbers += [first] if end is None else range(first, int(end))
    return numbers


class VCKeyframes(io.ComfyNode):
    """Place images at certain frames of a video, and keep them there."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCKeyframes",
            display_name="Keyframes (VideoComposer)",
            category=CATEGORY,
            description="Keeps images as certain frames of the video, such as the first and the last. The other frames "
            "are composed between them, or after them.",
            search_aliases=["first last frame", "interpolation", "extend video", "inbetween", "videocomposer"],
            inputs=[
                io.Model.Input("model", tooltip="The model that will sample; it sets size and length."),
                io.Vae.Input("vae", tooltip="The VAE of the VideoComposer checkpoint."),
                io.Image.Input("images",
                               tooltip="The images, one for each index. Of more images, the last ones are used, so "
                                       "that the end of a video can be continued."),
                io.String.Input("indices", default="0, -1",
                                tooltip="The frame of each image: 0 is the first frame, -1 the last. 0:4 is short for "
                                        "0, 1, 2, 3."),
                *size_inputs(),
            ],
            outputs=[
                *outputs("mask"),
                io.Latent.Output("latent", display_name="latent",
                                 tooltip="For the sampler, instead of STC Encode's latent: the kept frames, with a "
                                         "noise mask that is 1 in all other frames."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, model, vae, images, indices, frames, width, height) -> io.NodeOutput:
        goal, places = target(model, frames, width, height), parse_indices(indices)
        if not isinstance(vae, FramewiseVAE):
            raise UserError(
                "Expected a VAE for videos at the socket 'vae'. Connect the VAE of 'Load VideoComposer Checkpoint', or "
                "put 'Video VAE' between."
            )
        if len(places) > len(images) or not places:
            raise UserError(
                f"Expected one image for each index, got {counted(len(images), 'image')} and "
                f"{counted(len(places), 'index', 'indices')}. Change 'indices' or the images."
            )
        if len(images) > len(places):
            say(f"The last {counted(len(places), 'image')} of {len(images)} are used.")
        stills = dict(zip(places, channels_first(images[-len(places) :])[:, :3].unbind(2), strict=True))
        if len(stills) < len(places):
            raise UserError("An index occurs twice in 'indices'. Use each one once.")
        draft = keyframes(stills, goal.frames, goal.size)
        kept = draft.mask.amax((0, 1, 3, 4)) == 0
        encoded = vae.encode(channels_last(draft.init[:, :, kept]))
        latent = encoded.new_zeros(1, encoded.shape[1], goal.frames, *encoded.shape[-2:])
        latent[:, :, kept] = encoded
        output = condition_output("mask", goal, lambda goal: DrawResult(_shown(stills, goal)), 1.0, 0.0, 1.0)
        return io.NodeOutput(*output.args, {"samples": latent, "noise_mask": draft.mask}, ui=output.ui)


def _shown(stills: dict[int, torch.Tensor], goal: Any) -> torch.Tensor:
    return keyframes(stills, goal.frames, goal.size).mask_condition(goal.size, goal.config)


class VCCutAndDrag(io.ComfyNode):
    """Move an image by a motion, as a rough draft of a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCCutAndDrag",
            display_name="Cut and Drag (VideoComposer)",
            category=CATEGORY,
            description="Moves parts of an image along tracks, or all of it with a camera: a rough draft from which "
            "the video is sampled, with more freedom where nothing moves. For slow motion, which networks obey least.",
            search_aliases=["time-to-move", "drag", "warp image", "motion control", "videocomposer"],
            inputs=[
                io.Image.Input("image", tooltip="The first frame of the video."),
                ConditionType.Input("motion", tooltip="The motion, from Motion from Tracks or Camera Motion."),
                *numbers(
                    ("inside", 0.5, 0.0, 1.0, 0.01, "How much of the noise schedule composes what moves. Lower follows "
                     "the motion more closely, higher repairs more."),
                    ("outside", 0.75, 0.0, 1.0, 0.01, "The same for the rest of the frame."),
                ),
            ],
            outputs=[
                io.Image.Output("images", display_name="images", tooltip="The draft, for VAE Encode."),
                io.Mask.Output("mask", display_name="mask",
                               tooltip="For Set Latent Noise Mask: inside and outside. Differential Diffusion makes "
                                       "the sampler use values between 0 and 1."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, image, motion, inside, outside) -> io.NodeOutput:
        value = checked(motion, "motion", "motion")
        if value.result.paths is None:
            raise UserError(
                "The motion at the socket 'motion' is switched off or comes from a video. Connect 'Motion from Tracks' "
                "or 'Camera Motion' with a strength above 0."
            )
        still = channels_first(image)[:, :3, 0]
        if len(image) > 1:
            say(f"The first of {len(image)} images is used.")
        draft = drag(still, value.condition.video, value.result.paths, inside, outside)
        # Constant in the area of each latent pixel: the value is the same wherever it is sampled.
        mask = reduced(draft.mask).repeat_interleave(8, 3).repeat_interleave(8, 4)
        return io.NodeOutput(channels_last(draft.init), mask[0, 0])


NODES: list[Any] = [VCKeyframes, VCCutAndDrag]
