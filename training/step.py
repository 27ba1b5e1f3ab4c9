"""The loss of one batch of samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from training.data.order import generator_for
from training.data.sample import Batch, Sample
from training.frozen import Encoders
from training.objective import Objective, embed_conditions, make_context
from training.recipe import Recipe
from vc_core.conditions import ANNOTATED, CONDITIONS, condition_size
from vc_core.errors import UserError
from vc_core.model.blocks import TemporalConv, TemporalTransformer
from vc_core.model.unet import UNet3D

_FIELDS = {"latents": ("latents", "video"), "text": ("text_tokens", "text"), "style": ("style_embedding", "style")}
"""Inputs other than conditions -> the sample's fields with the encoded input, and with its source."""


def leave_out_for_images(unet: UNet3D) -> UNet3D:
    """Make the network skip its temporal layers for batches of single frames, as in the paper's joint training.

    The STC-encoders keep their temporal layers, because they see single frames in videos too. This is a property of the
    network and not of a call, because blocks may be recomputed in the backward pass.
    """
    for module in unet.modules():
        if isinstance(module, TemporalConv | TemporalTransformer):
            module.without_on_images = True
    return unet


@dataclass(frozen=True)
class Inputs:
    """Inputs of the network for a batch, on its device."""

    latents: Tensor  # (B, 4, F, h, w)
    text: Tensor  # tokens (B, 77, D); dropped text is the empty prompt
    style: Tensor | None  # embeddings (B, 1, D), zeros if dropped; None for a batch without style tokens
    conditions: dict[str, Tensor]  # name -> (n, C, F or 1, H, W), of the samples that keep it


class Step:
    """Computes the loss of a batch. All random values of the objective depend only on the recipe's seed and the
    samples' numbers. The encoders compute what the samples do not contain."""

    def __init__(self, unet: UNet3D, encoders: Encoders, objective: Objective, recipe: Recipe):
        self.unet = leave_out_for_images(unet)
        self.encoders, self.objective, self.recipe = encoders, objective, recipe

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the timestep of each sample, `(B,)`. Raises `UserError` if a sample lacks an input."""
        inputs = self.inputs(batch)
        noisy, target, timesteps = self.objective.draw(inputs.latents, self.recipe.seed, batch.numbers)
        prediction = self.predict(noisy, timesteps, inputs, batch.kept)
        return self.objective.losses(prediction, target, inputs.latents, timesteps), timesteps

    def predict(self, noisy: Tensor, timesteps: Tensor, inputs: Inputs, kept: dict[str, Tensor]) -> Tensor:
        """Return the network's prediction for noisy latents `(B, 4, F, h, w)`; `kept` as in a batch."""
        frames, size = noisy.shape[2], tuple(noisy.shape[-2:])
        context = make_context(self.unet, inputs.text, self.encoders.empty, inputs.style, kept)
        rows = {name: kept[name].nonzero(as_tuple=True)[0] for name in inputs.conditions}
        stc = embed_conditions(self.unet, inputs.conditions, rows, len(noisy), size, frames)
        return self.unet(noisy, timesteps, context, stc)

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Inputs:
        """Return the network's inputs. Dropped inputs are not computed."""
        encoders = self.encoders
        with torch.autocast(encoders.device.type, enabled=False):  # the frozen networks have their own dtypes
            latents = self._collected("latents", batch.samples)
            text = encoders.empty.repeat(len(latents), 1, 1)
            style = text.new_zeros(len(text), 1, text.shape[-1])
            # Drawn per step, so that it does not depend on how samples are split among ranks and batches.
            no_style_draw = torch.rand((), generator=generator_for(self.recipe.seed, batch.after, "no style"))
            styled = self.recipe.stage == 2 and encoders.config.unet.style_tokens
            if not styled or no_style_draw < self.recipe.loss.no_style:
                style = None
            conditions = {}
            for name in ("text", "style", *CONDITIONS):
                if rows := batch.rows(name):
                    samples = [batch.samples[row] for row in rows]
                    if name in CONDITIONS:
                        conditions[name] = self._collected(name, samples)
                    elif (tensor := text if name == "text" else style) is not None:
                        tensor[rows] = self._collected(name, samples)
            return Inputs(latents, text, style, conditions)

    def _collected(self, name: str, samples: Sequence[Sample]) -> Tensor:
        """Return an input of some samples, float32: stored in the sample, or encoded from its source, all at once."""
        stored = [_stored(name, sample) for sample in samples]
        sources = [_source(name, sample) for sample, tensor in zip(samples, stored, strict=True) if tensor is None]
        if any(source is None for source in sources):
            key = next(s.key for s in samples if _stored(name, s) is None and _source(name, s) is None)
            raise UserError(
                f"Sample {key} requires '{name}', but the data set contains neither it nor a source for it. Prepare "
                f"the data set again with {name}."
            )
        encoded = iter(self._encode(name, sources) if sources else ())
        rows = [next(encoded) if tensor is None else tensor for tensor in stored]
        tensor = torch.stack([row.to(self.encoders.device, torch.float32) for row in rows])
        if name in CONDITIONS:
            size, scale = tuple(tensor.shape[-2:]), self.encoders.config.extraction.condition_scale
            if size != (expected := condition_size(name, self.encoders.size, scale)):
                raise UserError(
                    f"Sample {samples[0].key} contains '{name}' at {size[1]}x{size[0]}, but the network expects "
                    f"{expected[1]}x{expected[0]}. Prepare the data set again."
                )
        return tensor

    def _encode(self, name: str, sources: list[Any]) -> Tensor:
        """Return an input of n samples from its sources, `(n, ...)`: prompts for text, images `(3, H, W)` for style,
        frames `(3, F, H, W)` in [0, 1] for latents and conditions. Raises `UserError` if the run has no network for
        it."""
        encoders = self.encoders
        if name == "text":
            return encoders.text(sources)
        if name == "style":
            return torch.cat([encoders.style(image[None]) for image in sources])
        stacked = torch.stack(sources)
        return encoders.latents(stacked) if name == "latents" else encoders.condition(name, stacked)


def _stored(name: str, sample: Sample) -> Tensor | None:
    return getattr(sample, _FIELDS[name][0]) if name in _FIELDS else sample.conditions.get(name)


def _source(name: str, sample: Sample) -> Tensor | str | None:
    if name in _FIELDS:
        return getattr(sample, _FIELDS[name][1])
    if name not in ANNOTATED:
        return None
    frames = sample.video if sample.source is None else sample.source
    return frames if frames is None or CONDITIONS[name].kind == "temporal" else frames[:, :1]
