"""The loss of consistency distillation for one batch of samples, see `training.consistency`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from training.consistency import Consistency
from training.data.sample import Batch
from training.engine import Learner
from training.frozen import Encoders
from training.objective import Objective, draw_noise
from training.recipe import Recipe
from training.step import Inputs, Step
from vc_core.checkpoint.lora import UP
from vc_core.families import FAMILIES, VGEN_NEGATIVE
from vc_core.model.unet import UNet3D


class _Predictor(nn.Module):
    """`Step.predict` as the forward of a module, which `functional_call` requires."""

    def __init__(self, step: Step):
        super().__init__()
        self.unet, self._predict = step.unet, step.predict

    def forward(self, *inputs: Any) -> Tensor:
        return self._predict(*inputs)


class ConsistencyStep(Step):
    """Computes the loss of a batch. `attach` a learner before the first call.

    The teacher is the network as it was at the start, the target network the learner's average. Both are this network
    with other values of the trained parameters, without dropout.

    Args:
        guidance: of the teacher, if the recipe sets none.
    """

    def __init__(self, unet: UNet3D, encoders: Encoders, recipe: Recipe, guidance: float):
        config, chosen = encoders.config, recipe.distillation
        super().__init__(unet, encoders, Objective(config.diffusion, recipe.loss), recipe)
        self.consistency = Consistency(config.diffusion, chosen.huber)
        self.guidance = guidance if chosen.guidance is None else chosen.guidance
        usual = VGEN_NEGATIVE if FAMILIES[0].matches(config.unet) else ""
        self.negative = encoders.text([usual if chosen.negative is None else chosen.negative])
        self._predictor = _Predictor(self)
        self._teacher: dict[str, Tensor] = {}
        self._target: dict[str, Tensor] = {}

    def attach(self, learner: Learner) -> None:
        """Keep the learner's weights, which are still those at the start, as the teacher, and follow its average. The
        teacher of a LoRA is the network without it."""
        self._teacher = _inside(
            {n: torch.zeros_like(p) if n.endswith(UP) else p.detach().clone() for n, p in learner.trained.items()}
        )
        self._target = _inside(learner.average)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the loss and the timestep of each sample, `(B,)`. Raises `UserError` if a sample lacks an input."""
        inputs, consistency, seed = self.inputs(batch), self.consistency, self.recipe.seed
        latents = inputs.latents
        timesteps, below = (t.to(latents.device) for t in consistency.draw(seed, batch.numbers))
        signal, sigma = consistency.amplitudes(timesteps)
        noisy = signal * latents + sigma * draw_noise(seed, batch.numbers, latents.shape[1:]).to(latents)

        result = consistency.result(noisy, self.predict(noisy, timesteps, inputs, batch.kept), timesteps)
        with self._frozen():
            guided = self._guided(noisy, timesteps, inputs, batch.kept)
            earlier = consistency.stepped(noisy, guided, timesteps, below)
            prediction = self._predicted(self._target, earlier, below, inputs, batch.kept)
            target = consistency.result(earlier, prediction, below)
        return consistency.losses(result, target, latents, self.recipe.loss.moving_gain), timesteps

    def _guided(self, noisy: Tensor, timesteps: Tensor, inputs: Inputs, kept: Mapping[str, Tensor]) -> Tensor:
        """Return the teacher's prediction cond + w * (cond - uncond). As in sampling, uncond has the negative text and
        the style of a zero embedding, and the same spatial and temporal conditions."""
        with_all = self._predicted(self._teacher, noisy, timesteps, inputs, kept)
        style = None if inputs.style is None else torch.zeros_like(inputs.style)
        without = replace(inputs, text=self.negative.to(inputs.text).expand_as(inputs.text), style=style)
        kept = {**kept, "text": torch.ones_like(kept["text"])}
        return with_all + self.guidance * (with_all - self._predicted(self._teacher, noisy, timesteps, without, kept))

    def _predicted(self, weights: Mapping[str, Tensor], *inputs: Any) -> Tensor:
        return functional_call(self._predictor, weights, inputs, tie_weights=False).float()

    @contextmanager
    def _frozen(self) -> Iterator[None]:
        training = self.unet.training
        self.unet.eval()
        try:
            with torch.no_grad():
                yield
        finally:
            self.unet.train(training)


def _inside(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"unet.{name}": tensor for name, tensor in weights.items()}
