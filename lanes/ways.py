"""The ways in which a layer can be placed: what crosses before and after its arithmetic, and which weights it holds.

One table, read by the planner (which way is right and cheapest), by the placed layers (which crossing to call) and by
placement (which dimension of a weight is split).
"""

from dataclasses import dataclass

from torch import Tensor

from lanes import crossing
from lanes.crossing import Exchange
from lanes.mesh import Axis

LANED, WHOLE = "laned", "whole"

# What a crossing sends per image, as multiples of (D - 1) / D x (elements of the layer's input, of its output).
# A shuffle's cost is counted channel by channel (ordering.py), a sum's by the statistics of the norm.
FORWARD_COST = {"gather": (1, 0), "scatter_sum": (0, 1), "leave_sum": (0, 2), "leave": (0, 1)}
BACKWARD_COST = {"gather": (1, 0), "scatter_sum": (0, 1), "enter": (2, 0)}
SUMS = 2  # a norm sums over lanes twice: for the mean, and for the variance around it


def _as_is(x: Tensor, lane: Axis) -> Tensor:
    return x


def _enter_own(x: Tensor, lane: Axis) -> Tensor:
    return crossing.enter(x, lane)[:, lane.own(x.shape[1])]


@dataclass(frozen=True)
class Way:
    """One way of placing a layer.

    Attributes:
        input: state of the tensor that the layer reads.
        output: state of the tensor that it makes.
        crossings: names of the crossings it calls, in order.
        before: what happens to the input.
        after: what happens to the output.
        weight_dim: the dimension of the weight that is split over lane devices; None: each holds all of it.
        bias_dim: the same for the bias.
        bias_after: the bias is added after ``after`` (once, to the sum), not by the layer's arithmetic.
    """

    input: str
    output: str
    crossings: tuple[str, ...] = ()
    before: Exchange = _as_is
    after: Exchange = _as_is
    weight_dim: int | None = 0
    bias_dim: int | None = 0
    bias_after: bool = False

    @property
    def meets(self) -> bool:
        """Whether lanes meet here; a whole tensor that is only read by all lanes is no meeting."""
        return any(name != "enter" for name in self.crossings)

    def sent_forward(self, inputs: int, outputs: int, lane_devices: int) -> float:
        """Elements that one lane device sends per image, forward, for a layer of so many whole elements."""
        return self._sent(FORWARD_COST, inputs, outputs, lane_devices)

    def sent_backward(self, inputs: int, outputs: int, lane_devices: int) -> float:
        """Elements that one lane device sends per image, backward."""
        return self._sent(BACKWARD_COST, inputs, outputs, lane_devices)

    def _sent(self, cost: dict[str, tuple[int, int]], inputs: int, outputs: int, lane_devices: int) -> float:
        costs = [cost.get(name, (0, 0)) for name in self.crossings]
        return sum(a * inputs + b * outputs for a, b in costs) * (lane_devices - 1) / lane_devices

    def sent_statistics(self, elements: int, lane_devices: int) -> float:
        """Elements of statistics that one lane device sends per image, forward, and again backward."""
        return 2 * SUMS * elements * ("sum" in self.crossings) * (lane_devices - 1) / lane_devices


WAYS: dict[str, Way] = {
    # A grouped layer, or one that treats each channel alone.
    "stays": Way(LANED, LANED),
    "stays+leave": Way(LANED, WHOLE, ("leave",), after=crossing.leave),
    "enter+own": Way(WHOLE, LANED, ("enter",), before=_enter_own),
    # A dense layer that reads the whole image.
    "enter": Way(WHOLE, LANED, ("enter",), before=crossing.enter),
    "enter+leave": Way(WHOLE, WHOLE, ("enter", "leave"), before=crossing.enter, after=crossing.leave),
    # A dense layer between lanes: it crosses at its narrow end.
    "gather": Way(LANED, LANED, ("gather",), before=crossing.gather),
    "scatter_sum": Way(LANED, LANED, ("scatter_sum",), after=crossing.scatter_sum, weight_dim=1, bias_after=True),
    # The last dense layer.
    "leave_sum": Way(
        LANED, WHOLE, ("leave_sum",), after=crossing.leave_sum, weight_dim=1, bias_dim=None, bias_after=True
    ),
    "gather+leave": Way(LANED, WHOLE, ("gather", "leave"), before=crossing.gather, after=crossing.leave),
    # A norm whose statistics are of channels of several devices.
    "sum": Way(LANED, LANED, ("sum",)),
    # A weight that all lanes share (a PReLU with one slope): its gradient is summed over them.
    "shared": Way(LANED, LANED, weight_dim=None),
    # Channel shuffle and concatenation: now, or together with what the next layer does.
    "shuffle": Way(LANED, LANED, ("shuffle",)),
    "passes on": Way(LANED, LANED),
    # Replicated work behind the last crossing.
    "whole": Way(WHOLE, WHOLE, weight_dim=None, bias_dim=None),
}
