"""Layers that compute in the dtype of their input, whatever the dtype of their weights."""

import torch.nn.functional as F
from torch import Tensor, nn


def _like(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


class CastWeights:
    """A namespace of layers for `UNet3D(operations=CastWeights)`: weights in fp16, bf16 or fp8, any compute dtype.

    A weight is cast when its layer runs, and the copy is dropped afterwards, so that weights stay small in memory.
    """

    class Linear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, _like(self.weight, x), _like(self.bias, x))

    class Conv2d(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, _like(self.weight, x), _like(self.bias, x))

    class GroupNorm(nn.GroupNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.group_norm(x, self.num_groups, _like(self.weight, x), _like(self.bias, x), self.eps)

    class LayerNorm(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return F.layer_norm(x, self.normalized_shape, _like(self.weight, x), _like(self.bias, x), self.eps)
