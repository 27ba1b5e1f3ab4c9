"""The sampler node."""

from __future__ import annotations

from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
from comfy_api.latest import io

from ..vc_core.diffusion.noise import NOISES, arranged_noise
from ..vc_core.diffusion.tiles import Tiles
from ..vc_core.errors import UserError
from .host.model import config_of, motion_for
from .host.sampling import GRIDS, LCM_RELEASED, arranged, in_windows, windows_of, with_tiles
from .inputs import CATEGORY, MAX_SIDE, advanced, schema, window_inputs

AUTO = "auto"
"""The option that selects the checkpoint's recommended sampler or scheduler."""


class VC3DUNetSampler(io.ComfyNode):
    """Sample a video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="VC3DUNetSampler",
            display_name="3D UNet Sampler (VideoComposer)",
            category=CATEGORY,
            description="Samples a video with a VideoComposer model and previews all frames. Long videos are sampled "
            "in overlapping windows.",
            search_aliases=["ksampler", "video sampler", "videocomposer"],
            inputs=[
                io.Model.Input("model", tooltip="The VideoComposer model."),
                io.Conditioning.Input("positive", tooltip="What the video should show, from STC Encode."),
                io.Conditioning.Input("negative", tooltip="What the video should not show, from STC Encode."),
                io.Latent.Input("latent", tooltip="The 5-D latent from STC Encode, or a video's from VAE Encode."),
                io.Int.Input("seed", default=0, min=0, max=0xFFFFFFFFFFFFFFFF, control_after_generate=True,
                             tooltip="Seed of the noise. The same seed gives the same video."),
                io.Int.Input("steps", default=20, min=0, max=1000,
                             tooltip="Number of sampling steps. 0 = as the checkpoint recommends (20 for the released "
                                     "one, 4 for VideoLCM)."),
                io.Float.Input("cfg", default=0.0, min=0.0, max=100.0, step=0.1,
                               tooltip="Guidance scale for text and style. 0 = as the checkpoint recommends (9 for the "
                                       "released one, 1 for VideoLCM). 1 = no guidance."),
                io.Combo.Input("sampler_name", options=[*comfy.samplers.SAMPLER_NAMES, AUTO], default="dpmpp_2m",
                               tooltip="Sampling algorithm. auto = as the checkpoint recommends (dpmpp_2m, for "
                                       "VideoLCM lcm)."),
                io.Combo.Input("scheduler", options=[*comfy.samplers.SCHEDULER_NAMES, *GRIDS, AUTO], default="karras",
                               tooltip="Noise levels of the steps. auto = as the checkpoint recommends (karras, for "
                                       "VideoLCM lcm_released). Use ddim_released with the sampler ddim, "
                                       "lcm_released with lcm."),
                io.Float.Input("denoise", default=1.0, min=0.0, max=1.0, step=0.01,
                               tooltip="Fraction of the noise schedule to run. Below 1, the sampler changes the "
                                       "video at 'latent' instead of generating a new one."),
                *advanced(
                    *window_inputs(),
                    io.Int.Input("tile_size", default=-1, min=-1, max=MAX_SIDE, optional=True,
                                 tooltip="Width and height of the overlapping tiles in which large frames are sampled, "
                                         "in pixels. 0 = the checkpoint's training size. -1 = entire frames."),
                    io.Int.Input("tile_overlap", default=-1, min=-1, max=MAX_SIDE, optional=True,
                                 tooltip="Pixels that neighbouring tiles share. -1 = half a tile. More is smoother but "
                                         "slower."),
                    io.Combo.Input("noise", options=list(NOISES), default="independent", optional=True,
                                   tooltip="Noise to start from. shuffled, for long videos: every window gets the "
                                           "noise of the first one in another order (FreeNoise). warped: a tenth of "
                                           "the noise moves with the condition 'motion', for less flicker. "
                                           "warped_fully: all of it, for camera motion."),
                ),
            ],
            outputs=[io.Latent.Output("samples", display_name="latent", tooltip="The video's latent, for VAE Decode.")],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, model, positive, negative, latent, seed, steps, cfg, sampler_name, scheduler, denoise, **context: Any
    ) -> io.NodeOutput:
        config = config_of(model)
        steps, cfg = steps or config.steps, cfg or config.guidance
        sampler_name = config.sampler if sampler_name == AUTO else sampler_name
        scheduler = (LCM_RELEASED if config.few_steps else "karras") if scheduler == AUTO else scheduler
        image = video_latent(model, latent)
        if (side := context.get("tile_size", -1)) >= 0:
            overlap = context.get("tile_overlap", -1)
            overlap = None if overlap < 0 else overlap
            tiles = Tiles(side, side, overlap) if side else Tiles.trained(config, overlap)
            tiles.check(config.unet)
            model = with_tiles(model, tiles)
        windows = windows_of(config, context["context_length"], context["context_overlap"])
        model = in_windows(model, windows, image.shape[2])
        noise = comfy.sample.prepare_noise(image, seed, latent.get("batch_index"))
        kind = context.get("noise", "independent")
        noise = arranged_noise(kind, noise, seed, windows, motion_for(kind, positive, image, config))
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


def video_latent(model: Any, latent: dict[str, Any]) -> Any:
    """Return the samples `(B, C, F, h, w)` of a LATENT. Raises `UserError` if it is not a video's."""
    image, channels = comfy.sample.fix_empty_latent_channels(model, latent["samples"]), config_of(model).unet.channels
    if latent["samples"].ndim != 5 or image.shape[1] != channels:
        raise UserError(
            f"Expected a video latent of shape (batch, {channels}, frames, height, width) at the socket 'latent', got "
            f"{tuple(latent['samples'].shape)}. Connect the latent of STC Encode, or of VAE Encode with Video VAE."
        )
    return image


NODES: list[Any] = [VC3DUNetSampler]
