"""Initial weights, layer by layer: a network built at once and one built on "meta" and given memory later are alike.

What is here: what the networks share. What is kept out: which layer starts how (each network's `init_layer`).
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import nn


class LayerwiseInit(Protocol):
    """A network that can give one layer its initial parameters."""

    def init_layer(self, name: str, layer: nn.Module) -> None:
        """Sets the parameters of the layer of that qualified name, from its device's default generator."""


def without_drawing() -> AbstractContextManager[None]:
    """Layers built in here leave the generators where they were: init_layer overwrites PyTorch's initialisation."""
    device = torch.get_default_device()
    return torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])


def initialise(net: LayerwiseInit) -> None:
    """Calls `net.init_layer` for every layer with parameters of its own, in the order of `named_modules`.

    That is the order in which `lanes.place` gives memory and initial weights to the layers of a network on "meta".
    """
    assert isinstance(net, nn.Module)
    for name, layer in net.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            net.init_layer(name, layer)


def init_normal(layer: nn.Module, *, std: float | None, bias: float) -> None:
    """Draws the weights of a layer from N(0, std), He's sqrt(2 / fan_in) if std is None, and sets its biases."""
    for kind, parameter in layer.named_parameters(recurse=False):
        if kind == "bias":
            nn.init.constant_(parameter, bias)
        else:
            nn.init.normal_(parameter, std=math.sqrt(2 / math.prod(parameter.shape[1:])) if std is None else std)


def init_he(layer: nn.Module, *, linear_std: float = 0.01) -> None:
    """He's normal by fan-out for convolutions, N(0, linear_std) for linear layers, 1 and 0 for norms; biases at 0.

    Source: He et al., arXiv 1502.01852, section 2.2 ("backward"); in ResNet's and its successors' published training
    code with fan-out k^2 C_out, which of a grouped convolution counts all its groups, as here.
    """
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        init_normal(layer, std=math.sqrt(2 / (math.prod(layer.kernel_size) * layer.out_channels)), bias=0.0)
    elif isinstance(layer, nn.Linear):
        init_normal(layer, std=linear_std, bias=0.0)
    else:
        reset = getattr(layer, "reset_parameters", None)
        assert callable(reset), f"{type(layer).__name__} has no initial parameters"
        reset()
