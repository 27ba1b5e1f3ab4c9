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
_ROUNDS = (3, 2)
"""Steps of Newton-Schulz that go without the matrix itself. In two rounds float32 is as accurate as step by step (1e-5
of the norm); in one of five, what it rounds of the Gram matrix is seen (7e-4)."""


def orthogonalize(matrices: torch.Tensor, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The nearest semi-orthogonal matrices, roughly (singular values 0.7 to 1.2), of a batch (N, rows, columns).

    Each step multiplies the matrix by a polynomial of its Gram matrix. All of these commute, so that a round multiplies
    them with each other, as small squares, and with the matrix itself but once.

    Args:
        dtype: of the products; bfloat16 will do, as in the paper.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    tall = x.shape[1] > x.shape[2]
    x = (x.mT if tall else x).to(dtype)
    for steps in _ROUNDS:
        gram, product = x @ x.mT, None
        for step in range(steps):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor if product is None else factor @ product
            if step + 1 < steps:
                gram = factor @ gram @ factor
        x = product @ x
    x = x.to(matrices.dtype)
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two dimensions and more, Adam for the rest, at one learning rate of Adam's magnitude.

    Put embeddings into a group with `orthogonal=False`: their rows are not a matrix, and Adam serves them.

    Args:
        dtype: see `orthogonalize`.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 2e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.dtype = dtype
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "weight_decay": weight_decay, "orthogonal": True}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            matrices = [p for p in parameters if p.dim() >= 2 and group["orthogonal"]]
            others = [p for p in parameters if not (p.dim() >= 2 and group["orthogonal"])]
            if parameters:
                torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
            if matrices:
                self._muon(matrices, group)
            if others:
                self._adam(others, group)

    def _muon(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta, gradients = [self.state[p]["momentum"] for p in parameters], [p.grad for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        directions = torch._foreach_lerp(gradients, momenta, group["momentum"])
        by_shape = defaultdict(list)
        for parameter, direction in zip(parameters, directions, strict=True):
            by_shape[direction.flatten(1).shape].append((parameter, direction.flatten(1)))
        for (rows, columns), pairs in by_shape.items():
            updates = orthogonalize(torch.stack([direction for _, direction in pairs]), self.dtype)
            size = 0.2 * max(rows, columns) ** 0.5
            for (parameter, _), update in zip(pairs, updates, strict=True):
                parameter.add_(update.view(parameter.shape), alpha=-group["lr"] * size)

    def _adam(self, parameters: list[torch.Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not (state := self.state[parameter]):
                state |= {"step": 0, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
            state["step"] += 1
        states, gradients = [self.state[p] for p in parameters], [p.grad for p in parameters]
        means, squares = [s["mean"] for s in states], [s["square"] for s in states]
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1.0 - beta1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1.0 - beta2)
        roots = torch._foreach_div(squares, [1.0 - beta2 ** s["step"] for s in states])
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, 1e-8)
        sizes = [-group["lr"] / (1.0 - beta1 ** s["step"]) for s in states]
        torch._foreach_addcdiv_(parameters, means, roots, sizes)
