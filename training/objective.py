"""What the network learns: noise schedule, target, weights, condition dropout (paper, section 3.3).

Everything random of a sample is a function of the run's seed, the sample's number and what is drawn, so that it is the
same whichever rank and batch the sample is in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from types import MappingProxyType

import torch
from torch import Tensor

from training.data.order import generator_for
from training.recipe import Domain, Loss, Recipe
from vc_core.conditions import CONDITIONS
from vc_core.config import LEAST, DiffusionConfig
from vc_core.model.unet import UNet3D

NAMES = ("text", "style", *CONDITIONS)
KEEP_ALL, DROP_ALL, DROP = 0.1, 0.1, 0.5
_GOLDEN = (5**0.5 - 1) / 2


def draw_timesteps(seed: int, numbers: Sequence[int], steps: int) -> Tensor:
    """Timesteps `(B,)` in [0, steps), uniform over the run.

    Those of samples that follow each other are spread evenly over the schedule (multiples of the golden ratio, from a
    start that the seed gives), which makes the loss of a batch less noisy: its mean is the same.
    """
    start = torch.rand((), generator=generator_for(seed, 0, "timesteps"), dtype=torch.float64)
    spread = torch.tensor([number * _GOLDEN % 1 for number in numbers], dtype=torch.float64)
    return ((start + spread) % 1 * steps).long().clamp(max=steps - 1)


def draw_noise(seed: int, numbers: Sequence[int], shape: Sequence[int], offset: float = 0.0) -> Tensor:
    """Standard normal noise `(B, *shape)`, shape (C, F, h, w), on the CPU.

    `offset` is the strength of a further noise that is constant over each channel of each frame, by which the network
    learns to make pictures that are dark or bright as a whole (Guttenberg, "Diffusion with offset noise").
    """
    noise = torch.stack([torch.randn(*shape, generator=generator_for(seed, n, "noise")) for n in numbers])
    if offset == 0.0:
        return noise
    constant = [torch.randn(*shape[:2], 1, 1, generator=generator_for(seed, n, "offset noise")) for n in numbers]
    return noise + offset * torch.stack(constant)


def possible_in(recipe: Recipe, domain: Domain, inputs: Collection[str]) -> set[str]:
    """Those of `NAMES` that a sample of a recipe's domain can keep, of its network's `inputs`, see `UNetConfig`: in
    stage 1 the text alone, in an image no motion."""
    possible = {"text"} if recipe.stage == 1 else {*inputs}
    if max(domain.lengths or (domain.frames,)) == 1:
        possible -= {"motion"}
    return possible - set(domain.without)


def kept_of(
    numbers: Sequence[int], seed: int, loss: Loss, stage: int = 2, possible: Collection[str] = NAMES
) -> dict[str, Tensor]:
    """Which of `NAMES` the samples of a batch keep, `(B,)` bool by name. What is not `possible` is dropped.

    Stage 1 drops the text with `loss.text_dropout`. Stage 2 keeps all with 0.1, drops all with 0.1 and else drops each
    with 0.5: for each sample by itself, or, by the rule `released`, for the batch that `numbers` is.
    """
    if stage == 1:
        lots = torch.cat([torch.rand(1, generator=generator_for(seed, n, "dropout")) for n in numbers])
        kept = {name: torch.full((len(numbers),), False) for name in NAMES} | {"text": lots >= (loss.text_dropout or 0)}
    elif loss.dropout == "released":
        kept = draw_kept_released(len(numbers), generator_for(seed, numbers[0], "dropout of a batch"))
    else:
        one = [draw_kept(1, generator_for(seed, n, "dropout"), loss.lone) for n in numbers]
        kept = {name: torch.cat([each[name] for each in one]) for name in NAMES}
    return {name: keep if name in possible else torch.zeros_like(keep) for name, keep in kept.items()}


def keep_for(recipe: Recipe, domain: Domain, inputs: Collection[str]) -> Callable[[Sequence[int]], dict]:
    """`kept_of` for a domain of a recipe and the inputs of the network: a function of a batch's numbers alone."""
    possible = possible_in(recipe, domain, inputs)
    return partial(kept_of, seed=recipe.seed, loss=recipe.loss, stage=recipe.stage, possible=possible)


def draw_kept(
    batch: int, generator: torch.Generator, lone: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Tensor]:
    """Which conditions each sample keeps, `(batch,)` bool by name: all with 0.1, none with 0.1, else each with 0.5.

    Args:
        lone: shares of the third kind that keep this condition and none that would tell as much: beside a sequence no
            other sequence, beside a still (single image or sketch) neither the other still nor a sequence, beside the
            text neither. Depth, sketches and masks show where things are: by the paper's rule (no shares) motion is
            kept and they are all absent in one sample of twenty, and a single sketch is all that shows it in one of
            eighty.
    """
    fate = torch.rand(batch, generator=generator)
    kept = torch.rand(len(NAMES), batch, generator=generator) >= DROP
    kept = torch.where(fate < KEEP_ALL, True, torch.where(fate < KEEP_ALL + DROP_ALL, False, kept))
    lot, start = torch.rand(batch, generator=generator), 0.0
    for name, share in lone.items():
        chosen = (start <= lot) & (lot < start + share) & (fate >= KEEP_ALL + DROP_ALL)
        # Those that tell as much as this one, or more: all of the conditions, beside a still or the text.
        still = name == "text" or CONDITIONS[name].kind != "temporal"
        rivals = [other for other, spec in CONDITIONS.items() if still or spec.kind == "temporal"]
        kept[[NAMES.index(other) for other in rivals]] &= ~chosen
        kept[NAMES.index(name)] |= chosen
        start += share
    return dict(zip(NAMES, kept, strict=True))


def draw_kept_released(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """As `draw_kept`, by the rule of the released code (tools/videocomposer/unet_sd.py).

    How many samples drop all, keep all and drop one condition is drawn for the whole batch, then which. The number
    that drop a condition is a share of the whole batch but is taken from those that neither drop nor keep all, so that
    these drop more than half: 0.62 of the time in large batches.
    """

    def count(share: float) -> int:
        return int((torch.rand(batch, generator=generator) < share).sum())

    none, every = count(DROP_ALL), count(KEEP_ALL)
    order = torch.randperm(batch, generator=generator)
    rest = order[none + every :]
    kept = torch.ones(len(NAMES), batch, dtype=torch.bool)
    kept[:, order[:none]] = False
    for row in kept:
        dropped = count(DROP)
        row[rest[torch.randperm(len(rest), generator=generator)[:dropped]]] = False
    return dict(zip(NAMES, kept, strict=True))


def snr_weights(alphas: Tensor, prediction: str, gamma: float) -> Tensor:
    """Min-SNR weights `(steps,)` of the squared error (arXiv 2303.09556): min(SNR, gamma), as a weight of the clean
    latent's error, in terms of what the network predicts; 1 of noise alone, where sampling begins and v is the clean
    latent, which no minimum would count."""
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    return torch.where(alphas <= LEAST, torch.ones_like(weights), weights)


def moving_weight(latents: Tensor, gain: float) -> Tensor:
    """What each position of each frame counts in the loss, `(B, 1, F, h, w)`, 1 on average over a clip: more where the
    latent differs from the clip's first one. An object covers a tenth of a frame, and where it goes is the last thing
    learned if the background counts nine times as much."""
    change = (latents - latents[:, :, :1]).abs().mean(1, keepdim=True)
    weight = 1.0 + gain * (change / 0.5).clamp(max=1.0)
    return weight / weight.mean((2, 3, 4), keepdim=True)


class Objective:
    """The diffusion loss: what a sample becomes, what is predicted of it, what an error counts."""

    def __init__(self, config: DiffusionConfig, loss: Loss | None = None):
        self.loss, self.prediction = loss or Loss(), config.prediction
        alphas, gamma = config.alphas_cumprod, self.loss.min_snr_gamma
        self.alphas_cumprod = alphas.float()
        self.weights = None if gamma is None else snr_weights(alphas, config.prediction, gamma).float()

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """The noisy latents and the network's target, both `(B, 4, F, h, w)`, at `timesteps` (B,)."""
        alpha = self.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1, 1)
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        target = noise if self.prediction == "epsilon" else signal * noise - sigma * latents
        return signal * latents + sigma * noise, target

    def drawn(self, latents: Tensor, seed: int, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Noisy latents, target and timesteps (B,) of samples of these numbers, on the latents' device."""
        timesteps = draw_timesteps(seed, numbers, len(self.alphas_cumprod)).to(latents.device)
        noise = draw_noise(seed, numbers, latents.shape[1:], self.loss.offset_noise).to(latents)
        return *self.noised(latents, noise, timesteps), timesteps

    def losses(self, prediction: Tensor, target: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """What each sample's error counts, `(B,)` in float32: the mean squared error, weighted."""
        error = (prediction.float() - target.float()).square()
        if self.loss.moving_gain:
            error = error * moving_weight(latents, self.loss.moving_gain)
        losses = error.mean((1, 2, 3, 4))
        return losses if self.weights is None else losses * self.weights.to(losses.device)[timesteps]


def embed_conditions(
    unet: UNet3D,
    tensors: Mapping[str, Tensor],
    rows: Mapping[str, Tensor],
    batch: int,
    size: tuple[int, int],
    frames: int,
    counts: Mapping[str, Tensor] = MappingProxyType({}),
) -> Tensor:
    """The sum `(B, stc_channels, F, h, w)` of the STC embeddings that each of `batch` samples keeps, in float32.

    Args:
        tensors: by name, only of the samples that keep the condition; spatial ones have F = 1.
        rows: by name, which samples these are, `(n,)`.
        counts: by name, what each of them counts, `(n,)`; 1 where it is not there.
    """
    some = next(unet.parameters())
    total = torch.zeros(batch, unet.config.stc_channels, frames, *size, device=some.device)
    for name, tensor in tensors.items():
        if len(tensor):
            embedding = unet.encode_condition(name, tensor, size).float()
            if name in counts:
                embedding = embedding * counts[name].view(-1, 1, 1, 1, 1)
            there = rows[name].to(some.device, non_blocking=True)
            total = total.index_add(0, there, embedding.expand(-1, -1, frames, -1, -1))
    return total


def make_context(unet: UNet3D, text: Tensor, empty: Tensor, style: Tensor | None, kept: dict[str, Tensor]) -> Tensor:
    """Text and style tokens `(B, 77 [+ n], D)`: dropped text is the empty prompt, dropped style the tokens of zeros.

    `text` is `(B, 77, D)`, `empty` `(1, 77, D)`; `style` image embeddings `(B, 1, D)`, or None for a batch without
    style tokens, as when nothing is wired.
    """

    def chosen(name: str, given: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(kept[name].to(given.device, non_blocking=True)[:, None, None], given, otherwise)

    context = chosen("text", text, empty)
    if style is None:
        return context
    return torch.cat([context, unet.encode_style(chosen("style", style, torch.zeros_like(style)))], dim=1)
