"""The node for VGen's super-resolution network."""

from __future__ import annotations

from typing import Any

import comfy.utils
import latent_preview
from comfy_api.latest import io

from ..vc_core.diffusion.super_resolution import GUIDANCE, LEVELS, RESCALE, STEPS, check_steps
from ..vc_core.upscaling import check_super_resolution
from .host.model import config_of
from .host.sampling import in_windows, windows_of
from .host.super_resolution import super_resolved
from .inputs import CATEGORY, advanced, schema, window_inputs
from .sampling import video_latent


class VCSuperResolution(io.ComfyNode):
    """Sharpen an enlarged video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VCSuperResolution",
            display_name="SR600 Upscale (VideoComposer)",
            category=CATEGORY,
            description="Adds detail to an enlarged video with VGen's super-resolution network SR600.",
            search_aliases=["super resolution", "upscale video", "videocomposer"],
            inputs=[
                io.Model.Input("model", tooltip="SR600: Load VideoComposer Checkpoint with super_resolution 'yes'."),
                io.Conditioning.Input("positive", tooltip="What the video shows."),
                io.Conditioning.Input("negative", tooltip="What the result should not show."),
                io.Latent.Input("latent", tooltip="The enlarged video's latent, from Upscale Image and VAE Encode."),
                io.Int.Input("steps", default=STEPS, min=1, max=1000,
                             tooltip="Number of steps from the video to noise, and again of the steps back."),
                io.Float.Input("cfg", default=GUIDANCE, min=0.0, max=100.0, step=0.1,
                               tooltip="Guidance scale for the text. 1 = no guidance."),
                *advanced(
                    io.Int.Input("levels", default=LEVELS, min=1, max=1000,
                                 tooltip="Noise levels of 1000 to go up to. Far fewer than 700 make the video fade."),
                    io.Float.Input("rescale", default=RESCALE, min=0.0, max=1.0, step=0.01,
                                   tooltip="Correction of over-saturation by strong guidance."),
                    *window_inputs(),
                ),
            ],
            outputs=[io.Latent.Output("samples", display_name="latent", tooltip="The video's latent, for VAE Decode.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, latent, steps, cfg, levels, rescale, context_length, context_overlap
    ) -> io.NodeOutput:
        config = config_of(model)
        check_super_resolution(config)
        check_steps(steps, levels)
        image = video_latent(model, latent)
        windows = windows_of(config, context_length, context_overlap)
        model = in_windows(model, windows, image.shape[2])
        samples = super_resolved(
            model, positive, negative, image, steps, levels, cfg, rescale,
            callback=latent_preview.prepare_callback(model, steps),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        )  # fmt: skip
        return io.NodeOutput({**latent, "samples": samples})


NODES: list[Any] = [VCSuperResolution]
