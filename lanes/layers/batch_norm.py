"""Batch norm over the own channels, and over the batches of all replicas if they share statistics.

Shapes: N batch, C all channels, D lane devices, c = C/D own channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes import crossing
from lanes.layers.placed import Placed, local
from lanes.mesh import Axis
from lanes.models.local_response_norm import at_least_float32


class _BatchNorm(Placed):
    """Batch norm over the own channels; PyTorch's own forward would hand DTensors to the kernel."""

    sync: bool  # statistics over all replicas, not one

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> the same shape."""
        norm: Any = self
        norm._check_input_dim(x)
        x = self.in_plain_order(x)
        momentum = norm.momentum
        learns = norm.training and norm.track_running_stats
        if learns and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            momentum = 1.0 / float(norm.num_batches_tracked) if momentum is None else momentum
        batch_statistics = norm.training or norm.running_mean is None
        mean, var = (local(norm.running_mean), local(norm.running_var)) if learns or not norm.training else (None, None)
        weight, bias = self.own(norm.weight), self.own(norm.bias)
        if self.sync and batch_statistics:
            x = _normalised_over_replicas(x, weight, bias, (mean, var, momentum, norm.eps), self.data)
        else:
            x = F.batch_norm(x, mean, var, weight, bias, batch_statistics, momentum or 0.0, norm.eps)
        return self.way.after(x, self.lane)


def _normalised_over_replicas(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    statistics: tuple[Tensor | None, Tensor | None, float | None, float],
    data: Axis,
) -> Tensor:
    """Batch norm of ``x`` [N, c, ...] over the batches of all replicas, which have equal sizes.

    ``statistics`` are running mean, running variance, momentum and epsilon. Half precision computes in float32.
    """
    running_mean, running_var, momentum, eps = statistics
    values = at_least_float32(x)
    dims = [0, *range(2, x.dim())]
    shape = (1, -1, *[1] * (x.dim() - 2))
    count = x.numel() // x.shape[1] * data.size
    if count == 1:
        raise ValueError(f"batch norm needs more than one value per channel when training, got input {list(x.shape)}")
    mean = crossing.sum(values.sum(dims), data) / count
    centred = values - mean.view(shape)
    var = crossing.sum(centred.square().sum(dims), data) / count
    if running_mean is not None and running_var is not None and momentum is not None:
        with torch.no_grad():
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(var * (count / (count - 1)), momentum)
    values = centred * torch.rsqrt(var + eps).view(shape)
    values = values if weight is None else values * weight.view(shape)
    values = values if bias is None else values + bias.view(shape)
    return values.to(x.dtype)


class PlacedBatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """A placed ``nn.BatchNorm1d``."""


class PlacedBatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """A placed ``nn.BatchNorm2d``."""


class PlacedBatchNorm3d(_BatchNorm, nn.BatchNorm3d):
    """A placed ``nn.BatchNorm3d``."""
