"""What the network learns: noise schedule, target, condition dropout (paper, section 3.3)."""

from __future__ import annotations

import torch
from torch import Tensor

from vc_core.conditions import CONDITIONS
from vc_core.config import DiffusionConfig
from vc_core.diffusion.schedule import alphas_cumprod
from vc_core.model.unet import UNet3D

NAMES = ("text", "style", *CONDITIONS)
KEEP_ALL, DROP_ALL, DROP = 0.1, 0.1, 0.5


def draw_kept(batch: int, generator: torch.Generator, lone_motion: float = 0.0) -> dict[str, Tensor]:
    """Which conditions each sample keeps, `(batch,)` bool by name: all with 0.1, none with 0.1, else each with 0.5.

    Drawn per sample. (The released code draws how many of a batch are dropped, which biases small batches.)

    Args:
        lone_motion: share of the third kind whose one sequence is the motion. Depth, sketches and masks show where
            things are; by the paper's rule (0) they are all absent, with motion present, in one sample of twenty.
    """
    fate = torch.rand(batch, generator=generator)
    kept = torch.rand(len(NAMES), batch, generator=generator) >= DROP
    kept = torch.where(fate < KEEP_ALL, True, torch.where(fate < KEEP_ALL + DROP_ALL, False, kept))
    lone = (torch.rand(batch, generator=generator) < lone_motion) & (fate >= KEEP_ALL + DROP_ALL)
    sequences = torch.tensor([name in CONDITIONS and CONDITIONS[name].kind == "temporal" for name in NAMES])
    motion = torch.tensor([name == "motion" for name in NAMES])
    kept = torch.where(lone & sequences[:, None], motion[:, None], kept)
    return dict(zip(NAMES, kept, strict=True))


def moving_weight(latents: Tensor, gain: float) -> Tensor:
    """What each position of each frame counts in the loss, `(B, 1, F, h, w)`, 1 on average over a clip.

    More where the latent differs from the clip's first one: an object covers a tenth of a frame, and where it goes
    is the last thing learned if the background counts nine times as much.
    """
    change = (latents - latents[:, :, :1]).abs().mean(1, keepdim=True)
    weight = 1.0 + gain * (change / 0.5).clamp(max=1.0)
    return weight / weight.mean((2, 3, 4), keepdim=True)


class Objective:
    """The diffusion loss of one batch."""

    def __init__(self, config: DiffusionConfig):
        self.prediction = config.prediction
        self.alphas_cumprod = alphas_cumprod(config).float()

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents and the network's target, both `(B, 4, F, h, w)`, at `timesteps` (B,)."""
        alpha = self.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1, 1)
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        target = noise if self.prediction == "epsilon" else signal * noise - sigma * latents
        return signal * latents + sigma * noise, target


def embed_conditions(
    unet: UNet3D, tensors: dict[str, Tensor], kept: dict[str, Tensor], size: tuple[int, int], frames: int
) -> Tensor:
    """The sum `(B, stc_channels, F, h, w)` of the STC embeddings that each sample keeps.

    `tensors` holds, by name, only the samples that keep the condition, in their order: what is dropped is not even
    made. Spatial conditions have F = 1.
    """
    batch = len(next(iter(kept.values())))
    some = next(unet.parameters())
    total = torch.zeros(batch, unet.config.stc_channels, frames, *size, device=some.device)
    for name, tensor in tensors.items():
        if len(tensor):
            embedding = unet.encode_condition(name, tensor, size).float()
            rows = kept[name].nonzero(as_tuple=True)[0].to(some.device)
            total = total.index_add(0, rows, embedding.expand(-1, -1, frames, -1, -1))
    return total


def make_context(unet: UNet3D, text: Tensor, empty: Tensor, style: Tensor | None, kept: dict[str, Tensor]) -> Tensor:
    """Text and style tokens `(B, 77 [+ 1], D)`: dropped text is the empty prompt, dropped style the token of zeros.

    Args:
        text: `(B, 77, D)`; empty: `(1, 77, D)`.
        style: image embeddings `(B, 1, D)`, or None for a batch without a style token, as when nothing is wired.
    """
    context = torch.where(kept["text"].to(text.device)[:, None, None], text, empty)
    if style is None:
        return context
    style = torch.where(kept["style"].to(style.device)[:, None, None], style, torch.zeros_like(style))
    return torch.cat([context, unet.encode_style(style)], dim=1)
