"""A node for texts that change over the frames of a long video."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from node_helpers import conditioning_set_values

from ..vc_core.errors import UserError
from .host.carried import TEXTS_KEY
from .inputs import CATEGORY, schema


class VCTextSchedule(io.ComfyNode):
    """Add the text of a later frame to CONDITIONING."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCTextSchedule",
            display_name="Text Schedule (VideoComposer)",
            category=CATEGORY,
            description="Changes the text gradually during a long video that is sampled in windows.",
            search_aliases=["prompt schedule", "prompt travel", "text over time", "videocomposer"],
            inputs=[
                io.Conditioning.Input("conditioning", tooltip="The text of the first frame, from CLIP Text Encode, or "
                                                              "the texts so far, from another Text Schedule."),
                io.Conditioning.Input("next_text", tooltip="The text of a later frame, from CLIP Text Encode."),
                io.Int.Input("frame", default=32, min=1, max=100000,
                             tooltip="The frame at which the change to 'next_text' is complete. The first frame is 0."),
            ],
            outputs=[
                io.Conditioning.Output("conditioning_out", display_name="conditioning",
                                       tooltip="The texts, for STC Encode, Style Embed or another Text Schedule."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(cls, conditioning, next_text, frame) -> io.NodeOutput:
        if len(next_text) != 1 or TEXTS_KEY in next_text[0][1]:
            raise UserError("'next_text' contains several texts. Connect the output of one CLIP Text Encode.")
        present = {
            number: tokens for _, carried in conditioning for number, tokens in carried.get(TEXTS_KEY, {}).items()
        }
        if frame in present:
            raise UserError(
                f"The input at 'conditioning' already has a text for frame {frame}. Choose another 'frame', or bypass "
                "one of the two nodes."
            )
        texts = dict(sorted({**present, frame: next_text[0][0]}.items()))
        return io.NodeOutput(conditioning_set_values(conditioning, {TEXTS_KEY: texts}))


NODES: list[Any] = [VCTextSchedule]
