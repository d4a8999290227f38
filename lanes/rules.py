"""What each kind of layer means for lanes: in which way it can be placed, and whether it can.

What is not in these tables is refused with a :class:`PlanError`: a layer is right on a part of the channels only if
somebody proved it. Operations between layers have their rules in glue.py.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lanes.glue import POOL
from lanes.models import GroupedLinear, LocalResponseNorm
from lanes.tracing import Call, PlanError, Trace, Value
from lanes.ways import LANED, WAYS, WHOLE

CONVOLUTIONS: dict[Any, int] = {nn.Conv1d: 1, nn.Conv2d: 2, nn.Conv3d: 3}  # type -> spatial dimensions
MIXING = (*CONVOLUTIONS, GroupedLinear, nn.Linear)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
DROPOUTS: dict[Any, int] = {nn.Dropout: 0, nn.Dropout1d: 1, nn.Dropout2d: 2, nn.Dropout3d: 3}
RESPONSE_NORMS = (LocalResponseNorm, nn.LocalResponseNorm)
# Layers without parameters that treat every channel alone and in the same way.
CHANNELWISE = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.Sigmoid, nn.LogSigmoid, nn.Tanh, nn.Softplus, nn.Softsign, nn.Identity),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
LAYERS = {*MIXING, *BATCH_NORMS, *DROPOUTS, *RESPONSE_NORMS, *CHANNELWISE, nn.Flatten}


@dataclass(frozen=True)
class Step:
    """A layer's placement, before it is priced for a data type.

    Attributes:
        type: the layer's class name.
        way: name of its entry in WAYS.
        input: state of the tensor it reads.
        output: state of the tensor it makes.
        inputs: elements of the whole input per image that a crossing would send (all calls of the layer).
        outputs: elements of the whole output per image.
        input_grad: whether the input needs a gradient.
        parameters: number of parameters on each lane device.
    """

    type: str
    way: str
    input: str
    output: str
    inputs: int
    outputs: int
    input_grad: bool
    parameters: int

    def again(self, other: "Step") -> "Step":
        """The same layer run once more in the same forward."""
        if other is self:
            return self
        if (self.way, self.input) != (other.way, other.input):
            raise PlanError(f"a layer that runs twice would have to be placed as {self.way!r} and as {other.way!r}")
        return dataclasses.replace(self, inputs=self.inputs + other.inputs, outputs=self.outputs + other.outputs)


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


def check_hooks(model: nn.Module) -> None:
    """Refuse what runs unseen inside or behind layers: it would work on a part of the channels, or on its gradient.

    Raises:
        PlanError: names the module.
    """
    for name, module in model.named_modules():
        unseen = [module._backward_hooks, module._backward_pre_hooks]
        unseen += [module._forward_pre_hooks] if is_layer(module) else []
        if any(unseen):
            raise PlanError(
                f"{name or 'the model'}: has pre-forward or backward hooks, which would see a part of the channels"
            )
        if is_layer(module) and "forward" in vars(module):
            raise PlanError(f"{name}: its forward was replaced on the instance; write a module of its own")


def check_parameters(model: nn.Module, traced: Trace) -> None:
    """Refuse parameters and buffers that no rule covers: they would be left behind, or silently differ.

    Raises:
        PlanError: names the parameter and its owner.
    """
    run = {call.where for call in traced.calls if call.layer is not None}
    names = {id(module): name for name, module in model.named_modules()}
    owners: dict[int, str] = {}
    for name, module in model.named_modules():
        tensors = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        for key, tensor in tensors.items():
            full = f"{name}.{key}".lstrip(".")
            if not is_layer(module) or key not in (
                "weight",
                "bias",
                "running_mean",
                "running_var",
                "num_batches_tracked",
            ):
                raise PlanError(
                    f"{name or 'the model'}: a {type(module).__name__} with {full!r} {list(tensor.shape)} cannot be "
                    f"placed; layers with parameters can be {_names(MIXING)} or {_names(BATCH_NORMS)}"
                )
            if names[id(module)] not in run:
                raise PlanError(f"{name}: the layer has parameters but the forward never runs it; remove it")
            if owners.setdefault(id(tensor), names[id(module)]) != names[id(module)]:
                raise PlanError(f"{name}: {full!r} is shared with {owners[id(tensor)]}; give each layer its own")


def last_mixing_calls(traced: Trace) -> set[int]:
    """Positions of the calls of layers with weights that no other such layer follows: the heads."""
    feeding: set[Value] = set()
    last: set[int] = set()
    for position in reversed(range(len(traced.calls))):
        call = traced.calls[position]
        leads_on = any(value in feeding for value in call.outputs)
        if type(call.layer) in MIXING and not leads_on:
            last.add(position)
        if leads_on or type(call.layer) in MIXING:
            feeding.update(call.inputs)
    return last


def last_to_leave(traced: Trace, value: Value, leaving: set[str]) -> str:
    """The last layer before a laned output of the model from which it can be gathered whole.

    Raises:
        PlanError: if there is none.
    """
    producers = {output: call for call in traced.calls for output in call.outputs}
    while value in producers:
        call = producers[value]
        if type(call.layer) in (*MIXING, *BATCH_NORMS) and call.where not in leaving:
            return call.where
        value = call.inputs[0]
    raise PlanError("the model's output is laned and no layer before it can make it whole; end in a dense layer")


def layer(call: Call, inputs: list[str], lane_devices: int, final: bool, override: str | None) -> Step:
    """Place one layer.

    Args:
        call: the layer's call.
        inputs: states of the tensors it reads.
        lane_devices: D.
        final: its output must be whole (the head).
        override: the way the user asks for.

    Raises:
        PlanError: if it cannot be placed exactly, or not as asked.
    """
    module = call.layer
    if len(call.inputs) != 1:
        raise PlanError(f"{call.where}: a {call.function} that is not called with one positional tensor cannot be read")
    kind, state = type(module), inputs[0]
    if kind in MIXING:
        ways = _mixing_ways(call, state, lane_devices, final)
    else:
        ways = ["whole"] if state == WHOLE else ["stays+leave" if final else "stays"]
        if state == LANED and lane_devices > 1:
            _check_channelwise(call, lane_devices)
    steps = [_step(call, way, lane_devices) for way in ways]
    if override is not None:
        if override not in ways and not (kind in MIXING and override in _all_ways(call, state, lane_devices)):
            raise PlanError(f"{call.where}: cannot be placed as {override!r} here; it can be {' or '.join(ways)}")
        return _step(call, override, lane_devices)
    return min(steps, key=lambda step: _cost(step, lane_devices))


def _cost(step: Step, lane_devices: int) -> float:
    way = WAYS[step.way]
    # At one lane device nothing is sent; the choice must not depend on that, so count as if there were two.
    devices = max(lane_devices, 2)
    backward = way.sent_backward(step.inputs * step.input_grad, step.outputs, devices)
    return way.sent_forward(step.inputs, step.outputs, devices) + backward


def _all_ways(call: Call, state: str, lane_devices: int) -> list[str]:
    found = []
    for final in (False, True):
        try:
            found += _mixing_ways(call, state, lane_devices, final)
        except PlanError:
            continue
    return found


def _mixing_ways(call: Call, state: str, lane_devices: int, final: bool) -> list[str]:
    """The ways in which a convolution or linear layer can be placed; at least one, cheapest first on a tie."""
    groups, out_channels, dims = groups_of(call.layer), channels(call), len(call.inputs[0].shape)
    expected = CONVOLUTIONS.get(type(call.layer), 0) + 2
    if dims != expected:
        if state == WHOLE and type(call.layer) is nn.Linear:
            return ["whole"]
        raise PlanError(
            f"{call.where}: a {call.function} is placed on batches of {expected} dimensions with channels in "
            f"dimension 1, it reads {list(call.inputs[0].shape)}"
        )
    if groups > 1:
        if groups % lane_devices:
            raise PlanError(
                f"{call.where}: {out_channels} channels in {groups} groups do not divide over "
                f"{lane_devices} lane devices"
            )
        if state == WHOLE:
            return ["enter+own"]
        return ["stays+leave"] if final else ["stays"]
    divides = out_channels % lane_devices == 0
    if final:
        if state == WHOLE:
            return ["enter+leave"] if divides else ["whole"]
        return ["leave_sum", "gather+leave"] if divides else ["leave_sum"]
    if not divides:
        raise PlanError(f"{call.where}: {out_channels} channels do not divide over {lane_devices} lane devices")
    return ["enter"] if state == WHOLE else ["gather", "scatter_sum"]


def _check_channelwise(call: Call, lane_devices: int) -> None:
    """Refuse layers without dense weights that are not exact on a part of the channels."""
    module, shape = call.layer, list(call.inputs[0].shape)
    if isinstance(module, nn.LocalResponseNorm):
        raise PlanError(
            f"{call.where}: torch.nn.LocalResponseNorm mixes neighbours among all {shape[1]} channels, over the "
            "borders of lanes; use lanes.models.LocalResponseNorm(..., lanes=...)"
        )
    if isinstance(module, LocalResponseNorm) and module.lanes % lane_devices:
        raise PlanError(
            f"{call.where}: response norm in {module.lanes} lanes of {shape[1]} channels does not divide over "
            f"{lane_devices} lane devices"
        )
    if isinstance(module, nn.Flatten) and module.start_dim % len(shape) == 0:
        raise PlanError(
            f"{call.where}: Flatten from dimension 0 mixes images and channels of {shape}; use nn.Flatten(1)"
        )
    pool = POOL.fullmatch(type(module).__name__)
    if pool and int(pool.group(1)) != len(shape) - 2:
        raise PlanError(
            f"{call.where}: a {call.function} on {shape} pools over channels; give it [N, C, ...] of its rank"
        )
    if type(module) in DROPOUTS and DROPOUTS[type(module)] not in (0, len(shape) - 2):
        raise PlanError(
            f"{call.where}: a {call.function} is placed on batches with channels in dimension 1, not {shape}"
        )


def _step(call: Call, way: str, lane_devices: int) -> Step:
    module = call.layer
    read, made = call.inputs[0].shape, call.outputs[0].shape
    split = WAYS[way]
    sizes = {name: p.numel() for name, p in module.named_parameters(recurse=False)} if module is not None else {}
    dims = {"weight": split.weight_dim, "bias": split.bias_dim}
    held = sum(size if dims[name] is None else size // lane_devices for name, size in sizes.items())
    inputs = math.prod(subsampled(module, read)[1:])
    return Step(
        call.function, way, split.input, split.output, inputs, math.prod(made[1:]), call.inputs[0].requires_grad, held
    )


def subsampled(module: nn.Module | None, shape: torch.Size) -> tuple[int, ...]:
    """The part of its input that a convolution really reads: a strided 1x1 skips the rest before it crosses."""
    if not skips(module):
        return tuple(shape)
    return (*shape[:2], *(-(-n // s) for n, s in zip(shape[2:], module.stride, strict=True)))  # type: ignore[union-attr, arg-type]


def skips(module: nn.Module | None) -> bool:
    """Whether a layer is a strided, unpadded convolution of kernel size 1."""
    if type(module) not in CONVOLUTIONS:
        return False
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    unpadded = module.padding == "valid" or set(module.padding) == {0}
    return set(module.kernel_size) == {1} and unpadded and set(module.stride) != {1}


def _names(types: Any) -> str:
    return ", ".join(t.__name__ for t in types)
