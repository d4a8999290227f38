"""Decides, for each layer of a plain model, whether it stays in its lane or crosses, how, and what that costs.

A plan (plans.py) can be overridden by layer name. What cannot be proved to equal the plain model is refused, with the
layer, the operation, the numbers and the way out.

Shapes: N batch, C all channels, D lane devices, H W spatial. States of a tensor: *laned* (each lane device holds its
own channels, dimension 1) or *whole* (alike on all lane devices).

Kept out: reading the model (tracing.py), following its tensors (following.py), moving weights (placement.py).
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lanes.following import decide
from lanes.megatron import megatron_elements
from lanes.mesh import check_lane_devices, divisors
from lanes.plans import LayerPlan, Plan
from lanes.rules.kinds import BATCH_NORMS, channels, is_layer
from lanes.rules.steps import Step
from lanes.tracing import PlanError, Trace, trace
from lanes.ways import WAYS
from lanes.words import near, one_of


def plan(
    model: nn.Module,
    example: Tensor,
    *,
    lane_devices: int,
    override: Mapping[str, str] | None = None,
    dtype: torch.dtype | None = None,
) -> Plan:
    """Read a plain model and decide how to place it over ``lane_devices`` devices.

    Args:
        model: a single-device module; not changed, not run on numbers. May be on the "meta" device.
        example: a batch of inputs [N, C, ...] (numbers do not matter; may be on "meta").
        lane_devices: D.
        override: layer name -> way (see :data:`lanes.ways.WAYS`), where the cheaper one is not wanted.
        dtype: the data type in which crossings are sent, if not the example's (autocast: ``torch.bfloat16``). Channels
            that are re-ordered are counted in it too, though autocast may hold them in a wider one where no convolution
            reads them.

    Raises:
        PlanError: a layer or operation that cannot be placed exactly: names it, the numbers and the way out.
        ValueError: an unknown layer or way in ``override``.
    """
    check_lane_devices(lane_devices)
    if not isinstance(model, nn.Module):
        raise ValueError(f"model must be a module, got {model!r}; lanes.models.build makes one from a name")
    if not isinstance(example, Tensor) or example.dim() < 2:
        given = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"example must be a batch of inputs [N, C, ...], got {given}")
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise ValueError("the model is placed already; plan the plain model")
    traces = _trace_both_modes(model, example)
    item_bytes = (dtype or example.dtype).itemsize
    name = str(dtype or example.dtype).removeprefix("torch.")
    override = _checked_override(override or {}, traces)
    try:
        found = decide(model, traces, lane_devices, override)
    except PlanError as error:
        others = _way_out(model, traces, lane_devices, override)
        joint = "" if not others else ", or " if "; " in str(error) else "; "
        raise PlanError(f"{error}{joint}{others}") from None
    megatron = megatron_elements(traces[0], lane_devices)
    layers = {layer: _priced(step, item_bytes, megatron.get(layer, (0.0, 0.0))) for layer, step in found.steps.items()}
    return Plan(lane_devices, name, layers, {module: str(order) for module, order in found.orders.items()})


def lane_devices_of(model: nn.Module, example: Tensor, *, most: int = 64) -> list[int]:
    """The numbers of lane devices, from 1 to ``most``, over which a plain model can be placed.

    Args:
        model: as for :func:`plan`.
        example: as for :func:`plan`.
        most: the largest number that is tried.

    Raises:
        PlanError: it cannot be placed even on one: names the layer or operation.
    """
    traces = _trace_both_modes(model, example)
    decide(model, traces, 1, {})
    return [1, *_that_work(model, traces, {d for d in _candidates(traces) if 1 < d <= most}, {})]


def _trace_both_modes(model: nn.Module, example: Tensor) -> list[Trace]:
    """The forward in training and in evaluation: both must be right."""
    modes = {module: module.training for module in model.modules()}
    # A cumulative average asks for the number of batches so far, which has no value here; its shape is any momentum's.
    cumulative = [m for m in modes if isinstance(m, BATCH_NORMS) and m.momentum is None]
    try:
        for norm in cumulative:
            norm.momentum = 0.1
        return [trace(model.train(mode), example, is_layer) for mode in (True, False)]
    finally:
        for module, training in modes.items():
            module.training = training
        for norm in cumulative:
            norm.momentum = None


def _checked_override(override: Mapping[str, str], traces: list[Trace]) -> Mapping[str, str]:
    names = {call.where for call in traces[0].calls if call.layer is not None}
    for name, way in override.items():
        if name not in names:
            raise ValueError(f"override names the layer {name!r}, which the model does not run{near(name, names)}")
        if way not in WAYS:
            raise ValueError(
                f"override of {name}: there is no way {way!r}{near(way, WAYS)}; ways are {', '.join(WAYS)}"
            )
    return override


def _way_out(model: nn.Module, traces: list[Trace], refused: int, override: Mapping[str, str]) -> str:
    """The numbers of lane devices for which the model can be placed, if there are any but one."""
    works = _that_work(model, traces, _candidates(traces) - {refused}, override)
    return f"use {one_of(works)} lane device{'s' if works[-1] > 1 else ''}" if works else ""


def _candidates(traces: list[Trace]) -> set[int]:
    """Numbers of lane devices that divide the channels of some layer."""
    return {d for call in traces[0].calls for d in divisors(channels(call))}


def _that_work(model: nn.Module, traces: list[Trace], candidates: set[int], override: Mapping[str, str]) -> list[int]:
    works = []
    for lane_devices in sorted(candidates):
        try:
            decide(model, traces, lane_devices, override)
        except PlanError:
            continue
        works.append(lane_devices)
    return works


def _priced(step: Step, item_bytes: int, megatron: tuple[float, float]) -> LayerPlan:
    wide = max(item_bytes, 4)  # norms compute half precision in float32
    return LayerPlan(
        step.type,
        step.way,
        step.input,
        step.output,
        sent_forward_bytes=step.sent_forward * item_bytes + step.statistics * wide,
        sent_backward_bytes=step.sent_backward * item_bytes + step.statistics_backward * wide,
        kept_bytes=step.kept * item_bytes,
        parameters=step.parameters,
        sent_step_bytes=step.step_bytes,
        order=str(step.order),
        output_order=str(step.output_order),
        shares=step.shares,
        megatron_forward_bytes=megatron[0] * item_bytes,
        megatron_backward_bytes=megatron[1] * item_bytes,
    )
