"""Who sends what: of every layer of a network, as counted while it runs, as planned, and as other placements would.

All are bytes that one lane device sends per image, layer name -> forward and backward. Kept out: which layer crosses
how (planning.py), what Megatron-style means (megatron.py), pictures and tables (scripts/communication).

Shapes: N batch, C all channels, D lane devices.
"""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.autograd.graph import Node

from lanes.mesh import Axis
from lanes.plans import Plan
from lanes.rules.kinds import MIXING, is_layer, thinned, thinning
from lanes.tracing import trace
from lanes.traffic import Traffic


@dataclass(frozen=True)
class Sent:
    """What one lane device sends per image, in bytes."""

    forward: float = 0.0
    backward: float = 0.0

    @property
    def total(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward

    def __add__(self, other: "Sent") -> "Sent":
        return Sent(self.forward + other.forward, self.backward + other.backward)


Layers = Mapping[str, Sent]


def summed(layers: Layers) -> Sent:
    """What all layers send together."""
    return sum(layers.values(), Sent())


def planned(plan: Plan) -> dict[str, Sent]:
    """What the plan says that the busiest lane device sends at each layer, for a batch of one image."""
    return {
        name: Sent(layer.sent_forward_bytes, layer.sent_backward_bytes + layer.sent_step_bytes)
        for name, layer in plan.layers.items()
    }


def megatron_style(plan: Plan) -> dict[str, Sent]:
    """What a Megatron-style placement would send at each layer (megatron.py)."""
    return {
        name: Sent(layer.megatron_forward_bytes, layer.megatron_backward_bytes) for name, layer in plan.layers.items()
    }


def gathering_everything(model: nn.Module, example: Tensor, lane_devices: int) -> dict[str, Sent]:
    """What is sent if every layer with weights gathers its whole input, grouped or not, for its own output channels.

    That places any network without looking at it. The first layer reads the image, which all devices have; the last
    one's output is gathered too. Forward: an all-gather, backward: the reduce-scatter of its gradient. As in a plan, a
    strided 1x1 convolution gathers only the places that it reads.

    Args:
        model: the plain model, in training mode; may be on "meta".
        example: a batch [N, C, ...]; only its shape and data type count.
        lane_devices: D.

    Raises:
        PlanError: the model cannot be read.
    """
    calls = [call for call in trace(model, example, is_layer).calls if type(call.layer) in MIXING]
    part = example.dtype.itemsize * (lane_devices - 1) / lane_devices
    found: dict[str, Sent] = {}
    for call in calls[1:]:
        read = call.inputs[0]
        sent = part * math.prod(thinned(read.shape, thinning(call.layer))[1:])
        found[call.where] = found.get(call.where, Sent()) + Sent(sent, sent * read.requires_grad)
    last = calls[-1]
    return found | {last.where: found.get(last.where, Sent()) + Sent(part * math.prod(last.outputs[0].shape[1:]))}


def counted(net: nn.Module, images: Tensor, lane: Axis, layers: Iterable[str]) -> dict[str, Sent]:
    """Run a placed network forward and backward once, and count what this device sends at each layer.

    Args:
        net: placed; it returns one tensor. Its gradients are filled.
        images: [1, C, ...]: a batch of one, since what is counted is per image.
        lane: this process's place among the lane devices.
        layers: names of the layers.

    Raises:
        ValueError: the batch is not of one image, or something was sent outside of the layers.
    """
    if len(images) != 1:
        raise ValueError(f"what is counted is per image: give it a batch of 1, not {len(images)}")
    with Traffic(lane) as traffic:
        ledger = _Ledger(traffic.sent_bytes.total, layers)
        handles = [handle for name in ledger.forward for handle in ledger.watch(name, net.get_submodule(name))]
        try:
            net(images).square().mean().backward()
        finally:
            for handle in handles:
                handle.remove()
    found = {name: Sent(sent, ledger.backward[name]) for name, sent in ledger.forward.items()}
    if summed(found).total != traffic.sent_bytes.total():
        raise ValueError(
            f"the layers sent {summed(found).total:,.0f} of {traffic.sent_bytes.total():,} bytes; "
            "name every layer of the plan"
        )
    return found


class _Ledger:
    """Books what is sent on the layer whose forward runs, or whose backward: the graph's nodes know their layer.

    Args:
        sent: bytes sent so far.
        layers: names of the layers.
    """

    def __init__(self, sent: Callable[[], int], layers: Iterable[str]) -> None:
        self._sent = sent
        self.forward = dict.fromkeys(layers, 0)
        self.backward = dict.fromkeys(self.forward, 0)
        self._owned: set[Node] = set()

    def watch(self, name: str, layer: nn.Module) -> list[Any]:
        """Book a layer's forward, and its nodes' backward. Returns the handles of the hooks."""
        before = 0

        def enter(*_: Any) -> None:
            nonlocal before
            before = self._sent()

        def leave(_: nn.Module, __: Any, output: Tensor) -> None:
            self.forward[name] += self._sent() - before
            self._own(name, output.grad_fn)

        return [layer.register_forward_pre_hook(enter), layer.register_forward_hook(leave)]

    def _own(self, name: str, last: Node | None) -> None:
        """Give a layer the nodes that its forward has made: those before its output that no earlier layer owns."""
        open_nodes = [last]
        while open_nodes:
            node = open_nodes.pop()
            if node is not None and node not in self._owned:
                self._owned.add(node)
                self._book(name, node)
                open_nodes += [before for before, _ in node.next_functions]

    def _book(self, name: str, node: Node) -> None:
        before = 0

        def enter(_: Any) -> None:
            nonlocal before
            before = self._sent()

        def leave(*_: Any) -> None:
            self.backward[name] += self._sent() - before

        node.register_prehook(enter)
        node.register_hook(leave)


def busiest(devices: Sequence[Layers]) -> dict[str, Sent]:
    """What the busiest lane device sends at each layer, forward and backward: what a plan says.

    Args:
        devices: what each lane device has sent, layer by layer.
    """
    return {
        name: Sent(max(d[name].forward for d in devices), max(d[name].backward for d in devices)) for name in devices[0]
    }


def differing(planned: Layers, counted: Layers) -> list[str]:
    """The layers at which plan and count differ, by a whole byte: the count has no thirds of them."""
    apart = {
        name: (abs(sent.forward - counted[name].forward), abs(sent.backward - counted[name].backward))
        for name, sent in planned.items()
    }
    return [name for name, both in apart.items() if max(both) >= 1]


def by_block(layers: Layers) -> dict[str, Sent]:
    """The sums over blocks, in the order of their first layers; see :func:`block_of`."""
    found: dict[str, Sent] = {}
    for name, sent in layers.items():
        found[block_of(name)] = found.get(block_of(name), Sent()) + sent
    return found


def block_of(layer: str) -> str:
    """The block of a layer, by its name up to the first number: "layer1.0" of "layer1.0.conv2"; else the layer."""
    numbered = re.match(r".*?\.\d+(?=\.|$)", layer)
    return numbered.group() if numbered else layer
