"""Training with weights in bfloat16, in half the memory.

A bfloat16 has 8 significant bits, so most steps of an optimizer are smaller than the distance to the next value, and
rounding to the nearest one would lose them. Stochastic rounding goes up or down at random, with probabilities that make
the result right on average: "Revisiting BFloat16 Training", Zamirai et al. (arXiv 2010.06192).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from vc_core.checkpoint.lora import DOWN, UP


def store_in_bf16(unet: nn.Module) -> None:
    """Convert the weights of all matrices and convolutions, in place. Norms, biases and LoRAs are small, and stay."""
    for name, parameter in unet.named_parameters():
        if parameter.dim() > 1 and not name.endswith((DOWN, UP)):
            parameter.data = parameter.data.bfloat16()


@torch.no_grad()
def round_randomly(target: Tensor, source: Tensor, generator: torch.Generator | None = None) -> None:
    """Copy a float32 tensor into a bfloat16 one, each value to one of its two neighbours, at random."""
    # A bfloat16 is the upper half of a float32. Adding a random lower half carries with the right probability.
    lower = torch.randint(1 << 16, source.shape, generator=generator, device=source.device, dtype=torch.int32)
    target.copy_(lower.add_(source.view(torch.int32)).bitwise_and_(-1 << 16).view(torch.float32))


def in_full(tensor: Tensor) -> Tensor:
    """Return a bfloat16 tensor in float32, any other unchanged."""
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


class RoundedAdamW(torch.optim.Optimizer):
    """AdamW that computes in float32, and stores the averages of a bfloat16 parameter in bfloat16.

    Args:
        generator: for rounding, on the parameters' device. Ranks with copies of the weights must seed it equally.
    """

    def __init__(
        self,
        params: Iterable[Any],
        generator: torch.Generator,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})
        self.generator = generator

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            settings = {"lr": group["lr"], "weight_decay": group["weight_decay"], "beta1": beta1, "beta2": beta2}
            for parameter in (p for p in group["params"] if p.grad is not None):
                if not (state := self.state[parameter]):
                    state["step"] = torch.zeros((), device=parameter.device)
                    state |= {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                stored = (parameter, state["exp_avg"], state["exp_avg_sq"])
                weight, mean, square = exact = [in_full(tensor) for tensor in stored]  # float32 is not copied
                adamw(
                    [weight], [in_full(parameter.grad)], [mean], [square], [], [state["step"]],
                    fused=True, amsgrad=False, eps=1e-8, maximize=False, **settings,
                )  # fmt: skip
                for tensor, value in zip(stored, exact, strict=True):
                    if tensor.dtype == torch.bfloat16:
                        round_randomly(tensor, value, self.generator)
