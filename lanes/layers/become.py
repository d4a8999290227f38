"""Which placed layer a plain one becomes, and what changes with it."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from lanes.layers.batch_norm import PlacedBatchNorm1d, PlacedBatchNorm2d, PlacedBatchNorm3d
from lanes.layers.channel_norms import PlacedChannelLayerNorm, PlacedGroupNorm, PlacedLayerNorm
from lanes.layers.dropout import PlacedDropout, PlacedDropout1d, PlacedDropout2d, PlacedDropout3d
from lanes.layers.mixing import (
    Gathering,
    PlacedConv1d,
    PlacedConv2d,
    PlacedConv3d,
    PlacedGroupedLinear,
    PlacedLinear,
)
from lanes.layers.others import (
    PlacedChannelShuffle,
    PlacedConcat,
    PlacedLayerScale,
    PlacedLocalResponseNorm,
    PlacedPReLU,
)
from lanes.layers.placed import Placed
from lanes.mesh import Axis
from lanes.models import ChannelLayerNorm, Concat, GroupedLinear, LayerScale, LocalResponseNorm
from lanes.ordering import PLAIN, Order
from lanes.plans import LayerPlan
from lanes.rules.kinds import BATCH_NORMS, thinning
from lanes.ways import LANED, WHOLE

# Plain class -> placed class, for laned tensors. Layers that are not here run as they are.
PLACED: dict[type[nn.Module], type[Placed]] = {
    nn.Conv1d: PlacedConv1d,
    nn.Conv2d: PlacedConv2d,
    nn.Conv3d: PlacedConv3d,
    nn.Linear: PlacedLinear,
    GroupedLinear: PlacedGroupedLinear,
    nn.BatchNorm1d: PlacedBatchNorm1d,
    nn.BatchNorm2d: PlacedBatchNorm2d,
    nn.BatchNorm3d: PlacedBatchNorm3d,
    nn.Dropout: PlacedDropout,
    nn.Dropout1d: PlacedDropout1d,
    nn.Dropout2d: PlacedDropout2d,
    nn.Dropout3d: PlacedDropout3d,
    nn.GroupNorm: PlacedGroupNorm,
    nn.LayerNorm: PlacedLayerNorm,
    ChannelLayerNorm: PlacedChannelLayerNorm,
    nn.PReLU: PlacedPReLU,
    LayerScale: PlacedLayerScale,
    LocalResponseNorm: PlacedLocalResponseNorm,
    nn.ChannelShuffle: PlacedChannelShuffle,
    Concat: PlacedConcat,
}


def become_placed(layer: nn.Module, plan: LayerPlan, lane: Axis, data: Axis, *, sync_batch_norm: bool) -> None:
    """Turn a plain layer into its placed kind, in place: its class, and the sizes that its arithmetic uses."""
    placed: Any = layer
    strides, reads_own = thinning(layer), plan.input == LANED or plan.way == "enter+own"
    if isinstance(layer, nn.Conv1d | nn.Conv2d | nn.Conv3d) and layer.groups > 1 and plan.way != "whole":
        placed.groups = layer.groups // lane.size
    if isinstance(layer, LocalResponseNorm) and reads_own:
        placed.lanes = layer.lanes // lane.size
    if isinstance(layer, nn.GroupNorm) and plan.way in ("stays", "stays+leave"):
        placed.num_groups = layer.num_groups // lane.size
    if strides is not None and lane.size > 1:
        placed.strides, placed.stride = strides, (1,) * len(strides)
    if isinstance(layer, BATCH_NORMS):
        placed.sync = sync_batch_norm
    order = Order.parse(plan.order)
    source = () if order == PLAIN or plan.input == WHOLE else order.source(lane.size)
    placed.source = None if source == tuple(range(len(source))) else source
    placed.__class__ = PLACED[type(layer)]
    placed.way_name, placed.lane, placed.data = plan.way, lane, data


def becomes_placed(layer: nn.Module, plan: LayerPlan, lane: Axis) -> bool:
    """Whether a layer is to become a placed one; without parameters it need not on whole tensors, or on one device."""
    has_parameters = next(layer.parameters(recurse=False), None) is not None or isinstance(layer, BATCH_NORMS)
    return type(layer) in PLACED and (has_parameters or (plan.output != WHOLE and lane.size > 1))


def gather_together(layers: Mapping[str, nn.Module], plans: Mapping[str, LayerPlan]) -> None:
    """Let placed layers that read the same tensor share one gathering of it."""
    sharing: dict[str, list[Any]] = {}
    for name, plan in plans.items():
        if plan.shares:
            sharing.setdefault(plan.shares, [layers[plan.shares]]).append(layers[name])
    for readers in sharing.values():
        strides = {reader.strides for reader in readers}
        gathering = Gathering(len(readers), strides.pop() if len(strides) == 1 else None, readers[0].source)
        for reader in readers:
            reader.gathering = gathering
