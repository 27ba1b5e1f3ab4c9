"""The one-node sampler."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.latest import io

from ..vc_core.diffusion.windows import Windows
from ..vc_core.errors import UserError
from .host.model import config_of
from .host.sampling import GRIDS, LCM_RELEASED, arranged, with_windows
from .inputs import CATEGORY, advanced, schema

AUTO = "auto"
"""A sampler or scheduler that leaves it to the checkpoint."""


class VC3DUNetSampler(io.ComfyNode):
    """Samples a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VC3DUNetSampler",
            display_name="3D UNet Sampler (VideoComposer)",
            category=CATEGORY,
            description="Samples a video with a VideoComposer model, with previews of all frames, and in overlapping "
            "windows where it is longer than the checkpoint was trained for.",
            search_aliases=["ksampler", "video sampler", "videocomposer"],
            inputs=[
                io.Model.Input("model", tooltip="The VideoComposer model."),
                io.Conditioning.Input("positive", tooltip="What the video shows, from STCEncode."),
                io.Conditioning.Input("negative", tooltip="What it does not show, from STCEncode."),
                io.Latent.Input("latent", tooltip="The 5-D latent from STCEncode, or a video's from VAEEncode."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="Of the noise: the same seed gives the same video."),
                io.Int.Input("steps", default=20, min=0, max=1000,
                             tooltip="Steps of the sampler; 0 is what the checkpoint recommends (the released one 20, "
                                     "VideoLCM 4)."),
                io.Float.Input("cfg", default=0.0, min=0.0, max=100.0, step=0.1,
                               tooltip="Scale of the guidance by text and style; 1 is none, 0 is what the checkpoint "
                                       "recommends (the released one 9, VideoLCM 1)."),
                io.Combo.Input("sampler_name", options=[*comfy.samplers.SAMPLER_NAMES, AUTO], default="dpmpp_2m",
                               tooltip="How the noise is removed; auto is what the checkpoint recommends (dpmpp_2m, "
                                       "VideoLCM lcm)."),
                io.Combo.Input("scheduler", options=[*comfy.samplers.SCHEDULER_NAMES, *GRIDS, AUTO], default="karras",
                               tooltip="The noise levels of the steps. ddim_released is the released code's grid, "
                                       "meant for the sampler ddim; lcm_released VideoLCM's, for lcm; auto is what "
                                       "the checkpoint recommends (karras, VideoLCM lcm_released)."),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Share of the noise schedule that is run; below 1 a given video is changed."),
                *advanced(
                    io.Int.Input("context_length", default=0, min=0, max=100000,
                                 tooltip="Frames of a window of a longer video; 0: as the checkpoint was trained."),
                    io.Int.Input("context_overlap", default=-1, min=-1, max=100000,
                                 tooltip="Frames that a window shares with the next; -1: half of the window."),
                ),
            ],
            outputs=[io.Latent.Output("samples", display_name="latent", tooltip="The video's latent, for VAEDecode.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, latent, seed, steps, cfg, sampler_name, scheduler, denoise, **context: int
    ) -> io.NodeOutput:
        config = config_of(model)
        steps, cfg = steps or config.steps, cfg or config.guidance
        sampler_name = config.sampler if sampler_name == AUTO else sampler_name
        scheduler = (LCM_RELEASED if config.few_steps else "karras") if scheduler == AUTO else scheduler
        image = comfy.sample.fix_empty_latent_channels(model, latent["samples"])
        if latent["samples"].ndim != 5 or image.shape[1] != config.unet.channels:
            raise UserError(
                f"The socket 'latent' holds a latent of the shape {tuple(latent['samples'].shape)}: expected that of a "
                f"video, (batch, {config.unet.channels}, frames, height, width), as STCEncode gives it."
            )
        length, overlap = context["context_length"], context["context_overlap"]
        windows = Windows(length or config.frames, None if overlap < 0 else overlap)
        if image.shape[2] > windows.length and "context_handler" not in model.model_options:
            model = with_windows(model, windows)
        noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
        shared = {
            "latent_image": image,
            "noise_mask": latent.get("noise_mask"),
            "callback": latent_preview.prepare_callback(model, steps),
            "disable_pbar": not comfy.utils.PROGRESS_BAR_ENABLED,
            "seed": seed,
        }
        if scheduler in GRIDS:
            sampling = model.get_model_object("model_sampling")
            sampler, sigmas = arranged(scheduler, sampler_name, sampling, config, steps, denoise)
            samples = comfy.sample.sample_custom(model, noise, cfg, sampler, sigmas, positive, negative, **shared)
        else:
            samples = comfy.sample.sample(
                model, noise, steps, cfg, sampler_name, scheduler, positive, negative, denoise=denoise, **shared
            )
        return io.NodeOutput({**latent, "samples": samples})


NODES: list[Any] = [VC3DUNetSampler]
