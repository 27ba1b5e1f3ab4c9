"""One step of learning: a batch of samples in, the loss out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from training.data.sample import Batch, Sample
from training.data.sampler import generator_for
from training.encoders import Encoders
from training.images import leave_out_for_images
from training.objective import Objective, embed_conditions, make_context
from training.recipe import Recipe
from vc_core.conditions import ANNOTATED, CONDITIONS
from vc_core.errors import UserError
from vc_core.model.unet import UNet3D


@dataclass(frozen=True)
class Outcome:
    """What a step tells of a batch: the mean loss; of each sample its loss and timestep, `(B,)`, without a graph."""

    loss: Tensor
    losses: Tensor
    timesteps: Tensor


@dataclass(frozen=True)
class Inputs:
    """What the network takes of a batch, on its device.

    Attributes:
        latents: `(B, 4, F, h, w)`.
        text: `(B, 77, D)`, the empty prompt's where it is dropped.
        style: embeddings `(B, 1, D)`, zeros where it is dropped; None for a batch without a style token.
        conditions: by name, those of the samples that keep it, `(n, C, F or 1, H, W)`.
    """

    latents: Tensor
    text: Tensor
    style: Tensor | None
    conditions: dict[str, Tensor]


class Step:
    """The loss of a batch. Everything random in it is a function of the recipe's seed and the samples' numbers.

    Args:
        unet: the network that is trained; it is made to leave out its temporal layers for images.
        encoders: make what the samples do not bring.
    """

    def __init__(self, unet: UNet3D, encoders: Encoders, objective: Objective, recipe: Recipe):
        self.unet = leave_out_for_images(unet)
        self.encoders, self.objective, self.recipe = encoders, objective, recipe

    def __call__(self, batch: Batch) -> Outcome:
        """The loss.

        Raises:
            UserError: a sample lacks what it keeps; the message names both.
        """
        given = self.inputs(batch)
        frames, size = given.latents.shape[2], tuple(given.latents.shape[-2:])
        noisy, target, timesteps = self.objective.drawn(given.latents, self.recipe.seed, batch.numbers)
        context = make_context(self.unet, given.text, self.encoders.empty, given.style, batch.kept)
        rows = {name: batch.kept[name].nonzero(as_tuple=True)[0] for name in given.conditions}
        stc = embed_conditions(self.unet, given.conditions, rows, len(given.latents), size, frames)
        prediction = self.unet(noisy, timesteps, context, stc)
        losses = self.objective.losses(prediction, target, given.latents, timesteps)
        return Outcome(losses.mean(), losses.detach(), timesteps)

    @torch.no_grad()
    def inputs(self, batch: Batch) -> Inputs:
        """What the network takes; what a sample drops is not made."""
        # The frozen networks have types of their own.
        with torch.autocast(self.encoders.device.type, enabled=False):
            make = self.encoders
            latents = self._filled(
                batch.samples, "latents", lambda s: s.latents, lambda s: s.video, lambda x: make.latents(torch.stack(x))
            )
            text = make.empty.repeat(len(batch.samples), 1, 1)
            if rows := batch.rows("text"):
                kept = [batch.samples[row] for row in rows]
                text[rows] = self._filled(kept, "text", lambda s: s.text_tokens, lambda s: s.text, make.text)
            conditions = {
                name: self._condition(name, [batch.samples[row] for row in rows])
                for name in CONDITIONS
                if (rows := batch.rows(name))
            }
            return Inputs(latents, text, self._style(batch, text), conditions)

    def _style(self, batch: Batch, text: Tensor) -> Tensor | None:
        # Of the step, so that it does not depend on how its samples are shared among ranks and batches.
        lot = torch.rand((), generator=generator_for(self.recipe.seed, batch.after, "no style"))
        if self.recipe.stage == 1 or lot < self.recipe.loss.no_style:
            return None
        style = text.new_zeros(len(text), 1, text.shape[-1])
        if rows := batch.rows("style"):
            kept = [batch.samples[row] for row in rows]
            style[rows] = self._filled(
                kept, "style", lambda s: s.style_embedding, lambda s: s.style,
                lambda images: torch.cat([self.encoders.style(image[None]) for image in images]),
            )  # fmt: skip
        return style

    def _condition(self, name: str, samples: Sequence[Sample]) -> Tensor:
        def source(sample: Sample) -> Tensor | None:
            if name not in ANNOTATED:
                return None
            frames = sample.video if sample.source is None else sample.source
            return frames if frames is None or CONDITIONS[name].kind == "temporal" else frames[:, :1]

        made = self._filled(
            samples, name, lambda s: s.conditions.get(name), source,
            lambda frames: self.encoders.condition(name, torch.stack(frames)),
        )  # fmt: skip
        (height, width), there = self.encoders.taken_at(name), tuple(made.shape[-2:])
        if there != (height, width):
            raise UserError(f"The sample {samples[0].key} brings '{name}' at {there[1]}x{there[0]} and the network "
                            f"takes it at {width}x{height}: prepare the data set anew.")  # fmt: skip
        return made

    def _filled(
        self,
        samples: Sequence[Sample],
        what: str,
        cached: Callable[[Sample], Tensor | None],
        source: Callable[[Sample], Tensor | str | None],
        make: Callable[[list], Tensor],
    ) -> Tensor:
        """Of each sample what it brings, else what is made of its source, of all those at once; float32."""
        missing = [sample for sample in samples if cached(sample) is None]
        if without := [sample.key for sample in missing if source(sample) is None]:
            raise UserError(f"The sample {without[0]} keeps '{what}', and the data set brings neither it nor what it "
                            "is made of: prepare the data set anew with it.")  # fmt: skip
        made = iter(make([source(sample) for sample in missing]) if missing else ())
        rows = [next(made) if (own := cached(sample)) is None else own for sample in samples]
        return torch.stack([row.to(self.encoders.device, torch.float32) for row in rows])
