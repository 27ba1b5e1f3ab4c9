"""Muon: momentum with orthogonalised matrices, so that every direction of a weight is learned at once. Also the decay
of a learning rate, and running averages of weights.

Keller Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with the step size matched to
Adam's as in Liu et al., "Muon is scalable for LLM training" (2025). Torch's own Muon supports only 2D parameters, in
bfloat16. Here a convolution (out, in, kh, kw) is the matrix (out, in kh kw), and equal shapes form one batch.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from training.rounding import round_randomly

_NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
_ROUNDS = (3, 2)
"""Newton-Schulz steps per round, in which only the Gram matrix is multiplied. With two rounds float32 is as accurate as
with single steps (1e-5 of the norm); one round of five steps loses accuracy (7e-4). bfloat16 does not work: its
rounding makes small eigenvalues negative, which the polynomials multiply until results are hundreds of times too large.
"""


def falling(phase: float, floor: float) -> float:
    """Return a cosine from 1 to `floor` while `phase` goes from 0 to 1; constant before and after."""
    return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * min(max(phase, 0.0), 1.0)))


@torch.no_grad()
def follow(
    averages: Sequence[Tensor],
    weights: Sequence[Tensor],
    most: float,
    step: int | None,
    generator: torch.Generator | None = None,
) -> None:
    """Update running averages with the weights, in place. Their decay is `most`, or less in the first steps; with
    `step` None always `most`. Averages in bfloat16 are rounded with `generator`, see `training.rounding`."""
    weight = 1.0 - (most if step is None else min(most, (1 + step) / (10 + step)))
    pairs = [(a, w) for a, w in zip(averages, weights, strict=True) if a.dtype != torch.bfloat16]
    if pairs:
        torch._foreach_lerp_(*zip(*pairs, strict=True), weight)
    for average, value in zip(averages, weights, strict=True):
        if average.dtype == torch.bfloat16:
            round_randomly(average, average.float().lerp_(value.float(), weight), generator)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Return roughly the nearest semi-orthogonal matrices (singular values 0.7 to 1.2) of a batch (N, rows, columns).

    Each step multiplies the matrix by a polynomial of its Gram matrix. All of these commute, so a round multiplies the
    small polynomials with each other, and with the large matrix only once.
    """
    a, b, c = _NEWTON_SCHULZ
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp_min(1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for steps in _ROUNDS:
        gram, product = x @ x.mT, None
        for step in range(steps):
            factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            factor.diagonal(dim1=1, dim2=2).add_(a)
            product = factor if product is None else factor @ product
            if step + 1 < steps:
                gram = factor @ gram @ factor
        x = product @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Muon for parameters of two or more dimensions, Adam for the rest, with one learning rate of Adam's magnitude.

    Put embeddings into a group with `orthogonal=False`: their rows are not a matrix, and Adam suits them.
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

    def make_capturable(self) -> None:
        """Store learning rates and step counts as tensors on the parameters' device, so that CUDA graphs read them."""
        for group in self.param_groups:
            device = group["params"][0].device
            group["lr"] = torch.as_tensor(group["lr"], dtype=torch.float32, device=device)
            for state in (self.state[parameter] for parameter in group["params"]):
                if "step" in state:
                    state["step"] = torch.as_tensor(state["step"], dtype=torch.float32, device=device)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            kinds: dict[bool, list[Tensor]] = {True: [], False: []}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    kinds[group["orthogonal"] and parameter.dim() >= 2].append(parameter)
            for parameters, update in ((kinds[True], self._muon), (kinds[False], self._adam)):
                if parameters:
                    torch._foreach_mul_(parameters, 1.0 - group["lr"] * group["weight_decay"])
                    update(parameters, group)

    def _muon(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["momentum"] = torch.zeros_like(parameter)
        momenta, gradients = [self.state[p]["momentum"] for p in parameters], [p.grad for p in parameters]
        torch._foreach_lerp_(momenta, gradients, 1.0 - group["momentum"])
        by_shape = defaultdict(list)
        for pair in zip(parameters, torch._foreach_lerp(gradients, momenta, group["momentum"]), strict=True):
            by_shape[pair[0].flatten(1).shape].append(pair)
        for shape, pairs in by_shape.items():
            changed, directions = zip(*pairs, strict=True)
            updates = orthogonalize(torch.stack([direction.flatten(1) for direction in directions]))
            updates = updates * (group["lr"] * (0.2 * max(shape) ** 0.5))
            torch._foreach_sub_(changed, [u.reshape(p.shape) for p, u in zip(changed, updates, strict=True)])

    def _adam(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr = group["lr"]
        for parameter in parameters:
            if not (state := self.state[parameter]):
                first = torch.zeros_like(lr) if isinstance(lr, Tensor) else 0
                state |= {"step": first, "mean": torch.zeros_like(parameter), "square": torch.zeros_like(parameter)}
            state["step"] += 1
        states, gradients = [self.state[p] for p in parameters], [p.grad for p in parameters]
        means, squares, steps = ([state[name] for state in states] for name in ("mean", "square", "step"))
        beta1, beta2 = group["betas"]
        torch._foreach_lerp_(means, gradients, 1.0 - beta1)
        torch._foreach_lerp_(squares, torch._foreach_mul(gradients, gradients), 1.0 - beta2)
        roots = torch._foreach_div(squares, _corrections(beta2, steps))
        torch._foreach_sqrt_(roots)
        torch._foreach_add_(roots, 1e-8)
        updates = torch._foreach_div(means, roots)
        torch._foreach_div_(updates, _corrections(beta1, steps))
        torch._foreach_mul_(updates, lr)
        torch._foreach_sub_(parameters, updates)


def _corrections(beta: float, steps: list[Any]) -> list[Any]:
    """Return Adam's bias corrections 1 - beta^step, for steps that are numbers or tensors."""
    if not isinstance(steps[0], Tensor):
        return [1.0 - beta**step for step in steps]
    return list(torch._foreach_add(torch._foreach_neg(torch._foreach_pow(beta, steps)), 1.0))
