"""`upscale()`: enlarge a video with VGen's super-resolution network SR600 (`sr_step_110000_ema.pth`)."""

import math

import torch
from torch import Tensor

from .composer import VideoComposer
from .config import Config
from .diffusion.guidance import Denoiser, GuidedDenoiser
from .diffusion.super_resolution import GUIDANCE, LEVELS, RESCALE, STEPS, check_steps, denoise, invert
from .diffusion.windows import WindowedDenoiser, Windows
from .encoders.autoencoder import Tiling
from .errors import UserError
from .memory import report_out_of_memory
from .pipeline import check_rgb, check_size, encode_texts, encode_video
from .progress import Progress

SUFFIX = (
    ", cinematic, High Contrast, highly detailed, Unreal Engine 5, no blur, full length ultra-wide angle shot a "
    "cinematic scene, taken using a Canon EOS R camera, hyper detailed photo - realistic maximum detail, 32k, Color "
    "Grading, portrait Photography, ultra HD, extreme meticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations, 4k render"
)
NEGATIVE = (
    "worst quality, normal quality, low quality, low res, blurry, text, watermark, logo, banner, extra digits, "
    "cropped, jpeg artifacts, signature, username, error, sketch ,duplicate, ugly, monochrome, horror, geometry, "
    "mutation, disgusting"
)
"""The suffix that VGen appends to every prompt of SR600, and its negative prompt (configs/sr600_infer.yaml)."""


def suggested_size(size: tuple[int, int], config: Config) -> tuple[int, int]:
    """Return the (height, width) with a video's aspect ratio and about as many pixels as in the training (1280x720), in
    multiples of 8."""
    height, width = size
    factor = math.sqrt(config.height * config.width / (height * width))
    return tuple(max(8, round(side * factor / 8) * 8) for side in (height, width))


def check_super_resolution(config: Config) -> None:
    """Raise `UserError` if a checkpoint's network is not SR600."""
    if not config.unet.super_resolution:
        raise UserError(
            f"'{config.name}' is not a network for super-resolution. Use VGen's sr_step_110000_ema.pth, loaded with "
            "super_resolution set to yes."
        )


@torch.inference_mode()
def upscale(
    composer: VideoComposer,
    video: Tensor,
    text: str = "",
    *,
    negative: str = NEGATIVE,
    size: tuple[int, int] | None = None,
    steps: int = STEPS,
    levels: int = LEVELS,
    guidance: float = GUIDANCE,
    rescale: float = RESCALE,
    windows: Windows | None = None,
    tiling: Tiling | None = None,
    progress: Progress | None = None,
) -> Tensor:
    """Enlarge a video: resize it, invert it to noise, and denoise that with the text.

    Args:
        composer: with SR600's network, loaded with `overrides={"super_resolution": True}`.
        video: RGB `(B, 3, F, H, W)` in [0, 1].
        text: what the video shows. VGen appends `SUFFIX` to it.
        size: (height, width) of the result in multiples of 8; by default `suggested_size`. The video is cropped to its
            aspect ratio.
        steps: steps of the inversion, and also of the denoising.
        levels: timesteps, of the schedule's 1000, up to which the video is inverted. Far fewer than VGen's 700 make
            the video fade, because its solver multiplies its start by the noise level.
        guidance, rescale: see `vc_core.Sampling`.
        windows: how a long video is split; by default windows of the checkpoint's number of frames.
        tiling: how much is encoded and decoded at a time, see `Tiling`.
        progress: called as `progress(what, done, total)` with "encoding", "inverting", "sampling" and "decoding".

    Returns:
        `(B, 3, F, *size)` float32 in [0, 1], on the CPU.

    Raises:
        UserError: another network, a video of another shape, a value that is out of range, or memory ran out.
    """
    from .encoders.autoencoder import decode

    config = composer.config
    check_super_resolution(config)
    check_steps(steps, levels)
    check_rgb("video", video, "batch", "frames", "height", "width")
    frames, size = video.shape[2], size or suggested_size(video.shape[-2:], config)
    check_size(*size)
    windows = windows or Windows(config.frames)
    with report_out_of_memory(composer.device, composer.advice(len(video), tiling)):
        tokens = encode_texts(composer, {"text": [text], "negative": [negative]}, progress)
        latent = encode_video(composer, video, size, tiling, progress)

        def denoiser(text: Tensor, **guidance: float) -> Denoiser:
            own = GuidedDenoiser(composer.unet, text, tokens["negative"], None, None, stc=(), **guidance)
            return WindowedDenoiser([own] * len(windows.spans(frames)), windows, frames)

        noisy = invert(denoiser(tokens["negative"], guidance=1.0), latent, steps, levels, progress)
        guided = denoiser(tokens["text"], guidance=guidance, rescale=rescale)
        latent = denoise(guided, noisy, steps, levels, progress) / config.autoencoder.scale
        with torch.inference_mode(False):  # so that callers can change the result in place
            return decode(composer.autoencoder, latent, tiling, progress).to("cpu", torch.float32)
