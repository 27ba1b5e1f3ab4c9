"""`compose()`: conditions in, a video out. The one path that the command line, training and the tests share."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vc_core.checkpoint import BUNDLED, Checkpoint, load_unet, read_checkpoint
from vc_core.conditions import CONDITIONS, Condition, check_schedule
from vc_core.config import Config
from vc_core.diffusion.guidance import Embedded, GuidedDenoiser
from vc_core.diffusion.samplers import Progress, make_scheduler, sample
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D


@dataclass(frozen=True)
class Style:
    """A style image `(1, 3, H, W)` in [0, 1] and how it is applied; see `Condition` for the rest."""

    image: Tensor
    strength: float = 1.0
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        check_schedule("style", self.strength, self.start, self.end)


@dataclass
class VideoComposer:
    """A checkpoint, ready to compose: the network, the autoencoder and the towers."""

    config: Config
    unet: UNet3D
    autoencoder: Any
    towers: Any
    checkpoint: Checkpoint = field(repr=False)

    @staticmethod
    def load(path: str | Path = BUNDLED, device: str = "cpu", dtype: torch.dtype = torch.float32) -> "VideoComposer":
        """Loads a checkpoint that has all parts, by default the bundled small one.

        Raises:
            UserError: no such file, a truncated or foreign one, or one without an autoencoder or towers.
        """
        from vc_core.encoders.autoencoder import load_autoencoder
        from vc_core.encoders.clip import load_clip, open_clip_config

        checkpoint = read_checkpoint(path)
        if checkpoint.config.autoencoder.layout != "taesd":
            raise UserError(
                f"{path} needs Stable Diffusion's autoencoder and OpenCLIP's towers, which cannot be loaded yet: use a "
                "checkpoint that brings its own, as the bundled one does."
            )
        towers = dict(checkpoint.part("text"))
        towers |= {f"visual.{name}": tensor for name, tensor in checkpoint.part("image").items()}
        autoencoder = load_autoencoder({k: t.float() for k, t in checkpoint.part("vae").items()})
        clip = load_clip(open_clip_config(checkpoint.config.towers), {k: t.float() for k, t in towers.items()})
        for part in (autoencoder.encoder, autoencoder.decoder):
            part.to(device, dtype)
        return VideoComposer(
            checkpoint.config,
            load_unet(checkpoint, dtype=dtype, device=device),
            autoencoder.eval().requires_grad_(False),
            clip.to(device, dtype).eval().requires_grad_(False),
            checkpoint,
        )

    @property
    def device(self) -> torch.device:
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.conv_in.weight.dtype


@torch.inference_mode()
def compose(
    composer: VideoComposer,
    text: str = "",
    *,
    negative: str = "",
    style: Style | None = None,
    conditions: Sequence[Condition] = (),
    frames: int | None = None,
    size: tuple[int, int] | None = None,
    guidance: float | None = None,
    sampler: str = "dpmpp_2m",
    steps: int = 20,
    seed: int = 0,
    chunk: int = 16,
    progress: Progress | None = None,
) -> Tensor:
    """Composes one video.

    Args:
        text, negative: prompts; the empty prompt is no text.
        style: style image; None for no style.
        conditions: single image, single sketch and the sequences, at most one of each name. Sequences must have
            `frames` frames; heights and widths may be any, the STC-encoders bring them to latent size.
        frames, size: of the video, size as (height, width) in multiples of 8; by default as the checkpoint was trained.
        guidance: scale of the classifier-free guidance; 1 is none; by default the checkpoint's.
        sampler: `dpmpp_2m` (DPM-Solver++ 2M, Karras sigmas) or `ddim` (the released loop).
        seed: of the noise, which is drawn on the CPU: the same seed gives the same video on every device.
        chunk: frames that are decoded at a time.
        progress: called as `progress(step, steps)` after every step; raise from it to cancel.

    Returns:
        `(1, 3, F, H, W)` float32 in [0, 1], on the CPU.

    Raises:
        UserError: a size that is no multiple of 8, a condition given twice or of another length than the video, or one
            that the checkpoint has no STC-encoder for.
    """
    from vc_core.encoders.autoencoder import decode

    config = composer.config
    frames = config.frames if frames is None else frames
    height, width = size or (config.height, config.width)
    guidance = config.guidance if guidance is None else guidance
    _check(conditions, frames, height, width)
    if not 0 <= seed < 2**63:
        raise UserError(f"The seed {seed} is not possible: expected a whole number from 0 to {2**63 - 1}.")
    scheduler = make_scheduler(sampler, config.diffusion, steps)
    latent_size = (height // 8, width // 8)

    denoiser = GuidedDenoiser(
        composer.unet,
        *encode_prompts(composer, text, negative),
        style=encode_style(composer, style),
        no_style=style_token(composer, None),
        stc=encode_stc(composer, conditions, latent_size),
        guidance=guidance,
        steps=config.diffusion.steps,
    )
    noise = draw_noise(seed, (1, config.unet.channels, frames, *latent_size))
    latent = sample(denoiser, noise.to(composer.device, composer.dtype), scheduler, progress)
    return decode(composer.autoencoder, latent / config.autoencoder.scale, chunk).float().cpu()


def draw_noise(seed: int, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, float32, drawn on the CPU so that it does not depend on the device."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encode_prompts(composer: VideoComposer, text: str, negative: str) -> tuple[Tensor, Tensor]:
    """Tokens of the prompt and of the negative prompt, each `(1, 77, D)`."""
    from vc_core.encoders.clip import encode_text

    tokens = encode_text(composer.towers, [text, negative]).to(composer.device, composer.dtype)
    return tokens[:1], tokens[1:]


def encode_style(composer: VideoComposer, style: Style | None) -> Embedded | None:
    """The style token with its strength and schedule; None where no style is wired."""
    if style is None:
        return None
    return Embedded(style_token(composer, style.image), style.strength, style.start, style.end)


def style_token(composer: VideoComposer, image: Tensor | None) -> Tensor:
    """The style token `(1, 1, D)` of an image `(1, 3, H, W)` in [0, 1]; of a zero embedding where there is none."""
    from vc_core.encoders.clip import encode_image

    if image is None:
        embedding = torch.zeros(1, 1, composer.config.unet.context_dim)
    else:
        embedding = encode_image(composer.towers, image.to(composer.device))
    return composer.unet.encode_style(embedding.to(composer.device, composer.dtype))


def encode_stc(composer: VideoComposer, conditions: Sequence[Condition], size: tuple[int, int]) -> list[Embedded]:
    """The STC embeddings of the conditions that have any effect, encoded once."""
    return [
        Embedded(
            composer.unet.encode_condition(c.name, c.tensor.to(composer.device, composer.dtype), size),
            c.strength,
            c.start,
            c.end,
        )
        for c in conditions
        if c.strength != 0.0
    ]


def _check(conditions: Sequence[Condition], frames: int, height: int, width: int) -> None:
    if frames < 1:
        raise UserError(f"{frames} frames cannot be composed: expected at least 1.")
    if height < 8 or width < 8 or height % 8 or width % 8:
        raise UserError(f"The size {width}x{height} is not possible: expected multiples of 8, for instance 256x256.")
    seen = set()
    for condition in conditions:
        if condition.name in seen:
            raise UserError(f"Condition '{condition.name}' was given twice: give it once.")
        seen.add(condition.name)
        expected = 1 if CONDITIONS[condition.name].kind == "spatial" else frames
        if condition.tensor.shape[2] != expected:
            raise UserError(
                f"Condition '{condition.name}' has {condition.tensor.shape[2]} frames and the video {frames}: expected "
                f"{expected} for it; extract it with the video's frame plan."
            )
