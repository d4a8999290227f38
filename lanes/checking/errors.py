"""Sees what a network holds and makes, and how far it is from what the plain model holds and makes.

An error is max|a - b| / max(max|b|, 1e-6 x the largest |b| of the group).
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lanes.layers import local
from lanes.mesh import LANE_AXIS, DeviceMesh, axis
from lanes.ordering import PLAIN
from lanes.plans import LayerPlan, Plan
from lanes.ways import LANED, WAYS

GROUPS = ("weights before", "outputs", "output gradients", "gradients", "parameters", "statistics")
See = Callable[[str, str, Tensor], None]  # (group, name, tensor)


def rows_of(replica: int, together: list[int], see: See) -> See:
    """Of what the plain model makes for several replicas, the rows of this process's."""

    def rows(group: str, name: str, tensor: Tensor) -> None:
        if replica in together:
            part = tensor.chunk(len(together))[together.index(replica)]
            # The plain loss is the mean over all of them, a replica's over its own part.
            see(group, name, part * len(together) if group == "output gradients" else part)

    return rows


@contextmanager
def tapped(net: nn.Module, see: See) -> Iterator[None]:
    """Show the output of every layer, as it is made, and its gradient."""
    calls: Counter[str] = Counter()
    handles = []

    def tap(layer: str) -> Callable[[nn.Module, tuple[object, ...], object], None]:
        def hook(module: nn.Module, args: tuple[object, ...], output: object) -> None:
            if isinstance(output, Tensor):
                calls[layer] += 1
                name = layer if calls[layer] == 1 else f"{layer} (call {calls[layer]})"
                see("outputs", name, output)
                if output.requires_grad:
                    output.register_hook(lambda gradient: see("output gradients", name, gradient))

        return hook

    for layer, module in net.named_modules():
        if not list(module.children()):
            handles.append(module.register_forward_hook(tap(layer)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class Tensors:
    """What the plain model holds and makes, by group and name, in the order in which it was seen."""

    def __init__(self) -> None:
        self.groups: dict[str, dict[str, Tensor]] = {}
        self._largest: dict[str, float] = {}

    def keep(self, group: str, name: str, tensor: Tensor) -> None:
        """Keep a copy."""
        self.groups.setdefault(group, {})[name] = tensor.detach().clone()  # what comes next may change it in place

    def forget(self, group: str) -> None:
        """Let go of what has been compared; its names stay."""
        self.groups[group] = {name: tensor.new_empty(0) for name, tensor in self.groups[group].items()}

    def scale(self, group: str, name: str) -> float:
        """What an error of this tensor is divided by."""
        tensors = self.groups[group]
        if group not in self._largest:
            self._largest[group] = max(_largest(tensor) for tensor in tensors.values())
        return max(_largest(tensors[name]), 1e-6 * self._largest[group])


class Errors:
    """Errors of what is seen against a reference, of the own part if a plan and a mesh say which that is."""

    def __init__(self, reference: Tensors, placed_by: Plan | None = None, mesh: DeviceMesh | None = None) -> None:
        self._reference, self._plan = reference, placed_by
        self._lane = None if mesh is None else axis(mesh, LANE_AXIS)
        self.found: dict[tuple[str, str], float] = {}

    def see(self, group: str, name: str, tensor: Tensor) -> None:
        """Compare; what is not a number is infinitely wrong."""
        ours, whole = local(tensor.detach()), self._reference.groups.get(group, {}).get(name)
        assert ours is not None
        if whole is None:
            return
        theirs = self._own(group, name, whole, ours)
        same = ours.shape == theirs.shape and bool(ours.isfinite().all()) and bool(theirs.isfinite().all())
        scale = self._reference.scale(group, name) if same else 0.0
        error = _largest_difference(ours, theirs) if same else math.inf
        self.found[group, name] = error / scale if error and scale else error

    def _own(self, group: str, name: str, whole: Tensor, ours: Tensor) -> Tensor:
        if self._plan is None or self._lane is None:
            return whole
        if group in ("outputs", "output gradients"):
            module = name.split(" (call", maxsplit=1)[0]
            layer = self._plan.layers.get(module)
            # A module of operations that the plan passes through has no entry of its own; its output shows what it is.
            devices = self._lane.size
            laned = whole.dim() > 1 and ours.dim() > 1 and whole.shape[1] == devices * ours.shape[1]
            dim = 1 if (laned if layer is None else layer.output == LANED) else None
            order = self._plan.output_order(module)
            if dim is not None and order != PLAIN:
                held = torch.tensor(order.held(devices), device=whole.device)
                whole = whole.index_select(1, held)
        else:
            layer_name, _, key = name.rpartition(".")
            dim = _split_dim(self._plan.layers.get(layer_name), key)
        if dim is None:
            return whole
        part = self._lane.own(whole.shape[dim])
        return whole.narrow(dim, part.start, part.stop - part.start)


def _split_dim(layer: LayerPlan | None, key: str) -> int | None:
    """The dimension of a layer's tensor that is split over lane devices."""
    if layer is None:
        return None
    way = WAYS[layer.way]
    channels = None if way.weight_dim is None else 0
    dims = {"weight": way.weight_dim, "bias": way.bias_dim, "running_mean": channels, "running_var": channels}
    return dims.get(key)


def _largest(tensor: Tensor) -> float:
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _largest_difference(a: Tensor, b: Tensor) -> float:
    """max|a - b|, in parts: the difference of a large layer is as large again."""
    if not a.dim():
        return (a - b).abs().item()
    return max((_largest(x - y) for x, y in zip(a.split(1024), b.split(1024), strict=True)), default=0.0)
