"""One step of learning: a batch of samples in, the loss out."""

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

_FORMS = {"latents": ("latents", "video"), "text": ("text_tokens", "text"), "style": ("style_embedding", "style")}
"""What is no condition -> the fields of a sample that bring it, and what it is made of."""


def leave_out_for_images(unet: UNet3D) -> UNet3D:
    """The network, with its temporal layers left out of batches of single frames, as in the paper's joint training.

    The STC-encoders' temporal layers stay: they see single frames in videos too. It is a property of the network and
    not of a call, as blocks may be computed again in the backward pass.
    """
    for module in unet.modules():
        if isinstance(module, TemporalConv | TemporalTransformer):
            module.without_on_images = True
    return unet


@dataclass(frozen=True)
class Inputs:
    """What the network takes of a batch, on its device."""

    latents: Tensor  # (B, 4, F, h, w)
    text: Tensor  # (B, 77, D), the empty prompt's where it is dropped
    style: Tensor | None  # embeddings (B, 1, D), zeros where it is dropped; None for a batch without a style token
    conditions: dict[str, Tensor]  # by name, those of the samples that keep it, (n, C, F or 1, H, W)


class Step:
    """The loss of a batch. Everything random in it is a function of the recipe's seed and the samples' numbers. For
    images temporal layers are left out; what the samples do not bring the encoders make."""

    def __init__(self, unet: UNet3D, encoders: Encoders, objective: Objective, recipe: Recipe):
        self.unet = leave_out_for_images(unet)
        self.encoders, self.objective, self.recipe = encoders, objective, recipe

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss and the timestep of each sample, `(B,)`. Raises `UserError` where one lacks what it keeps."""
        given = self.inputs(batch)
        frames, size = given.latents.shape[2], tuple(given.latents.shape[-2:])
        noisy, target, timesteps = self.objective.drawn(given.latents, self.recipe.seed, batch.numbers)
        context = make_context(self.unet, given.text, self.encoders.empty, given.style, batch.kept)
        rows = {name: batch.kept[name].nonzero(as_tuple=True)[0] for name in given.conditions}
        stc = embed_conditions(self.unet, given.conditions, rows, len(given.latents), size, frames)
        prediction = self.unet(noisy, timesteps, context, stc)
        return self.objective.losses(prediction, target, given.latents, timesteps), timesteps

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Inputs:
        """What the network takes; what a sample drops is not made."""
        make = self.encoders
        with torch.autocast(make.device.type, enabled=False):  # the frozen networks have types of their own
            latents = self._made("latents", batch.samples)
            text = make.empty.repeat(len(latents), 1, 1)
            style = text.new_zeros(len(text), 1, text.shape[-1])
            # Of the step, so that it does not depend on how its samples are shared among ranks and batches.
            lot = torch.rand((), generator=generator_for(self.recipe.seed, batch.after, "no style"))
            styled = self.recipe.stage == 2 and make.config.unet.style_tokens
            if not styled or lot < self.recipe.loss.no_style:
                style = None
            conditions = {}
            for name in ("text", "style", *CONDITIONS):
                if rows := batch.rows(name):
                    kept = [batch.samples[row] for row in rows]
                    if name in CONDITIONS:
                        conditions[name] = self._made(name, kept)
                    elif (whole := text if name == "text" else style) is not None:
                        whole[rows] = self._made(name, kept)
            return Inputs(latents, text, style, conditions)

    def _made(self, name: str, samples: Sequence[Sample]) -> Tensor:
        """Of each sample what it brings, else what is made of its source, of all those at once; float32."""
        brought = [_brought(name, sample) for sample in samples]
        sources = [_source(name, sample) for sample, own in zip(samples, brought, strict=True) if own is None]
        if any(source is None for source in sources):
            key = next(s.key for s in samples if _brought(name, s) is None and _source(name, s) is None)
            raise UserError(
                f"The sample {key} keeps '{name}', and the data set brings neither it nor what it is made of: prepare "
                "the data set anew with it."
            )
        made = iter(self._make(name, sources) if sources else ())
        rows = [next(made) if own is None else own for own in brought]
        tensor = torch.stack([row.to(self.encoders.device, torch.float32) for row in rows])
        if name in CONDITIONS:
            there, scale = tuple(tensor.shape[-2:]), self.encoders.config.extraction.condition_scale
            if there != (wanted := condition_size(name, self.encoders.size, scale)):
                raise UserError(
                    f"The sample {samples[0].key} brings '{name}' at {there[1]}x{there[0]} and the network takes it at "
                    f"{wanted[1]}x{wanted[0]}: prepare the data set anew."
                )
        return tensor

    def _make(self, name: str, sources: list[Any]) -> Tensor:
        make = self.encoders
        if name == "text":
            return make.text(sources)
        if name == "style":
            return torch.cat([make.style(image[None]) for image in sources])
        return make.latents(torch.stack(sources)) if name == "latents" else make.condition(name, torch.stack(sources))


def _brought(name: str, sample: Sample) -> Tensor | None:
    return getattr(sample, _FORMS[name][0]) if name in _FORMS else sample.conditions.get(name)


def _source(name: str, sample: Sample) -> Tensor | str | None:
    if name in _FORMS:
        return getattr(sample, _FORMS[name][1])
    if name not in ANNOTATED:
        return None
    frames = sample.video if sample.source is None else sample.source
    return frames if frames is None or CONDITIONS[name].kind == "temporal" else frames[:, :1]
