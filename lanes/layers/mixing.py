"""Convolutions and linear layers: cross, compute with the own part of the weight, cross, add the bias.

Shapes: N batch, C all channels, D lane devices, c = C/D own channels.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes import channels, crossing
from lanes.layers.placed import Placed, per_channel
from lanes.mesh import Axis
from lanes.models import GroupedLinear


class Gathering:
    """One all-gather for all dense layers that read the same tensor.

    The first of them to run gathers, the others find what it has gathered; the last lets go of it. Autograd adds up
    their gradients before it goes back through the one exchange. One that runs without gradients, or in another data
    type (autocast), than what was gathered gathers for itself.

    Args:
        readers: how many layers read the tensor.
        strides: of the places that all of them read; None if one of them reads every place.
        source: puts the channels in plain order (`channels.reordered`); None if they are.
    """

    def __init__(self, readers: int, strides: tuple[int, ...] | None, source: tuple[int, ...] | None) -> None:
        self.readers, self.strides, self.source = readers, strides, source
        self._left = 0
        self._read: Tensor | None = None
        self._whole: Tensor | None = None
        self._how: tuple[bool, torch.dtype] | None = None

    def __call__(self, x: Tensor, lane: Axis) -> Tensor:
        """[N, c, ...] -> [N, C, ...] in plain order, at the places of ``strides``."""
        how = (torch.is_grad_enabled(), computed_dtype(x))
        if self._read is not x:
            self._read, self._left, self._whole = x, self.readers, None
        if self._whole is None or self._how != how:
            whole = crossing.gather(as_computed(thin(x, self.strides)), lane)
            self._whole = whole if self.source is None else channels.reordered(whole, self.source)
            self._how = how
        self._left -= 1
        whole = self._whole
        if not self._left:
            self._read = self._whole = None
        return whole

    def __deepcopy__(self, memo: dict[int, Any]) -> "Gathering":
        """Of a copied model the layers share a gathering of their own."""
        memo[id(self)] = Gathering(self.readers, self.strides, self.source)
        copied: Gathering = memo[id(self)]
        return copied


def as_computed(x: Tensor) -> Tensor:
    """``x`` in the data type in which autocast will compute: cross in that one, not in a wider one."""
    return x.to(computed_dtype(x))


def computed_dtype(x: Tensor) -> torch.dtype:
    """The data type in which autocast computes a convolution of ``x``."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64  # as autocast does
    return torch.get_autocast_dtype(kind) if cast else x.dtype


def thin(x: Tensor, strides: tuple[int, ...] | None) -> Tensor:
    """The places of ``x`` that a strided 1x1 convolution reads."""
    if strides is None:
        return x
    places: tuple[Any, ...] = (..., *(slice(None, None, step) for step in strides))
    return x[places]


class _Mixing(Placed):
    weight: Any
    bias: Any
    strides: tuple[int, ...] | None = None  # by which the input is thinned out before it crosses
    gathering: Gathering | None = None

    def _arithmetic(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> [N, C or c, ...], laned or whole as the layer's way says.

        A strided 1x1 convolution reads, and sends, only the places it needs.
        """
        way, weight, bias = self.way, self.own(self.weight), self.own(self.bias)
        assert weight is not None
        x = self._reads(x)
        if not way.bias_after or self.lane.size == 1:
            return way.after(self._arithmetic(x, weight, bias), self.lane)
        x = way.after(self._arithmetic(x, weight, None), self.lane)
        return x if bias is None else x + per_channel(bias.to(x.dtype), x)

    def _reads(self, x: Tensor) -> Tensor:
        """What the arithmetic sees: after the crossing, in plain order."""
        if self.gathering is not None:
            x = self.gathering(x, self.lane)
            return thin(x, self.strides) if self.gathering.strides is None else x
        if "gather" in self.way.crossings:
            x = self.way.before(as_computed(thin(x, self.strides)), self.lane)
            return x if self.source is None else channels.reordered(x, self.source)
        return self.way.before(self.in_plain_order(as_computed(thin(x, self.strides))), self.lane)


class _Convolution(_Mixing):
    def _arithmetic(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)  # type: ignore[attr-defined]


class PlacedConv1d(_Convolution, nn.Conv1d):
    """A placed ``nn.Conv1d``."""


class PlacedConv2d(_Convolution, nn.Conv2d):
    """A placed ``nn.Conv2d``."""


class PlacedConv3d(_Convolution, nn.Conv3d):
    """A placed ``nn.Conv3d``."""


class PlacedGroupedLinear(_Mixing, GroupedLinear):
    """A placed :class:`lanes.models.GroupedLinear`."""

    def _arithmetic(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x.unsqueeze(-1), weight, bias).squeeze(-1)


class PlacedLinear(_Mixing, nn.Linear):
    """A placed ``nn.Linear``."""

    def _arithmetic(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)
