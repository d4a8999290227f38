"""Which layers and lanes a verb looks at, found in the network's trace before any image is read.

Kept out: looking.
"""

from collections.abc import Sequence

import torch
from torch import nn

from lanes.plans import Plan
from lanes.rules.kinds import CONVOLUTIONS, is_layer
from lanes.tracing import trace
from lanes.training.module import PLANNED_BATCH, Classifier
from lanes.ways import LANED
from lanes.words import near

CONVOLUTION_TYPES = {kind.__name__ for kind in CONVOLUTIONS}


class RunLayers:
    """The layers that a network runs in evaluation mode.

    Args:
        module: of the network; no weight is made.
        plan: of the network.
    """

    def __init__(self, module: Classifier, plan: Plan) -> None:
        self.plan = plan
        example = torch.empty(PLANNED_BATCH, *module.image_shape, device="meta")
        self._runs: dict[str, list[torch.Size]] = {}
        for call in trace(module.plain_net().eval(), example, is_layer).calls:
            if call.layer is not None:
                self._runs.setdefault(call.where, []).append(call.outputs[0].shape)

    def check(self, layer: str) -> None:
        """Find a layer that makes one output in each forward.

        Raises:
            ValueError: the network has no such layer, or it does not run once; names those it has.
        """
        check_layer(layer, self.plan)
        runs = len(self._runs.get(layer, []))
        if runs != 1:
            once = ", ".join(name for name in self.plan.layers if len(self._runs.get(name, [])) == 1)
            raise ValueError(
                f"{layer} runs {runs} times in one forward; which output is meant is not clear; run once: {once}"
            )

    def chosen(self, asked: Sequence[str] | None) -> list[str]:
        """Layers in the order in which they run: those asked for, else all convolutions that run once.

        Raises:
            ValueError: as :meth:`check`, or there is no such convolution.
        """
        for layer in asked or ():
            self.check(layer)
        wanted = set(asked or self._convolutions())
        if not wanted:
            raise ValueError(f"no convolution of the network runs once; --layers names any of {', '.join(self._runs)}")
        return [layer for layer in self._runs if layer in wanted]

    def divided(self, layers: Sequence[str], lanes: int) -> list[str]:
        """Those of the layers whose channels belong to lanes: that the plan keeps apart, and that divide over them."""
        return [
            layer
            for layer in layers
            if self.plan.layers[layer].output == LANED and self._runs[layer][0][1] % lanes == 0
        ]

    def _convolutions(self) -> list[str]:
        return [
            name
            for name, shapes in self._runs.items()
            if self.plan.layers[name].type in CONVOLUTION_TYPES and len(shapes) == 1
        ]


def check_layer(layer: str, plan: Plan) -> None:
    """Find a layer in a plan.

    Raises:
        ValueError: the network has no such layer; names those it has.
    """
    if layer not in plan.layers:
        hint = near(layer, plan.layers)
        raise ValueError(f"the network runs no layer {layer!r}{hint}; it has {', '.join(plan.layers)}")


def lanes_of(net: nn.Module, asked: int | None) -> int:
    """The number of lanes: as asked for, else what the network says, else 1.

    Raises:
        ValueError: fewer than 1.
    """
    if asked is not None and asked < 1:
        raise ValueError(f"--lanes {asked} is too few: give at least 1")
    said = getattr(net, "lanes", 1)
    return asked or (said if isinstance(said, int) else 1)
