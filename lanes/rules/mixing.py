"""Convolutions and linear layers: grouped ones stay, dense ones cross at their narrow end."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from lanes.ordering import PLAIN, Order
from lanes.rules.kinds import CONVOLUTIONS, channels, groups_of, is_dense, thinned, thinning
from lanes.rules.steps import Step, cost, step
from lanes.tracing import Call, PlanError, Trace
from lanes.ways import WAYS, WHOLE


def mixing(
    call: Call,
    state: str,
    order: Order,
    lane_devices: int,
    final: bool,
    override: str | None,
    usual: str | None = None,
) -> Step:
    """Place a convolution or linear layer.

    Args:
        call: its call.
        state: of the tensor it reads.
        order: of the channels of that tensor.
        lane_devices: D.
        final: its output must be whole (the head).
        override: the way the user asks for.
        usual: the way it is placed in training, taken where it can be.

    Raises:
        PlanError: if it cannot be placed exactly, or not as asked.
    """
    ways = _ways(call, state, lane_devices, final)
    if override is not None:
        if override not in ways and override not in _all_ways(call, state, lane_devices):
            raise PlanError(f"{call.where}: cannot be placed as {override!r} here; it can be {' or '.join(ways)}")
        return step(call, override, lane_devices, order=order)
    if usual in ways:
        return step(call, usual, lane_devices, order=order)
    # At one lane device nothing is sent; the choice must not depend on that, so count as if there were two.
    best = min(ways, key=lambda way: cost([step(call, way, max(lane_devices, 2), order=_even(order, lane_devices))]))
    return step(call, best, lane_devices, order=order)


def _even(order: Order, lane_devices: int) -> Order:
    """An order in whose terms two devices can be spoken of."""
    return order if lane_devices > 1 else PLAIN


def _all_ways(call: Call, state: str, lane_devices: int) -> list[str]:
    found = []
    for final in (False, True):
        try:
            found += _ways(call, state, lane_devices, final)
        except PlanError:
            continue
    return found


def _ways(call: Call, state: str, lane_devices: int, final: bool) -> list[str]:
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


def gathered_once(
    traced: Trace, steps: Mapping[str, Step], override: Mapping[str, str], lane_devices: int
) -> dict[str, Step]:
    """The steps of dense layers that read the same tensor as others, where gathering it once for them is cheaper.

    If the tensor is gathered for one, the others read it for nothing. Layers that skip the same places of it (strided,
    1x1) can have it gathered without them. So it is gathered for all, or for those of some strides, or for none.

    Args:
        traced: the forward.
        steps: how each layer would be placed if it were alone.
        override: the ways that the user asks for.
        lane_devices: D.
    """
    runs: dict[str, int] = {}
    readers: dict[tuple[object, bool], list[Call]] = {}
    for call in traced.calls:
        if call.layer is not None:
            runs[call.where] = runs.get(call.where, 0) + 1
            if is_dense(call.layer) and steps[call.where].way in ("gather", "scatter_sum"):
                # What torch.no_grad gathers has no gradient to send back: not for the others.
                readers.setdefault((call.inputs[0], call.outputs[0].requires_grad), []).append(call)
    changed: dict[str, Step] = {}
    for calls in readers.values():
        if len(calls) > 1 and all(runs[call.where] == 1 for call in calls):
            changed |= _joint(calls, steps, override, lane_devices)
    return changed


@dataclass(frozen=True)
class _Readers:
    """Dense layers that read the same tensor, some of which gather it together.

    Attributes:
        calls: all of them.
        gathering: those that read it gathered; the others send sums.
        strides: of the places that are gathered; None for all places.
    """

    calls: list[Call]
    gathering: list[Call]
    strides: tuple[int, ...] | None

    def steps(self, order: Order, lane_devices: int) -> dict[str, Step]:
        """How each is placed: the first that gathers sends for all that do."""
        found: dict[str, Step] = {}
        order = _even(order, lane_devices)
        for call in self.calls:
            if call not in self.gathering:
                found[call.where] = step(call, "scatter_sum", lane_devices, order=order)
                continue
            alone, read = step(call, "gather", lane_devices, order=order), call.inputs[0]
            first = call is self.gathering[0]
            inputs = math.prod(thinned(read.shape, self.strides)[1:]) * first
            sent = WAYS["gather"].sent_forward(inputs, 0, lane_devices)
            found[call.where] = dataclasses.replace(
                alone,
                sent_forward=sent,
                sent_backward=sent * read.requires_grad * call.outputs[0].requires_grad,
                kept=inputs,
                shares="" if first else self.gathering[0].where,
            )
        return found


def _joint(
    calls: list[Call], steps: Mapping[str, Step], override: Mapping[str, str], lane_devices: int
) -> dict[str, Step]:
    """The cheapest placement of layers that read the same tensor."""
    order = steps[calls[0].where].order

    def price(options: list[_Readers]) -> float:
        # At one lane device nothing is sent; the choice must not depend on that, so count as if there were two.
        devices = max(lane_devices, 2)
        return sum(
            cost(list(readers.steps(PLAIN if lane_devices == 1 else order, devices).values())) for readers in options
        )

    def cheapest(among: list[Call], strides: tuple[int, ...] | None) -> _Readers:
        gathering = [call for call in among if override.get(call.where) != "scatter_sum"]
        asked = [call for call in among if override.get(call.where) == "gather"]
        return min((_Readers(among, some, strides) for some in (gathering, asked)), key=lambda option: price([option]))

    strides = dict.fromkeys(thinning(call.layer) for call in calls)
    together = [cheapest(calls, next(iter(strides)) if len(strides) == 1 else None)]
    apart = [cheapest([call for call in calls if thinning(call.layer) == kind], kind) for kind in strides]
    chosen = min(together, apart, key=price)
    return {name: found for readers in chosen for name, found in readers.steps(order, lane_devices).items()}
