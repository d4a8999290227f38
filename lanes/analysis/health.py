"""How large the weights, gradients and updates of every lane are, whatever the layout.

A lane's weights of a layer are its block of *output* channels. Where a layer's weight is split along its inputs
(``scatter_sum``, ``leave_sum``), every lane device holds a part of every lane's weights: so each adds up what it holds
for every block, and one small all-reduce over the lane axis makes the sums. The numbers do not depend on the number of
lane devices.

Successor of cuda-convnet2's prints of mean |w|, mean |dw| and their ratio per layer (convnet.py, print_test_results).
Kept out: when to measure, and where the numbers go (training/health.py).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lanes import crossing
from lanes.layers import local
from lanes.mesh import Axis
from lanes.plans import Plan
from lanes.ways import WAYS, WHOLE


@dataclass(frozen=True)
class _Layer:
    """A layer with a weight: where its numbers lie, and how many blocks of output channels it is told in."""

    name: str
    weight: Tensor
    split_dim: int | None
    blocks: int


class LaneWeights:
    """The weights of a placed network, layer by layer and lane by lane.

    Args:
        net: placed; its attribute ``lanes`` is the number of lanes, if it has one; else there are as many as lane
            devices.
        plan: by which it was placed.
        lane: this process's place on the lane axis.

    Attributes:
        blocks: what is told apart, in forward order: "conv1/lane0", or "fc8" for a layer that belongs to no lane (its
            output is whole), or whose output channels the lanes do not divide.
    """

    def __init__(self, net: nn.Module, plan: Plan, lane: Axis) -> None:
        lanes = int(getattr(net, "lanes", lane.size))
        self._lane, self._net, self._plan = lane, net, plan
        self._layers = []
        for name, placed in plan.layers.items():
            weight = getattr(net.get_submodule(name), "weight", None)
            if not isinstance(weight, Tensor):
                continue
            cut = placed.output != WHOLE and weight.shape[0] % lanes == 0
            self._layers.append(_Layer(name, weight, WAYS[placed.way].weight_dim, lanes if cut else 1))
        self.blocks = [
            f"{layer.name}/lane{index}" if layer.blocks > 1 else layer.name
            for layer in self._layers
            for index in range(layer.blocks)
        ]

    def snapshot(self) -> list[Tensor]:
        """A copy of this process's part of every weight, to tell later how far they moved."""
        return [_part(layer.weight).clone() for layer in self._layers]

    def gradient_mean_abs(self) -> Tensor:
        """Mean |gradient| of every block, [blocks], float64; all lane devices must call it."""
        return self._mean_abs([self._gradients()])[0]

    def measure(self, before: Sequence[Tensor]) -> dict[str, float]:
        """Mean |w|, mean |change since ``before``| and their ratio, by block; all lane devices must call it.

        Returns:
            Such as {"conv1/lane0/weight_mean_abs": ..., ".../update_mean_abs": ..., ".../update_ratio": ...}.
        """
        now = [_part(layer.weight) for layer in self._layers]
        moved = [a - b for a, b in zip(now, before, strict=True)]
        weights, updates = self._mean_abs([now, moved]).tolist()
        values = {}
        for block, weight, update in zip(self.blocks, weights, updates, strict=True):
            values[f"{block}/weight_mean_abs"] = weight
            values[f"{block}/update_mean_abs"] = update
            values[f"{block}/update_ratio"] = update / weight if weight else math.nan
        return values

    def gradient_norm(self) -> Tensor:
        """The 2-norm of the gradients of all parameters, as clipping sees it; all lane devices must call it."""
        squares = [torch.zeros((), dtype=torch.float64, device=self._layers[0].weight.device)]
        for name, placed in self._plan.layers.items():
            way, layer = WAYS[placed.way], self._net.get_submodule(name)
            for key, parameter in layer.named_parameters(recurse=False):
                split = way.weight_dim if key == "weight" else way.bias_dim
                if parameter.grad is not None and (split is not None or self._lane.index == 0):
                    squares.append(torch.linalg.vector_norm(_part(parameter.grad)).double().square())
        return crossing.sum(torch.stack(squares).sum(), self._lane).sqrt()

    def _gradients(self) -> list[Tensor]:
        return [
            torch.zeros_like(_part(layer.weight)) if layer.weight.grad is None else _part(layer.weight.grad)
            for layer in self._layers
        ]

    def _mean_abs(self, sets: Sequence[Sequence[Tensor]]) -> Tensor:
        """Mean |.| of every block of every set of own parts, [sets, blocks]: one all-reduce in all."""
        sums = [
            self._block_sums(layer, part) for parts in sets for layer, part in zip(self._layers, parts, strict=True)
        ]
        total = crossing.sum(torch.cat(sums), self._lane).view(len(sets), -1)
        counts = [layer.weight.numel() / layer.blocks for layer in self._layers for _ in range(layer.blocks)]
        return total / torch.tensor(counts, dtype=total.dtype, device=total.device)

    def _block_sums(self, layer: _Layer, part: Tensor) -> Tensor:
        """What this process adds to each block's sum of |.|: [blocks]."""
        channels = layer.weight.shape[0]
        sums = torch.zeros(channels, dtype=torch.float64, device=part.device)
        if layer.split_dim is not None or self._lane.index == 0:  # what everybody holds counts once
            own = self._lane.own(channels) if layer.split_dim == 0 else slice(None)
            rest = tuple(range(1, part.dim()))
            sums[own] = (torch.linalg.vector_norm(part, 1, rest) if rest else part.abs()).double()
        return sums.view(layer.blocks, -1).sum(1)


def _part(tensor: Tensor) -> Tensor:
    part = local(tensor.detach())
    assert part is not None
    return part
