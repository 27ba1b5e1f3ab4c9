"""A test clip that the pack draws."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import torch
from comfy_api.latest import InputImpl, Types, io

from ..vc_core.demo import RATE, VELOCITY, disc_mask, draw_clip
from .inputs import CATEGORY, channels_last, numbers, schema

_DIRECTIONS = {"right": (1, 0), "left": (-1, 0), "down": (0, 1), "up": (0, -1), "diagonal": (0.7, 0.7), "still": (0, 0)}


class VCExampleClip(io.ComfyNode):
    """Draw a disc that moves in front of stripes or a gradient."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCExampleClip",
            display_name="Example Clip (VideoComposer)",
            category=CATEGORY,
            description="Draws a test clip: a textured disc that moves in front of stripes or a gradient, with depth "
            "maps and a mask. An input for every template, without any download.",
            search_aliases=["test video", "demo", "synthetic", "videocomposer"],
            inputs=[
                io.Combo.Input(
                    "direction", options=list(_DIRECTIONS), default="right", tooltip="Where the disc moves."
                ),
                *numbers(
                    ("speed", 1.0, 0.0, 4.0, 0.05, "Speed of the disc. 1 = a third of the frame width in 16 frames."),
                    ("frames", 16, 1, 1024, None, "Number of frames, at 8 frames per second."),
                    ("size", 256, 64, 2048, 8, "Width and height in pixels."),
                ),
                io.Combo.Input(
                    "background",
                    options=["stripes", "gradient"],
                    default="stripes",
                    optional=True,
                    tooltip="Blue and white stripes, or a gradient of the same colours.",
                ),
            ],
            outputs=[
                io.Video.Output("video", display_name="video", tooltip="The clip."),
                io.Image.Output("images", display_name="images", tooltip="The frames of the clip."),
                io.Image.Output("depth", display_name="depth", tooltip="Depth maps of the frames, near is bright."),
                io.Mask.Output("mask", display_name="mask", tooltip="One mask per frame: the disc is white."),
            ],
        )

    @classmethod
    def execute(cls, direction, speed, frames, size, background="stripes") -> io.NodeOutput:
        x, y = _DIRECTIONS[direction]
        velocity = (x * speed * VELOCITY[0], y * speed * VELOCITY[0])
        images = channels_last(draw_clip(velocity, size, frames, background))
        mask = disc_mask(velocity, size, frames)
        down = torch.linspace(0.1, 0.35, size)[None, :, None]
        depth = torch.where(mask > 0.5, torch.tensor(0.9), down)[..., None].expand(-1, -1, -1, 3)
        video = InputImpl.VideoFromComponents(Types.VideoComponents(images=images, frame_rate=Fraction(RATE)))
        return io.NodeOutput(video, images, depth.contiguous(), mask)


NODES: list[Any] = [VCExampleClip]
