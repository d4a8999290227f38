"""What a Megatron-style placement of the same model would send, for comparison.

Megatron-LM (https://arxiv.org/abs/1909.08053, section 3) keeps activations whole between blocks: a block splits its
work over the devices inside and sums its output over them (all-reduce forward); the gradient of its input is summed too
(all-reduce backward). On a convolutional network, as it is counted here:

- A *block* lies between two tensors through which everything passes, and has parallel paths (a residual unit). It sends
  its output, forward, and the gradient of its input, backward, once each, whatever lies inside. That favours Megatron:
  more than two dense layers in a row inside a block would really need more exchanges. A gate (squeeze-and-excitation)
  is counted as a block too, which is unkind: its pooled path alone would do with a few numbers.
- In a chain without parallel paths, a layer with weights that reads a whole tensor splits its output channels (the
  gradient of its input is summed), and the next dense layer splits its input channels (its output is summed).
- A layer at the end of a chain that finds no partner runs whole on every device, and sends nothing.
- Of a model that returns several tensors, the way to the one that is made last is counted, without heads beside it.

Shapes: N batch, C all channels. Kept out: bytes per device (planning.py).
"""

import math
from collections.abc import Iterator, Mapping

from lanes.rules.kinds import MIXING, is_dense
from lanes.tracing import Call, Trace, Value

Elements = dict[str, tuple[float, float]]


def megatron_elements(traced: Trace, lane_devices: int) -> Elements:
    """What one of ``lane_devices`` devices would send per image: layer name -> elements forward, backward.

    Args:
        traced: the forward in training.
        lane_devices: D.
    """
    forward: dict[str, float] = {}
    backward: dict[str, float] = {}
    opened: Call | None = None  # the layer of a chain that has split its output and waits for a partner
    for read, calls, made in _segments(traced):
        mixing = [call for call in calls if type(call.layer) in MIXING]
        if len(calls) > 1 and mixing:
            opened = None
            forward[mixing[-1].where] = _all_reduced(made, lane_devices)
            backward[mixing[0].where] = _all_reduced(read, lane_devices) * read.requires_grad
        elif mixing and opened is None:
            opened = mixing[0]
        elif mixing and opened is not None and is_dense(mixing[0].layer):
            first = opened.inputs[0]
            backward[opened.where] = _all_reduced(first, lane_devices) * first.requires_grad
            forward[mixing[0].where] = _all_reduced(made, lane_devices)
            opened = None
    return {name: (forward.get(name, 0.0), backward.get(name, 0.0)) for name in {**forward, **backward}}


def _all_reduced(value: Value, lane_devices: int) -> float:
    return 2 * math.prod(value.shape[1:]) * (lane_devices - 1) / lane_devices


def _segments(traced: Trace) -> Iterator[tuple[Value, list[Call], Value]]:
    """What lies between two tensors through which everything passes: nothing made before is read behind them."""
    leading = _leading(traced)
    read = next((call.inputs[0] for call in leading if call.inputs), None)  # the first call may make a constant
    if read is None:
        return
    last_read = _last_reads(leading)
    live: set[Value] = set()
    calls: list[Call] = []
    for position, call in enumerate(leading):
        calls.append(call)
        live = {v for v in live.union(call.inputs, call.outputs) if last_read.get(v, -1) > position}
        if len(live) == 1:
            (made,) = live
            yield read, calls, made
            read, calls = made, []


def _leading(traced: Trace) -> list[Call]:
    """The calls that lead to the output that is made last."""
    wanted = set(sorted(traced.outputs, key=lambda value: value.index)[-1:])
    leading = []
    for call in reversed(traced.calls):
        if wanted.intersection(call.outputs):
            leading.append(call)
            wanted.update(call.inputs)
    return leading[::-1]


def _last_reads(calls: list[Call]) -> Mapping[Value, int]:
    """The position of the last call that reads each tensor; what the last call makes is read behind it."""
    last: dict[Value, int] = {}
    for position, call in enumerate(calls):
        last |= dict.fromkeys(call.inputs, position)
    return last | dict.fromkeys(calls[-1].outputs, len(calls))
