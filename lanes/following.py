"""Follows a model's tensors through its forward: which are laned, in which order, and so how each layer is placed.

Kept out: reading the model (tracing.py), what each kind of layer and operation means (rules/, glue.py), prices and
tables (planning.py).
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from torch import nn

from lanes.glue import ELEMENTWISE, glue
from lanes.models import Concat
from lanes.ordering import PLAIN, Order
from lanes.rules.kinds import CHANNELWISE, MIXING, is_dense
from lanes.rules.mixing import gathered_once, mixing
from lanes.rules.models import check_hooks, check_kinds, check_parameters, last_mixing_calls, last_to_leave
from lanes.rules.others import other
from lanes.rules.steps import Step
from lanes.tracing import Call, PlanError, Trace, Value
from lanes.ways import LANED, WHOLE


@dataclass(frozen=True)
class Followed:
    """What was found.

    Attributes:
        steps: layer name -> how it is placed.
        orders: names of modules that are no layers, but return channels in an order of their own -> that order.
    """

    steps: dict[str, Step]
    orders: dict[str, Order]


def decide(model: nn.Module, traces: list[Trace], lane_devices: int, override: Mapping[str, str]) -> Followed:
    """Decide how each layer is placed, by the forward in training and the one in evaluation.

    Args:
        model: the plain model.
        traces: of its forward in training, then in evaluation.
        lane_devices: D.
        override: layer name -> way, where the cheaper one is not wanted.

    Raises:
        PlanError: something cannot be placed exactly.
    """
    check_kinds(model, lane_devices)
    check_parameters(model, traces[0])
    check_hooks(model)
    training, evaluation = traces
    found = _follow(training, lane_devices, override)
    steps = found.steps
    steps |= gathered_once(training, steps, override, lane_devices)
    chosen = {name: step.way for name, step in steps.items() if step.way in ("gather", "scatter_sum")}
    for name, step in _follow(evaluation, lane_devices, override, chosen).steps.items():
        first = steps.setdefault(name, step)
        # On one device laned and whole are the same, and no channels are out of order.
        if lane_devices > 1 and first.placed_as != step.placed_as:
            raise PlanError(
                f"{name}: runs as {first.described} on a {first.input} tensor in training and as {step.described} on a "
                f"{step.input} one in evaluation"
            )
    return found


def _follow(
    traced: Trace, lane_devices: int, override: Mapping[str, str], usual: Mapping[str, str] = MappingProxyType({})
) -> Followed:
    """Follow the states of all tensors through the forward; make the output whole."""
    leaving: set[str] = set()
    last = last_mixing_calls(traced)
    readers = _readers(traced)
    while True:
        states: dict[Value, str] = {}
        orders: dict[Value, Order] = {}
        steps: dict[str, Step] = {}
        for position, call in enumerate(traced.calls):
            inputs = [states.get(value, WHOLE) for value in call.inputs]
            if call.layer is None:
                state, order = glue(call, inputs, orders, traced.batch, lane_devices)
            else:
                final = call.where in leaving or (position in last and is_dense(call.layer))
                held = [orders.get(value, PLAIN) for value in call.inputs]
                step = _layer(call, inputs, held, lane_devices, final, override, usual, readers)
                state, order = step.output, step.output_order
                earlier = steps.setdefault(call.where, step)
                steps[call.where] = earlier.again(step, call.where, lane_devices)
            states |= dict.fromkeys(call.outputs, state)
            if order != PLAIN:
                orders |= dict.fromkeys(call.outputs, order)
        laned = [value for value in traced.outputs if states.get(value) == LANED]
        if not laned:
            return Followed(steps, {name: orders[v] for name, v in traced.made.items() if v in orders})
        leaving.add(last_to_leave(traced, laned[0], leaving, lane_devices))


def _layer(
    call: Call,
    inputs: list[str],
    orders: list[Order],
    lane_devices: int,
    final: bool,
    overrides: Mapping[str, str],
    usual: Mapping[str, str],
    readers: Mapping[Value, list[Call]],
) -> Step:
    """Place one layer."""
    override = overrides.get(call.where)
    if len(call.inputs) != 1 and not (call.inputs and isinstance(call.layer, Concat)):
        raise PlanError(f"{call.where}: a {call.function} that is not called with one positional tensor cannot be read")
    if type(call.layer) in MIXING:
        return mixing(call, inputs[0], orders[0], lane_devices, final, override, usual.get(call.where))
    # One device re-orders for nothing, so at once: then training and evaluation cannot differ.
    restored = lane_devices > 1 and _restored(call.outputs[0], readers)
    step = other(call, inputs, orders, lane_devices, final, restored)
    if override not in (None, step.way):
        raise PlanError(f"{call.where}: cannot be placed as {override!r} here; it can be {step.way}")
    return step


def _readers(traced: Trace) -> dict[Value, list[Call]]:
    """Who reads each tensor; the model's outputs are read by a call of nobody's.

    A layer that runs more than once reads as often: the order of its channels must be the same each time, so nothing is
    left to it.
    """
    readers: dict[Value, list[Call]] = {}
    runs = Counter(call.where for call in traced.calls if call.layer is not None)
    for call in traced.calls:
        for value in call.inputs:
            readers.setdefault(value, []).extend([call] * (1 if call.layer is None else runs[call.where]))
    for value in traced.outputs:
        readers.setdefault(value, []).append(Call("", None, "the model's output", (value,), ()))
    return readers


def _restored(value: Value, readers: Mapping[Value, list[Call]]) -> bool:
    """Whether a tensor's only reader brings channels into plain order anyway: a shuffle, or a dense layer."""
    if len(readers.get(value, [])) != 1:
        return False
    call = readers[value][0]
    if isinstance(call.layer, nn.ChannelShuffle) or is_dense(call.layer):
        return True
    passes = type(call.layer) in CHANNELWISE and not isinstance(call.layer, nn.Flatten)
    passes |= call.layer is None and call.function.strip("_") in ELEMENTWISE and len(call.inputs) == 1
    return passes and _restored(call.outputs[0], readers)
