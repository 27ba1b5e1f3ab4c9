"""Consistency distillation: a network learns to sample in few steps what its teacher samples in many (VideoLCM, arXiv
2312.09109, after LCM, arXiv 2310.04378), as VGen's public training does.

The student maps a noisy video at any of `LCM_TIMESTEPS` timesteps to a clean one. It learns that its result does not
change along the teacher's path: a guided DDIM step of the teacher leads from one timestep to the previous one, where
the result of the target network, an average of the student, is what the student should have predicted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from training.data.sample import Batch
from training.engine import Learner
from training.frozen import Encoders
from training.objective import Objective, draw_noise, draw_timesteps, moving_weight
from training.recipe import Recipe
from training.step import Inputs, Step
from vc_core.checkpoint.lora import UP
from vc_core.config import DiffusionConfig
from vc_core.diffusion.samplers import LCM_TIMESTEPS, lcm_scaling, lcm_timesteps
from vc_core.families import FAMILIES, VGEN_NEGATIVE
from vc_core.model.unet import UNet3D

SIGMA_DATA = 0.5
"""Of the boundary condition, as in the sampler `lcm`."""


class Consistency:
    """The student's result, the teacher's step, and the loss. Videos and predictions are `(B, C, F, h, w)` in float32,
    timesteps `(B,)`."""

    def __init__(self, config: DiffusionConfig, huber: float):
        self.config, self.huber = config, huber
        self.alphas_cumprod = config.alphas_cumprod.float()
        self.grid = lcm_timesteps(config, LCM_TIMESTEPS).flip(0)
        """The timesteps that the sampler `lcm` chooses from: 19, 39, ..., 999."""

    def draw(self, seed: int, numbers: list[int]) -> tuple[Tensor, Tensor]:
        """Return the timesteps before and after the teacher's step of the samples with these numbers. All of the grid
        are equally frequent; below its first is timestep 0."""
        index = draw_timesteps(seed, numbers, len(self.grid))
        below = torch.cat([self.grid.new_zeros(1), self.grid[:-1]])
        return self.grid[index], below[index]

    def amplitudes(self, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the amplitudes of signal and noise, `(B, 1, 1, 1, 1)`."""
        alpha = self.alphas_cumprod.to(timesteps.device)[timesteps].view(-1, 1, 1, 1, 1)
        return alpha.sqrt(), (1 - alpha).sqrt()

    def separated(self, x: Tensor, prediction: Tensor, timesteps: Tensor) -> tuple[Tensor, Tensor]:
        """Return the clean latent and the noise that a network's prediction says x consists of."""
        (signal, sigma), prediction = self.amplitudes(timesteps), prediction.float()
        if self.config.prediction == "epsilon":
            return (x - sigma * prediction) / signal, prediction
        return signal * x - sigma * prediction, signal * prediction + sigma * x

    def result(self, x: Tensor, prediction: Tensor, timesteps: Tensor) -> Tensor:
        """Return the student's result for x: its clean latent, blended with x itself, so that x is the result at
        timestep 0 (arXiv 2310.04378, equation 9)."""
        scaled = (lcm_scaling(self.config) * timesteps.float()).view(-1, 1, 1, 1, 1)
        square = scaled.square() + SIGMA_DATA**2
        return SIGMA_DATA**2 / square * x + scaled / square.sqrt() * self.separated(x, prediction, timesteps)[0]

    def stepped(self, x: Tensor, prediction: Tensor, timesteps: Tensor, below: Tensor) -> Tensor:
        """Return x after a DDIM step from `timesteps` to `below`."""
        clean, noise = self.separated(x, prediction, timesteps)
        signal, sigma = self.amplitudes(below)
        return signal * clean + sigma * noise

    def losses(self, result: Tensor, target: Tensor, latents: Tensor, gain: float = 0.0) -> Tensor:
        """Return the loss of each sample, `(B,)`: the mean pseudo-Huber distance. For `gain` see `moving_weight`."""
        distance = ((result - target).square() + self.huber**2).sqrt() - self.huber
        if gain:
            distance = distance * moving_weight(latents, gain)
        return distance.mean((1, 2, 3, 4))


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
