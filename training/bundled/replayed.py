"""Steps of learning as CUDA graphs: thousands of small kernels are started by one call, where a host would take several
times as long to start each as a GPU takes to run it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from training.muon import Muon

WARM_UP = 2
"""Steps before a kind of step is captured, for what is made once only, such as the optimizer's state."""

CLIP = 1.0
"""The most that the gradient's norm may be."""


class Replayed:
    """Steps of learning, captured once for each kind of step and replayed ever after.

    Args:
        loss: of a kind of step and its inputs, on the device; what it draws at random it draws from the device's own
            generator. It neither waits for the device nor asks it anything.
    """

    def __init__(self, loss: Callable[[int, Mapping[str, Tensor]], Tensor], model: nn.Module, optimizer: Muon):
        self.loss, self.model, self.optimizer = loss, model, optimizer
        optimizer.make_capturable()
        self._kinds: dict[tuple[int | str, ...], tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Tensor]] = {}
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, kind: int, given: Mapping[str, Tensor]) -> Tensor:
        """One step. Returns the loss and the gradient's norm, `(2,)` on the device, until the next step of the kind.

        Args:
            given: inputs, of the same names and shapes in all steps of a kind; a kind may come with fewer.
        """
        key = (kind, *sorted(given))
        if key not in self._kinds:
            self._kinds[key] = self._capture(kind, {name: tensor.cuda() for name, tensor in given.items()})
        graph, inputs, outcome = self._kinds[key]
        for name, tensor in given.items():
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
