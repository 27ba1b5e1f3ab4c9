"""`upscale()`: a video at a larger size, by VGen's super-resolution network SR600 (`sr_step_110000_ema.pth`)."""

import torch
from torch import Tensor

from .composer import VideoComposer
from .diffusion.guidance import Denoiser, GuidedDenoiser
from .diffusion.super_resolution import GUIDANCE, LEVELS, RESCALE, STEPS, denoise, invert
from .diffusion.windows import WindowedDenoiser, Windows
from .encoders.autoencoder import Tiling
from .errors import UserError
from .memory import report_out_of_memory
from .pipeline import encode_texts, encode_video
from .progress import Progress

SUFFIX = (
    ", cinematic, High Contrast, highly detailed, Unreal Engine 5, no blur, full length ultra-wide angle shot a "
    "cinematic scene, taken using a Canon EOS R camera, hyper detailed photo - realistic maximum detail, 32k, Color "
    "Grading, portrait Photography, ultra HD, extreme meticulous detailing, skin pore detailing, hyper sharpness, "
    "perfect without deformations, 4k render"
)
NEGATIVE = (
    "worst quality, normal quality, low quality, low res, blurry, text, watermark, logo, banner, extra digits, "
    "cropped, jpeg artifacts, signature, username, error, sketch ,duplicate, ugly, monochrome, horror, geometry, mutation, "
    "disgusting"
)
"""What VGen appends to every prompt of SR600, and its negative prompt (configs/sr600_infer.yaml)."""


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
    """Upscale a video. It is enlarged, inverted to noise and denoised with the text.

    Args:
        composer: a composer with SR600's network, loaded with `overrides={"super_resolution": True}`.
        video: RGB `(1, 3, F, H, W)` in [0, 1].
        text: what the video shows. VGen appends `SUFFIX` to it.
        size: (height, width) of the result in multiples of 8; by default the checkpoint's, 720x1280.
        steps: steps of the inversion, and as many of the denoising.
        levels: timesteps, of the schedule's 1000, up to which the video is inverted. Fewer keep more of it.
        guidance, rescale: see `vc_core.Sampling`.
        windows: how a long video is cut; by default windows of the checkpoint's number of frames.
        tiling: how much is encoded and decoded at a time, see `Tiling`.
        progress: called as `progress(what, done, total)` with "encoding", "inverting", "sampling" and "decoding".

    Returns:
        `(1, 3, F, *size)` float32 in [0, 1], on the CPU.

    Raises:
        UserError: another network, a value out of its range, or too little memory.
    """
    from .encoders.autoencoder import decode

    config = composer.config
    if not config.unet.super_resolution:
        raise UserError("The checkpoint is not SR600. Load VGen's sr_step_110000_ema.pth to upscale a video.")
    if not 1 <= steps <= levels <= 1000:
        raise UserError(f"Upscaling needs 1 <= steps <= levels <= 1000, got {steps} steps and {levels} levels.")
    frames, size = video.shape[2], size or (config.height, config.width)
    windows = windows or Windows(config.frames)
    with report_out_of_memory(composer.device, composer.advice(1, tiling)):
        tokens = encode_texts(composer, {"text": [text], "negative": [negative]}, progress)
        latent = encode_video(composer, video, size, tiling, progress)

        def windowed(**settings) -> Denoiser:
            denoiser = GuidedDenoiser(composer.unet, style=None, no_style=None, stc=(), **settings)
            spans = windows.spans(frames)
            return denoiser if len(spans) == 1 else WindowedDenoiser([denoiser] * len(spans), windows, frames)

        plain = windowed(text=tokens["negative"], negative=tokens["negative"], guidance=1.0)
        noisy = invert(plain, latent, steps, levels, progress)
        latent = denoise(windowed(**tokens, guidance=guidance, rescale=rescale), noisy, steps, levels, progress)
        with torch.inference_mode(False):  # a tensor of inference mode could not be changed in place
            return decode(composer.autoencoder, latent / config.autoencoder.scale, tiling, progress).to(
                "cpu", torch.float32
            )
