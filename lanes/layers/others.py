"""Placed layers with a factor per channel, those that re-order channels, and local response norm.

Shapes: N batch, C all channels, D lane devices, c = C/D own channels.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes import crossing
from lanes.layers.placed import Placed, per_channel
from lanes.models import Concat, LayerScale, LocalResponseNorm


class PlacedPReLU(Placed, nn.PReLU):
    """A placed ``nn.PReLU``: a slope for each channel stays, one slope for all is shared by all lanes."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> the same shape."""
        weight = self.own(self.weight)
        assert weight is not None
        if self.way_name == "shared":  # its gradient is summed over lanes: without it the copies would drift apart
            return F.prelu(x, crossing.enter(weight, self.lane))
        return F.prelu(self.in_plain_order(x), weight)


class PlacedLayerScale(Placed, LayerScale):
    """A placed :class:`lanes.models.LayerScale`."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> the same shape."""
        weight = self.own(self.weight)
        assert weight is not None
        return self.in_plain_order(x) * per_channel(weight, x)


class PlacedLocalResponseNorm(Placed, LocalResponseNorm):
    """A placed :class:`lanes.models.LocalResponseNorm`: the plain one on the own lanes."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> the same shape."""
        return super().forward(self.in_plain_order(x))


class PlacedChannelShuffle(Placed, nn.ChannelShuffle):
    """A placed ``nn.ChannelShuffle``: an all-to-all, or left to the next layer (its way passes on)."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, c, ...] -> [N, c, ...]."""
        shuffled = self.in_plain_order(x) if "shuffle" in self.way.crossings else x
        return x.clone() if shuffled is x else shuffled  # never x itself: the next layer may work in place


class PlacedConcat(Placed, Concat):
    """A placed :class:`lanes.models.Concat`: each device joins its own channels, which are then put in plain order."""

    def forward(self, *tensors: Tensor) -> Tensor:
        """[N, c1, ...], [N, c2, ...], ... -> [N, c1 + c2 + ..., ...]."""
        joined = torch.cat(tensors, 1)
        return self.in_plain_order(joined) if "shuffle" in self.way.crossings else joined
