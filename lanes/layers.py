"""The placed layers: each computes on its own channels and crosses where its way says.

Placing changes the class of a plain layer and the storage of its parameters, nothing else: names, attributes and hooks
stay. Parameters and channel buffers are DTensors on the ("data", "lane") mesh; the arithmetic sees only ``to_local()``.

Shapes: N batch, C all channels, D lane devices, c = C/D own channels.

Kept out: the crossings themselves (crossing.py), who holds which part of a weight (placement.py).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lanes import crossing
from lanes.mesh import Axis
from lanes.models import GroupedLinear, LocalResponseNorm
from lanes.rules import skips
from lanes.ways import WAYS, Way


def local(tensor: Tensor | None) -> Tensor | None:
    """This process's part of a parameter or buffer."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Placed:
    """What all placed layers know: their way, and their place on the axes of the mesh."""

    way_name: str
    lane: Axis
    data: Axis

    def own(self, parameter: Tensor | None) -> Tensor | None:
        """This process's part of a parameter; its gradient is averaged over the replicas, if there are several."""
        part = local(parameter)
        return part if part is None or self.data.size == 1 else crossing.replicated(part, self.data)

    @property
    def way(self) -> Way:
        """How the layer is placed."""
        return WAYS[self.way_name]

    def extra_repr(self) -> str:
        """The plain layer's, and how it is placed."""
        plain = super().extra_repr()  # type: ignore[misc]
        placed = f"{self.way_name} on {self.lane.size} lane device{'s' if self.lane.size > 1 else ''}"
        return f"{plain}, {placed}" if plain else placed


class _Mixing(Placed):
    """Convolutions and linear layers: cross, compute with the own part of the weight, cross, add the bias."""

    weight: Any
    bias: Any

    def _arithmetic(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> [N, C or c, ...], laned or whole as the layer's way says."""
        way, weight, bias = self.way, self.own(self.weight), self.own(self.bias)
        assert weight is not None
        x = way.before(_as_computed(x), self.lane)
        if not way.bias_after:
            return way.after(self._arithmetic(x, weight, bias), self.lane)
        x = way.after(self._arithmetic(x, weight, None), self.lane)
        return x if bias is None else x + bias.to(x.dtype).view(-1, *[1] * (x.dim() - 2))


def _as_computed(x: Tensor) -> Tensor:
    """``x`` in the data type in which autocast will compute: cross in that one, not in a wider one."""
    kind = x.device.type
    cast = torch.is_autocast_enabled(kind) and x.is_floating_point() and x.dtype != torch.float64  # as autocast does
    return x.to(torch.get_autocast_dtype(kind)) if cast else x


class _Convolution(_Mixing):
    _skip: tuple[int, ...] | None  # strides by which the input is thinned out before it crosses

    def _arithmetic(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return self._conv_forward(x, weight, bias)  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> [N, C or c, ...]; a strided 1x1 reads, and sends, only the places it needs."""
        if self._skip is not None:
            places: tuple[Any, ...] = (..., *(slice(None, None, step) for step in self._skip))
            x = x[places]
        return super().forward(x)


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


class _BatchNorm(Placed):
    """Batch norm over the own channels; PyTorch's own forward would hand DTensors to the kernel."""

    sync: bool  # statistics over all replicas, not one

    def forward(self, x: Tensor) -> Tensor:
        """[N, C or c, ...] -> the same shape."""
        norm: Any = self
        norm._check_input_dim(x)
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
    values = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
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


class _Dropout(Placed):
    """The plain model's mask: every lane device draws all channels' numbers and keeps its own."""

    p: float
    training: bool
    inplace: bool

    def _plain(self, ones: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """[N, c, ...] -> [N, c, ...]."""
        if not self.training or self.p == 0:
            return x
        mask = self._plain(self._ones(x))[:, self.lane.own(x.shape[1] * self.lane.size)]
        return x.mul_(mask) if self.inplace else x * mask

    def _ones(self, x: Tensor) -> Tensor:
        """Ones of the plain tensor's shape, data type and memory format, which decide the numbers that are drawn."""
        return crossing.empty_stored_like(x, x.shape[1] * self.lane.size).fill_(1)


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


class PlacedLocalResponseNorm(Placed, LocalResponseNorm):
    """A placed :class:`lanes.models.LocalResponseNorm`: the plain one on the own lanes."""


# Plain class -> placed class, for laned tensors. Layers that are not here run as they are.
PLACED: dict[type[nn.Module], type[Placed]] = {
    nn.Conv1d: PlacedConv1d,
    nn.Conv2d: PlacedConv2d,
    nn.Conv3d: PlacedConv3d,
    nn.Linear: PlacedLinear,
    GroupedLinear: PlacedGroupedLinear,
    nn.BatchNorm1d: PlacedBatchNorm1d,
    nn.BatchNorm2d: PlacedBatchNorm2d,
    nn.BatchNorm3d: PlacedBatchNorm3d,
    nn.Dropout: PlacedDropout,
    nn.Dropout1d: PlacedDropout1d,
    nn.Dropout2d: PlacedDropout2d,
    nn.Dropout3d: PlacedDropout3d,
    LocalResponseNorm: PlacedLocalResponseNorm,
}


def become_placed(layer: nn.Module, way_name: str, lane: Axis, data: Axis, *, sync_batch_norm: bool) -> None:
    """Turn a plain layer into its placed kind, in place: its class, and the sizes that its arithmetic uses."""
    way, skip = WAYS[way_name], skips(layer)
    kind = PLACED[type(layer)]
    placed: Any = layer
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups > 1 and way_name != "whole":
        placed.groups = layer.groups // lane.size
    if isinstance(layer, LocalResponseNorm) and way.input == "laned":
        placed.lanes = layer.lanes // lane.size
    if issubclass(kind, _Convolution):
        placed._skip = layer.stride if skip else None
        placed.stride = (1,) * len(placed.stride) if skip else layer.stride
    if issubclass(kind, _BatchNorm):
        placed.sync = sync_batch_norm
    placed.__class__ = kind
    placed.way_name, placed.lane, placed.data = way_name, lane, data
