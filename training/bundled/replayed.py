"""Training steps as CUDA graphs. One call starts thousands of small kernels; the host would need several times as long
to start each kernel as the GPU needs to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from training.muon import Muon

WARM_UP = 2
"""Steps before a kind of step is captured, which create things such as the optimizer's state."""

CLIP = 1.0
"""Maximum norm of the gradient."""


class Replayed:
    """Training steps, captured once for each kind of step and then replayed.

    Args:
        loss: function of a kind of step and its inputs, on the device. It draws random values from the device's default
            generator, and never waits for the device or reads values from it.
    """

    def __init__(self, loss: Callable[[int, Mapping[str, Tensor]], Tensor], model: nn.Module, optimizer: Muon):
        self.loss, self.model, self.optimizer = loss, model, optimizer
        optimizer.make_capturable()
        self._kinds: dict[tuple[int | str, ...], tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, kind: int, values: Mapping[str, Tensor]) -> Tensor:
        """Run one step. Returns the loss and the gradient's norm, `(2,)` on the device, valid until the next step of
        this kind.

        Args:
            values: inputs, with the same shapes in all steps of a kind. Other sets of names are captured separately.
        """
        key = (kind, *sorted(values))
        if key not in self._kinds:
            self._kinds[key] = self._capture(kind, {name: tensor.cuda() for name, tensor in values.items()})
        graph, inputs, outcome = self._kinds[key]
        for name, tensor in values.items():
            inputs[name].copy_(tensor, non_blocking=True)
        graph.replay()
        return outcome

    def _capture(self, kind: int, inputs: dict[str, Tensor]) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UP):
                outcome = self._learn(kind, inputs).clone()
        torch.cuda.current_stream().wait_stream(aside)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            outcome.copy_(self._learn(kind, inputs))
        return graph, inputs, outcome

    def _learn(self, kind: int, inputs: Mapping[str, Tensor]) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(kind, inputs)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()
        return torch.stack([loss.detach(), norm])
