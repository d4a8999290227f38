"""Dropout with the plain model's mask: every lane device draws all channels' numbers and keeps its own.

Shapes: N batch, C all channels, D lane devices, c = C/D own channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes import channels
from lanes.layers.placed import Placed


class _Dropout(Placed):
    """The plain model's mask: every lane device draws all channels' numbers and keeps its own."""

    p: float
    training: bool
    inplace: bool

    def _plain(self, ones: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[N, c, ...] -> [N, c, ...]."""
        x = self.in_plain_order(x)  # in evaluation too: the next layer counts on it
        if not self.training or self.p == 0:
            return x
        mask = self._plain(self._ones(x))[:, self.lane.own(x.shape[1] * self.lane.size)]
        return x.mul_(mask) if self.inplace else x * mask

    def _ones(self, x: Tensor) -> Tensor:
        """Ones of the plain tensor's shape, data type and memory format, which decide the numbers that are drawn."""
        return channels.empty_stored_like(x, x.shape[1] * self.lane.size).fill_(1)


class PlacedDropout(_Dropout, nn.Dropout):
    """A placed ``nn.Dropout``."""

    def _plain(self, ones: Tensor) -> Tensor:
        return F.dropout(ones, self.p, True)


class _ChannelDropout(_Dropout):
    def _ones(self, x: Tensor) -> Tensor:
        spatial = [1] * (x.dim() - 2)
        return torch.ones(x.shape[0], x.shape[1] * self.lane.size, *spatial, dtype=x.dtype, device=x.device)


class PlacedDropout1d(_ChannelDropout, nn.Dropout1d):
    """A placed ``nn.Dropout1d``."""

    def _plain(self, ones: Tensor) -> Tensor:
        return F.dropout1d(ones, self.p, True)


class PlacedDropout2d(_ChannelDropout, nn.Dropout2d):
    """A placed ``nn.Dropout2d``."""

    def _plain(self, ones: Tensor) -> Tensor:
        return F.dropout2d(ones, self.p, True)


class PlacedDropout3d(_ChannelDropout, nn.Dropout3d):
    """A placed ``nn.Dropout3d``."""

    def _plain(self, ones: Tensor) -> Tensor:
        return F.dropout3d(ones, self.p, True)
