"""The kinds of layers that can be placed, in tables.

What is not in these tables is refused with a :class:`PlanError`: a layer is right on a part of the channels only if
somebody proved it. Operations between layers have their rules in glue.py.
"""

from typing import Any

import torch
from torch import nn

from lanes.models import ChannelLayerNorm, Concat, DropPath, GroupedLinear, LayerScale, LocalResponseNorm
from lanes.tracing import Call

CONVOLUTIONS: dict[Any, int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}  # type -> spatial dimensions
MIXING = (*CONVOLUTIONS, GroupedLinear, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CHANNEL_NORMS = (nn.GroupNorm, nn.LayerNorm, ChannelLayerNorm)  # statistics over several channels of one image
DROPOUTS: dict[Any, int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}
RESPONSE_NORMS = (LocalResponseNorm, nn.LocalResponseNorm)
SCALES = (nn.PReLU, LayerScale)  # a factor for each channel; of a PReLU also one for all
REORDERING = (nn.ChannelShuffle, Concat)
# Layers without parameters that treat every channel alone and in the same way, whatever their order.
CHANNELWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Identity),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(DropPath, nn.Flatten),
)
WITH_PARAMETERS = (*MIXING, *BATCH_NORMS, *CHANNEL_NORMS, *SCALES)
LAYERS = {*WITH_PARAMETERS, *DROPOUTS, *RESPONSE_NORMS, *REORDERING, *CHANNELWISE}


def is_layer(module: nn.Module) -> bool:
    """Whether the planner knows this module as one layer. Subclasses are not known: they may do something else."""
    return type(module) in LAYERS


def groups_of(module: nn.Module | None) -> int:
    """In how many groups a convolution or linear layer is cut."""
    return int(getattr(module, "groups", 1))


def is_dense(module: nn.Module | None) -> bool:
    """Whether every output channel reads every input channel."""
    return type(module) in MIXING and groups_of(module) == 1


def channels(call: Call) -> int:
    """The number of output channels of a layer with weights; 1 for anything else."""
    return call.outputs[0].shape[1] if type(call.layer) in MIXING and len(call.outputs[0].shape) > 1 else 1


def thinning(module: nn.Module | None) -> tuple[int, ...] | None:
    """The strides of a strided, unpadded convolution of kernel size 1, which skips the rest of its input, or None."""
    if type(module) not in CONVOLUTIONS:
        return None
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    unpadded = module.padding == "valid" or set(module.padding) == {0}
    skips = set(module.kernel_size) == {1} and unpadded and set(module.stride) != {1}
    return tuple(module.stride) if skips else None


def thinned(shape: torch.Size, strides: tuple[int, ...] | None) -> tuple[int, ...]:
    """The part of its input [N, C, ...] that a layer really reads: what is skipped does not cross."""
    if strides is None:
        return tuple(shape)
    return (*shape[:2], *(-(-n // s) for n, s in zip(shape[2:], strides, strict=True)))


def names(types: Any) -> str:
    """For messages."""
    return ", ".join(t.__name__ for t in types)
