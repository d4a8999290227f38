"""Applies a plan to a model on a mesh: parameters and channel buffers become DTensors, layers become placed layers.

A layer is taken to its device part by part: the whole of it exists on the host only, one layer at a time if the model
was built on the "meta" device.
"""

from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard

from lanes.layers import PLACED, become_placed, becomes_placed, gather_together, local
from lanes.mesh import DATA_AXIS, LANE_AXIS, Axis, axis, digest
from lanes.ordering import Order
from lanes.plans import LayerPlan, Plan
from lanes.rules.kinds import BATCH_NORMS
from lanes.rules.possible import possible_ways
from lanes.tracing import PlanError
from lanes.ways import WAYS
from lanes.words import near


def place(model: nn.Module, plan: Plan, mesh: DeviceMesh, *, sync_batch_norm: bool = False) -> nn.Module:
    """Place a plain model by its plan on a mesh: where it runs changes, what it computes does not.

    Every process must hold the same plain model (build it under the same seed); this is checked. A model built on the
    "meta" device is initialised layer by layer, in order, by its method ``init_layer(name, layer)``, from torch's
    default generator. Make the optimizer after placing: parameters are new objects.

    Args:
        model: the plain model; changed in place.
        plan: of this model, for as many lane devices as the mesh has.
        mesh: from :func:`lanes.init_mesh`.
        sync_batch_norm: batch-norm statistics over all replicas, so that the mesh equals the plain model on the whole
            batch; otherwise each replica has its own, as with DDP.

    Returns:
        The same model, its parameters DTensors on the mesh's device.

    Raises:
        ValueError: if plan, model and mesh do not belong together, or processes hold different models.
    """
    if not isinstance(plan, Plan) or not isinstance(mesh, DeviceMesh):
        raise ValueError(f"place takes a model, its plan and a mesh, got {type(plan).__name__}, {type(mesh).__name__}")
    lane, data = axis(mesh, LANE_AXIS), axis(mesh, DATA_AXIS)
    layers = _checked_layers(model, plan, lane)
    digests: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if name not in layers:
            continue
        _materialise(model, name, module)
        tensors = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        digests[name] = digest(*tensors)
        if layers[name].parameters or tensors:
            _distribute(module, layers[name].way, mesh, lane)
        if becomes_placed(module, layers[name], lane):
            become_placed(module, layers[name], lane, data, sync_batch_norm=sync_batch_norm)
    if lane.size > 1:
        gather_together(dict(model.named_modules()), layers)
    _check_built_alike(digests, lane, data)
    return model


def average_statistics(model: nn.Module, mesh: DeviceMesh) -> None:
    """Average batch-norm running statistics over the replicas, in place; call before evaluation and saving.

    All processes of the mesh must call it. With one replica nothing changes.
    """
    data = axis(mesh, DATA_AXIS)
    for module in model.modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None:
            for statistic in (local(module.running_mean), local(module.running_var)):
                assert statistic is not None
                dist.all_reduce(statistic, group=data.group)
                statistic.div_(data.size)


def _checked_layers(model: nn.Module, plan: Plan, lane: Axis) -> dict[str, LayerPlan]:
    if plan.lane_devices != lane.size:
        raise ValueError(f"the plan is for {plan.lane_devices} lane devices, the mesh has {lane.size}; plan again")
    modules = dict(model.named_modules())
    for name, layer in plan.layers.items():
        if name not in modules:
            raise ValueError(f"the plan names the layer {name!r}, which the model does not have{near(name, modules)}")
        found = type(modules[name])
        if issubclass(found, tuple(PLACED.values())):
            raise ValueError(f"{name} is placed already; a model is placed once")
        if found.__name__ != layer.type:
            raise ValueError(f"{name} is a {found.__name__} in the model and a {layer.type} in the plan; plan again")
        if layer.way not in WAYS:
            raise ValueError(
                f"{name}: there is no way {layer.way!r}{near(layer.way, WAYS)}; ways are {', '.join(WAYS)}"
            )
        _check_edited(plan, name, modules[name])
        if (WAYS[layer.way].input, WAYS[layer.way].output) != (layer.input, layer.output):
            raise ValueError(
                f"{name}: {layer.way!r} does not lead from {layer.input} to {layer.output}, which the layers around it "
                "count on; change it by plan(..., override={...})"
            )
    for name, module in modules.items():
        if name not in plan.layers and [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            raise PlanError(f"{name or 'the model'}: has parameters but is not in the plan; plan again")
    return plan.layers


def _check_edited(plan: Plan, name: str, module: nn.Module) -> None:
    """Refuse what no planner says, as a plan may have been edited; which order channels are in, only planning can tell.

    Raises:
        ValueError: names the layer.
    """
    layer = plan.layers[name]
    possible = possible_ways(module, plan.lane_devices)
    if layer.way not in possible:
        raise ValueError(
            f"{name}: a {layer.type} cannot be placed as {layer.way!r} on {plan.lane_devices} lane devices; it can be "
            f"{', '.join(sorted(possible)) or 'placed on other numbers of them'}"
        )
    gatherer = plan.layers.get(layer.shares)
    alike = gatherer is not None and (gatherer.way, gatherer.order, gatherer.shares) == (layer.way, layer.order, "")
    if layer.shares and (layer.way != "gather" or not alike):
        raise ValueError(
            f"{name} shares what {layer.shares!r} gathers, which is no layer of the plan that gathers the same "
            "tensor; plan again"
        )
    if layer.way == "passes on" and getattr(module, "groups", 1) > 1 and not layer.output_order:
        raise ValueError(f"{name}: passes on a shuffle, but nothing says that it is owed (output_order); plan again")
    for order in map(Order.parse, (layer.order, layer.output_order)):
        if not order.divides(plan.lane_devices):
            raise ValueError(
                f"{name}: channels in order {str(order)!r} do not divide over {plan.lane_devices} lane devices"
            )


def _materialise(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Give a layer that was built on "meta" its initial numbers, on the host."""
    if not any(t.is_meta for t in [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]):
        return
    layer.to_empty(device="cpu", recurse=False)
    if isinstance(layer, BATCH_NORMS):
        layer.reset_running_stats()
    initialise: Any = getattr(model, "init_layer", None)
    if initialise is None:
        # Many networks set initial weights in their constructor, which on "meta" came to nothing.
        raise ValueError(
            f"{name} was built on 'meta' and the model has no init_layer(name, layer) to give it initial weights; "
            "build the model on the CPU, or write that method"
        )
    initialise(name, layer)


def _distribute(layer: nn.Module, way_name: str, mesh: DeviceMesh, lane: Axis) -> None:
    """Replace a layer's parameters and channel buffers by DTensors that hold the own part."""
    way = WAYS[way_name]
    channel_dim = None if way.weight_dim is None else 0
    dims = {"weight": way.weight_dim, "bias": way.bias_dim, "running_mean": channel_dim, "running_var": channel_dim}
    for name, parameter in list(layer.named_parameters(recurse=False)):
        part = _own_part(parameter.detach(), dims[name], mesh, lane)
        layer.register_parameter(name, nn.Parameter(part, requires_grad=parameter.requires_grad))
    for name, buffer in list(layer.named_buffers(recurse=False)):
        layer.register_buffer(
            name, _own_part(buffer, dims[name], mesh, lane) if name in dims else buffer.to(mesh.device_type)
        )

    def distribute(_: nn.Module, state: dict[str, Any], prefix: str, *__: Any) -> None:
        for name, dim in dims.items():
            tensor = state.get(prefix + name)
            if isinstance(tensor, Tensor) and not isinstance(tensor, DTensor):
                state[prefix + name] = _own_part(tensor, dim, mesh, lane)

    layer.register_load_state_dict_pre_hook(distribute)  # so that a plain model's state_dict loads


def _own_part(whole: Tensor, dim: int | None, mesh: DeviceMesh, lane: Axis) -> DTensor:
    placement: Placement = Replicate() if dim is None else Shard(dim)
    part = whole if dim is None else whole.narrow(dim, lane.own(whole.shape[dim]).start, whole.shape[dim] // lane.size)
    part = part.to(mesh.device_type, copy=True)  # in the memory format of the whole
    return DTensor.from_local(part, mesh, [Replicate(), placement], run_check=False)


def _check_built_alike(digests: dict[str, tuple[int, ...]], lane: Axis, data: Axis) -> None:
    """Refuse processes that built different models: nothing later would tell. All processes refuse together."""
    problem = ""
    for along in (lane, data):
        everyone: list[tuple[str, dict[str, tuple[int, ...]]]] = [("", {})] * along.size
        dist.all_gather_object(everyone, (problem, digests), group=along.group)
        for index, (told, other) in enumerate(everyone):
            different = next((name for name, n in digests.items() if repr(other.get(name)) != repr(n)), None)
            problem = problem or told
            if different is not None and not problem:
                problem = f"{different}: processes {along.index} and {index} of {along.size} built different weights"
    if problem:
        raise ValueError(f"{problem}; build the model under the same seed on every process (torch.manual_seed)")
