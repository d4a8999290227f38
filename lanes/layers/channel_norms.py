"""Norms whose statistics are of several channels of one image: of one device's, or summed over all lane devices.

Mean first and then the variance around it, as PyTorch computes them: one sum of squares would lose digits.

Shapes: N batch, C all channels, D lane devices, c = C/D own channels, G groups.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes import crossing
from lanes.layers.placed import Placed, per_channel
from lanes.models import ChannelLayerNorm
from lanes.models.local_response_norm import at_least_float32


def _normalised(x: Tensor, mean_of: Callable[[Tensor], Tensor], eps: float) -> Tensor:
    """``x`` [N, c, ...] without its mean and divided by its deviation, in float32 at least."""
    values = at_least_float32(x)
    centred = values - mean_of(values)
    return centred * torch.rsqrt(mean_of(centred.square()) + eps)


def _result_type(x: Tensor) -> torch.dtype:
    """Autocast computes norms in float32 and leaves their results so; on CPUs it has no such rule."""
    kind = x.device.type
    return torch.float32 if kind != "cpu" and torch.is_autocast_enabled(kind) and x.dtype.itemsize < 4 else x.dtype


class PlacedGroupNorm(Placed, nn.GroupNorm):
    """A placed ``nn.GroupNorm``; its groups may lie on one device each, or reach over several."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> the same shape."""
        x = self.in_plain_order(x)
        weight, bias = self.own(self.weight), self.own(self.bias)
        if not self.sums:
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)
        y = _normalised(x, self._mean_over_group, self.eps)
        y = y if weight is None else y * per_channel(weight, y)
        return (y if bias is None else y + per_channel(bias, y)).to(_result_type(x))

    def _mean_over_group(self, values: Tensor) -> Tensor:
        """[N, c, ...] -> the mean of each own channel's group, [N, c, 1 ...]."""
        own, places = values.shape[1], values.shape[2:].numel()
        channels = torch.arange(own, device=values.device) + self.lane.index * own
        group = channels * self.num_groups // (own * self.lane.size)
        of_channels = values.flatten(1).unflatten(1, (own, -1)).sum(2)  # vectors have one place
        sums = values.new_zeros(len(values), self.num_groups).index_add(1, group, of_channels)
        sums = crossing.sum(sums, self.lane)
        means = sums[:, group] / (own * self.lane.size // self.num_groups * places)
        return means.view(*means.shape, *[1] * (values.dim() - 2))


class PlacedLayerNorm(Placed, nn.LayerNorm):
    """A placed ``nn.LayerNorm`` over the channels and everything behind them."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> the same shape, with channels outermost in memory as PyTorch's: masks depend on that."""
        x = self.in_plain_order(x).contiguous()
        weight, bias = self.own(self.weight), self.own(self.bias)
        if not self.sums:
            return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)
        y = _normalised(x, self._mean_over_image, self.eps)
        y = y if weight is None else y * weight
        return (y if bias is None else y + bias).to(_result_type(x))

    def _mean_over_image(self, values: Tensor) -> Tensor:
        """[N, c, ...] -> [N, 1, ...]."""
        sums = crossing.sum(values.flatten(1).sum(1, keepdim=True), self.lane)
        means = sums / (values.shape[1:].numel() * self.lane.size)
        return means.view(-1, *[1] * (values.dim() - 1))


class PlacedChannelLayerNorm(Placed, ChannelLayerNorm):
    """A placed :class:`lanes.models.ChannelLayerNorm`."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> the same shape."""
        x = self.in_plain_order(x)
        weight, bias = self.own(self.weight), self.own(self.bias)
        y = _normalised(x, self._mean_over_channels, self.eps)
        y = y if weight is None else y * per_channel(weight, y)
        return (y if bias is None else y + per_channel(bias, y)).to(x.dtype)

    def _mean_over_channels(self, values: Tensor) -> Tensor:
        """[N, C or c, ...] -> [N, 1, ...]."""
        if not self.sums:
            return values.mean(1, keepdim=True)
        return crossing.sum(values.sum(1, keepdim=True), self.lane) / (values.shape[1] * self.lane.size)
