"""Muon: momentum whose matrices are orthogonalised, so that every direction of a weight is learned at once.

Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the step size matched to
Adam's as in Liu et al., "Muon is scalable for LLM training" (2025). Torch's own Muon takes 2D parameters only;
here a convolution (out, in, kh, kw) counts as the matrix (out, in kh kw), and matrices of one shape go as one batch.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)


def orthogonalize(matrices: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly (singular values 0.7 to 1.2), of a batch (N, rows, columns)."""
    a, b, c = _NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two dimensions and more, Adam for the rest, at one learning rate of Adam's magnitude.

    Put embeddings into a group with `orthogonal=False`: their rows are not a matrix, and Adam serves them.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "orthogonal": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            by_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                parameter.mul_(1.0 - group["lr"] * group["weight_decay"])
                if parameter.dim() >= 2 and group["orthogonal"]:
                    by_shape[parameter.shape].append(parameter)
                else:
                    self._adam(parameter, group)
            for parameters in by_shape.values():
                self._muon(parameters, group)

    def _muon(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        directions = []
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1.0 - group["momentum"])
            directions.append(parameter.grad.lerp(state["momentum"], group["momentum"]).flatten(1))
        updates = orthogonalize(torch.stack(directions))
        size = 0.2 * max(updates.shape[1:]) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * size)

    def _adam(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"], state["mean"], state["square"] = 0, torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        state["mean"].lerp_(parameter.grad, 1.0 - beta1)
        state["square"].lerp_(parameter.grad.square(), 1.0 - beta2)
        mean = state["mean"] / (1.0 - beta1 ** state["step"])
        root = (state["square"] / (1.0 - beta2 ** state["step"])).sqrt_().add_(1e-8)
        parameter.addcdiv_(mean, root, value=-group["lr"])
