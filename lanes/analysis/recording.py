"""What layers make of a batch, as they make it: of a placed network the channels that a process holds, and all of them.

Legend: N images, C all channels of a layer, c those that this process holds, ... places (none for a linear layer).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lanes import channels, crossing
from lanes.mesh import DATA_AXIS, Axis, DeviceMesh, axis
from lanes.ordering import PLAIN
from lanes.plans import Plan
from lanes.ways import LANED
from lanes.words import near


@contextmanager
def recorded(net: nn.Module, layers: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """While it lasts, keep what layers make of each batch until the next: layer name -> a copy, [N, c, ...].

    Args:
        net: plain, or placed: then each process keeps its own channels, in the order in which it holds them.
        layers: their names.

    Raises:
        ValueError: the network has no such layer; and, when it runs, that one runs several times in one forward.
    """
    modules = {name: module for name, module in net.named_modules() if name}
    made: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, object, Tensor], None]:
        def hook(layer: nn.Module, args: object, output: Tensor) -> None:
            if name in made:
                raise ValueError(f"{name} runs several times in one forward; name a layer that runs once")
            made[name] = output.detach().clone()  # the next layer may work in place

        return hook

    chosen = [(name, modules[_known(name, modules)]) for name in layers]
    handles = [net.register_forward_pre_hook(lambda *_: made.clear())]
    handles += [module.register_forward_hook(keep(name)) for name, module in chosen]
    try:
        yield made
    finally:
        for handle in handles:
            handle.remove()


def whole_layer(values: Tensor, layer: str, plan: Plan, lane: Axis) -> Tensor:
    """What all lane devices hold of a layer, in the plain model's order; all lane devices must call it.

    Args:
        values: a number of each of this process's channels, [c], or its responses, [N, c, ...].
        layer: its name in the plan.
        plan: by which the network is placed.
        lane: this process's place among the lane devices.

    Returns:
        [C] or [N, C, ...], alike on all of them.

    Raises:
        ValueError: the plan has no such layer.
    """
    placed = plan.layers[_known(layer, plan.layers)]
    whole = values.reshape(1, -1) if values.dim() < 2 else values  # torchmetrics makes one number of one channel
    whole = crossing.leave(whole, lane) if placed.output == LANED else whole
    order = plan.output_order(layer)
    whole = whole if order == PLAIN else channels.reordered(whole, order.source(lane.size))
    return whole[0] if values.dim() < 2 else whole


def _known(layer: str, layers: Iterable[str]) -> str:
    layers = list(layers)
    if layer not in layers:
        raise ValueError(f"the network has no layer {layer!r}{near(layer, layers)}; it has {', '.join(layers)}")
    return layer


def merging(data: Axis | None) -> dict[str, Any]:
    """Arguments of a torchmetrics.Metric that replicas merge, and nobody else.

    Without a group torchmetrics would merge all processes, and so lane devices, which see the same images.

    Args:
        data: this process's place among the replicas; None (a plain network): it asks nobody, even in a group.
    """
    if data is None or data.size == 1:
        return {"sync_on_compute": False}
    return {"process_group": data.group, "sync_on_compute": True}


def replicas(mesh: DeviceMesh | None) -> Axis | None:
    """This process's place among the replicas of a mesh; None without one."""
    return None if mesh is None else axis(mesh, DATA_AXIS)


def check_layers(net: nn.Module, layers: Iterable[str], *, plan: Plan | None, mesh: DeviceMesh | None) -> None:
    """Find layers before anything is computed.

    Raises:
        ValueError: the network runs no such layer, or plan and mesh were not given together.
    """
    if (plan is None) != (mesh is None):
        raise ValueError("a placed network needs its plan and its mesh, a plain one neither")
    known = [name for name, _ in net.named_modules() if name] if plan is None else plan.layers
    for name in layers:
        _known(name, known)


@contextmanager
def evaluating(net: nn.Module) -> Iterator[None]:
    """Every module in evaluation mode while it lasts, and then as it was: some may be frozen, some not."""
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
