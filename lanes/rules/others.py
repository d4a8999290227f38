"""Layers that mix no channels by weights: most stay; norms over many channels, and what re-orders channels, cross."""

from typing import Any

from torch import nn

from lanes.glue import POOL
from lanes.models import ChannelLayerNorm, LocalResponseNorm
from lanes.ordering import PLAIN, Order, concatenated, flattened
from lanes.rules.kinds import CHANNEL_NORMS, CHANNELWISE, DROPOUTS, REORDERING
from lanes.rules.steps import Step, step
from lanes.tracing import Call, PlanError
from lanes.ways import LANED, WHOLE


def other(call: Call, inputs: list[str], orders: list[Order], lane_devices: int, final: bool, restored: bool) -> Step:
    """Place a layer that mixes no channels by weights.

    Args:
        call: its call.
        inputs: states of the tensors it reads.
        orders: of the channels of each.
        lane_devices: D.
        final: its output must be whole.
        restored: the layer behind it puts the channels in plain order.

    Raises:
        PlanError: if it cannot be placed exactly.
    """
    kind: Any = type(call.layer)
    if LANED not in inputs:
        return step(call, "whole", lane_devices)
    if lane_devices > 1:
        _check(call, lane_devices)
    if kind in REORDERING:
        return _reordering(call, inputs, orders, lane_devices, restored and not final)
    order = orders[0]
    if kind in CHANNELWISE:
        made, read = call.outputs[0].shape, call.inputs[0].shape
        kept = flattened(order, made[1] // read[1]) if kind is nn.Flatten and len(made) > 1 else order
        if kept is None:
            raise PlanError(f"{call.where}: flattens channels in order {str(order)!r}; pool to one place first")
        return step(call, "stays", lane_devices, order=order, output_order=kept, pays=False)
    if final:
        return step(call, "stays+leave", lane_devices, order=order)
    if kind in DROPOUTS and getattr(call.layer, "inplace") and order != PLAIN:  # noqa: B009
        raise PlanError(
            f"{call.where}: works in place on channels in order {str(order)!r}; use inplace=False, or put channels in "
            "plain order first, by lanes.models.Concat() instead of torch.cat"
        )
    if kind in CHANNEL_NORMS:
        return _channel_norm(call, order, lane_devices)
    if isinstance(call.layer, nn.PReLU) and call.layer.num_parameters == 1:
        return step(call, "shared", lane_devices, order=order, output_order=order, pays=False)
    return step(call, "stays", lane_devices, order=order)


def _reordering(call: Call, inputs: list[str], orders: list[Order], lane_devices: int, restored: bool) -> Step:
    """A channel shuffle or concatenation: sends the channels that change device, or leaves that to the next layer."""
    if WHOLE in inputs and lane_devices > 1:
        raise PlanError(
            f"{call.where}: concatenates {' and '.join(inputs)} tensors; make all of them laned, by a dense or grouped "
            "layer each"
        )
    channels = [value.shape[1] for value in call.inputs]
    order: Order | None
    if isinstance(call.layer, nn.ChannelShuffle):
        order = orders[0].shuffled(call.layer.groups, channels[0])
    else:
        order = concatenated(orders, channels)
        if order is None:
            raise PlanError(f"{call.where}: concatenates channels that are shuffled only later")
    if restored:
        return step(call, "passes on", lane_devices, order=orders[0], output_order=order, pays=False)
    return step(call, "shuffle", lane_devices, order=order)


def _channel_norm(call: Call, order: Order, lane_devices: int) -> Step:
    """A norm whose statistics are of several channels: of those of one device, or summed over all lane devices."""
    module, shape = call.layer, call.inputs[0].shape
    if isinstance(module, nn.GroupNorm):
        if module.num_groups % lane_devices == 0:
            return step(call, "stays", lane_devices, order=order)
        return step(call, "sum", lane_devices, order=order, statistics=module.num_groups)
    if isinstance(module, nn.LayerNorm) and module.normalized_shape != tuple(shape[1:]):
        return step(call, "stays", lane_devices, order=order)  # over other dimensions: one device only
    places = shape[2:].numel() if isinstance(module, ChannelLayerNorm) else 1
    return step(call, "sum", lane_devices, order=order, statistics=places)


def _check(call: Call, lane_devices: int) -> None:
    """Refuse layers that are not exact on a part of the channels."""
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
    if isinstance(module, nn.LayerNorm) and list(module.normalized_shape) != shape[1:]:
        raise PlanError(
            f"{call.where}: LayerNorm over {list(module.normalized_shape)} of {shape} does not start at the channels, "
            "dimension 1; use lanes.models.ChannelLayerNorm, which normalises over them at each place"
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
