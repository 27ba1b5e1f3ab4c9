"""The training objective: noise schedule, target, loss weights, condition dropout (paper, section 3.3).

Every random value of a sample depends only on the run's seed, the sample's number and the name of the value. So it is
the same in any rank and batch.
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
    """Return timesteps `(B,)` in [0, steps), uniform over the run.

    Consecutive samples are spread evenly over the schedule (multiples of the golden ratio, from a random start). This
    makes the loss of a batch less noisy and keeps its mean.
    """
    start = torch.rand((), generator=generator_for(seed, 0, "timesteps"), dtype=torch.float64)
    spread = torch.tensor([number * _GOLDEN % 1 for number in numbers], dtype=torch.float64)
    return ((start + spread) % 1 * steps).long().clamp(max=steps - 1)


def draw_noise(seed: int, numbers: Sequence[int], shape: Sequence[int], offset: float = 0.0) -> Tensor:
    """Return standard normal noise `(B, *shape)`, shape (C, F, h, w), on the CPU.

    `offset` is the strength of extra noise that is constant over each channel of each frame. With it the network learns
    to compose very dark and very bright frames (Guttenberg, "Diffusion with offset noise").
    """
    noise = torch.stack([torch.randn(*shape, generator=generator_for(seed, n, "noise")) for n in numbers])
    if offset == 0.0:
        return noise
    constant = [torch.randn(*shape[:2], 1, 1, generator=generator_for(seed, n, "offset noise")) for n in numbers]
    return noise + offset * torch.stack(constant)


def possible_in(recipe: Recipe, domain: Domain, inputs: Collection[str]) -> set[str]:
    """Return those of `NAMES` that samples of a domain can keep, from the network's `inputs`, see `UNetConfig`: in
    stage 1 only text, in images no motion."""
    possible = {"text"} if recipe.stage == 1 else {*inputs}
    if max(domain.lengths or (domain.frames,)) == 1:
        possible -= {"motion"}
    return possible - set(domain.without)


def kept_of(
    numbers: Sequence[int], seed: int, loss: Loss, stage: int = 2, possible: Collection[str] = NAMES
) -> dict[str, Tensor]:
    """Return which of `NAMES` the samples of a batch keep, `(B,)` bool by name. What is not in `possible` is dropped.

    Stage 1 drops text with probability `loss.text_dropout`. Stage 2 keeps all with 0.1, drops all with 0.1, and
    otherwise drops each with 0.5: independently per sample, or with `loss.dropout` released, per batch of `numbers`.
    """
    if stage == 1:
        uniform = torch.cat([torch.rand(1, generator=generator_for(seed, n, "dropout")) for n in numbers])
        kept = {name: torch.full((len(numbers),), False) for name in NAMES}
        kept["text"] = uniform >= (loss.text_dropout or 0)
    elif loss.dropout == "released":
        kept = draw_kept_released(len(numbers), generator_for(seed, numbers[0], "dropout of a batch"))
    else:
        draws = [draw_kept(1, generator_for(seed, n, "dropout"), loss.lone) for n in numbers]
        kept = {name: torch.cat([draw[name] for draw in draws]) for name in NAMES}
    return {name: keep if name in possible else torch.zeros_like(keep) for name, keep in kept.items()}


def keep_for(recipe: Recipe, domain: Domain, inputs: Collection[str]) -> Callable[[Sequence[int]], dict]:
    """Return `kept_of` for a domain of a recipe and the network's inputs, as a function of a batch's numbers only."""
    possible = possible_in(recipe, domain, inputs)
    keep = partial(kept_of, seed=recipe.seed, loss=recipe.loss, stage=recipe.stage, possible=possible)
    return partial(_with_text, keep) if recipe.distils and "text" in possible else keep


def _with_text(keep: Callable[[Sequence[int]], dict[str, Tensor]], numbers: Sequence[int]) -> dict[str, Tensor]:
    """Keep the text of every sample too: a distilled network samples without guidance, so never without the text."""
    kept = keep(numbers)
    return {**kept, "text": torch.ones_like(kept["text"])}


def draw_kept(
    batch: int, generator: torch.Generator, lone: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Tensor]:
    """Return which conditions each sample keeps, `(batch,)` bool by name: all with probability 0.1, none with 0.1,
    otherwise each with 0.5.

    Args:
        lone: condition -> fraction, of the samples that keep only some conditions, that keep this one without those
            that contain the same information: a sequence without other sequences; a still (single image or sketch) or
            the text without stills and sequences. Depth, sketches and masks show where things are. By the paper's rule
            (no fractions), one sample of twenty has motion without any of these three, and one of eighty has a single
            sketch without other stills and sequences.
    """
    fate = torch.rand(batch, generator=generator)
    kept = torch.rand(len(NAMES), batch, generator=generator) >= DROP
    kept = torch.where(fate < KEEP_ALL, True, torch.where(fate < KEEP_ALL + DROP_ALL, False, kept))
    uniform, start = torch.rand(batch, generator=generator), 0.0
    for name, fraction in lone.items():
        chosen = (start <= uniform) & (uniform < start + fraction) & (fate >= KEEP_ALL + DROP_ALL)
        # The conditions with at least as much information: for a still or the text, all of them.
        still = name == "text" or CONDITIONS[name].kind != "temporal"
        rivals = [other for other, spec in CONDITIONS.items() if still or spec.kind == "temporal"]
        kept[[NAMES.index(other) for other in rivals]] &= ~chosen
        kept[NAMES.index(name)] |= chosen
        start += fraction
    return dict(zip(NAMES, kept, strict=True))


def draw_kept_released(batch: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Like `draw_kept`, by the rule of the released code (tools/videocomposer/unet_sd.py).

    It first draws how many samples of the batch drop all, keep all and drop each condition, then which samples. The
    number that drop a condition is drawn for the complete batch, but applied only to samples that neither keep nor drop
    all. So these drop a condition more often than half of the time: 0.62 in large batches.
    """

    def count(probability: float) -> int:
        return int((torch.rand(batch, generator=generator) < probability).sum())

    dropping, keeping = count(DROP_ALL), count(KEEP_ALL)
    order = torch.randperm(batch, generator=generator)
    rest = order[dropping + keeping :]
    kept = torch.ones(len(NAMES), batch, dtype=torch.bool)
    kept[:, order[:dropping]] = False
    for row in kept:
        number = count(DROP)
        row[rest[torch.randperm(len(rest), generator=generator)[:number]]] = False
    return dict(zip(NAMES, kept, strict=True))


def snr_weights(alphas: Tensor, prediction: str, gamma: float) -> Tensor:
    """Return Min-SNR weights `(steps,)` of the squared error (arXiv 2303.09556): min(SNR, gamma) for the error of the
    clean latent, converted to what the network predicts. The weight is 1 at pure noise, where sampling starts and v is
    the clean latent; Min-SNR would be 0 there."""
    snr = alphas / (1 - alphas)
    weights = snr.clamp(max=gamma) / (snr if prediction == "epsilon" else snr + 1)
    return torch.where(alphas <= LEAST, torch.ones_like(weights), weights)


def moving_weight(latents: Tensor, gain: float) -> Tensor:
    """Return the loss weight of each position of each frame, `(B, 1, F, h, w)`, with a mean of 1 over a clip. It is
    larger where the latent differs from its median over the frames. An object covers a tenth of a frame; if the
    background counts nine times as much, the network learns last where the object moves. All frames have about the same
    weight: compared with the first frame instead, that one would have a third of the mean weight."""
    change = (latents - latents.median(2, keepdim=True).values).abs().mean(1, keepdim=True)
    weight = 1.0 + gain * (change / 0.5).clamp(max=1.0)
    return weight / weight.mean((2, 3, 4), keepdim=True)


class Objective:
    """The diffusion loss: noisy inputs, targets and loss weights."""

    def __init__(self, config: DiffusionConfig, loss: Loss | None = None):
        self.loss, self.prediction = loss or Loss(), config.prediction
        alphas, gamma = config.alphas_cumprod, self.loss.min_snr_gamma
        self.alphas_cumprod = alphas.float()
        self.weights = None if gamma is None else snr_weights(alphas, config.prediction, gamma).float()

    def noised(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the noisy latents and the network's target, both `(B, 4, F, h, w)`, at `timesteps` (B,)."""
        alpha = self.alphas_cumprod.to(latents.device)[timesteps].view(-1, 1, 1, 1, 1)
        signal, sigma = alpha.sqrt(), (1 - alpha).sqrt()
        target = noise if self.prediction == "epsilon" else signal * noise - sigma * latents
        return signal * latents + sigma * noise, target

    def draw(self, latents: Tensor, seed: int, numbers: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return noisy latents, target and timesteps (B,) of the samples with these numbers, on the latents' device."""
        timesteps = draw_timesteps(seed, numbers, len(self.alphas_cumprod)).to(latents.device)
        noise = draw_noise(seed, numbers, latents.shape[1:], self.loss.offset_noise).to(latents)
        return *self.noised(latents, noise, timesteps), timesteps

    def losses(self, prediction: Tensor, target: Tensor, latents: Tensor, timesteps: Tensor) -> Tensor:
        """Return the loss of each sample, `(B,)` in float32: the weighted mean squared error."""
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
    """Return the sum `(B, stc_channels, F, h, w)` of the STC embeddings that each of `batch` samples keeps, in float32.

    Args:
        tensors: condition -> tensor of only the samples that keep it; spatial conditions have F = 1.
        rows: condition -> the indices of these samples, `(n,)`.
        counts: condition -> the weight of each of them, `(n,)`; 1 if missing.
    """
    device = next(unet.parameters()).device
    total = torch.zeros(batch, unet.config.stc_channels, frames, *size, device=device)
    for name, tensor in tensors.items():
        if len(tensor):
            embedding = unet.encode_condition(name, tensor, size).float()
            if name in counts:
                embedding = embedding * counts[name].view(-1, 1, 1, 1, 1)
            indices = rows[name].to(device, non_blocking=True)
            total = total.index_add(0, indices, embedding.expand(-1, -1, frames, -1, -1))
    return total


def make_context(unet: UNet3D, text: Tensor, empty: Tensor, style: Tensor | None, kept: dict[str, Tensor]) -> Tensor:
    """Return text and style tokens `(B, 77 [+ n], D)`. Dropped text is the empty prompt, dropped style is zeros before
    encoding.

    Args:
        text: `(B, 77, D)`; `empty` is `(1, 77, D)`.
        style: image embeddings `(B, 1, D)`, or None for a batch without style tokens, as when no style is connected.
    """

    def chosen(name: str, value: Tensor, otherwise: Tensor) -> Tensor:
        return torch.where(kept[name].to(value.device, non_blocking=True)[:, None, None], value, otherwise)

    context = chosen("text", text, empty)
    if style is None:
        return context
    return torch.cat([context, unet.encode_style(chosen("style", style, torch.zeros_like(style)))], dim=1)
