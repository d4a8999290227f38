"""How one layer is placed and what that sends, before it is priced for a data type."""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from lanes.ordering import PLAIN, Order
from lanes.rules.kinds import thinned, thinning
from lanes.tracing import Call, PlanError
from lanes.ways import WAYS


@dataclass(frozen=True)
class Step:
    """A layer's placement, before it is priced for a data type.

    Attributes:
        type: the layer's class name.
        way: name of its entry in WAYS.
        input: state of the tensor it reads.
        output: state of the tensor it makes.
        sent_forward: elements that one lane device sends per image (all calls of the layer).
        sent_backward: the same, backward.
        statistics: elements of statistics that it sends per image forward, in 32 bits at least.
        statistics_backward: the same, backward.
        step_bytes: what it sends per training step whatever the batch: gradients of a weight that all lanes share.
        kept: elements of gathered inputs that are kept for backward, per image.
        parameters: number of parameters on each lane device.
        order: of the channels that it reads; it puts them in plain order unless it keeps them as they are.
        output_order: of the channels that it makes.
        shares: the layer that gathers the same tensor for this one too; "" for none.
    """

    type: str
    way: str
    input: str
    output: str
    sent_forward: float = 0
    sent_backward: float = 0
    statistics: float = 0
    statistics_backward: float = 0
    step_bytes: float = 0
    kept: int = 0
    parameters: int = 0
    order: Order = PLAIN
    output_order: Order = PLAIN
    shares: str = ""

    def again(self, other: "Step", where: str, lane_devices: int) -> "Step":
        """The same layer run once more in the same forward.

        Raises:
            PlanError: if it would have to be placed otherwise this time; names the layer, ``where``.
        """
        if other is self:
            return self
        ordered_alike = (self.order, self.output_order) == (other.order, other.output_order)
        # On one device all ways are the same.
        if not ordered_alike or (lane_devices > 1 and self.placed_as != other.placed_as):
            way_out = "use a layer for each run"
            if (self.way, self.input) == (other.way, other.input):
                way_out += ", or put channels in plain order first, by lanes.models.Concat() instead of torch.cat"
            raise PlanError(
                f"{where}: runs more than once, and would have to be placed as {self.described} on a {self.input} "
                f"tensor and as {other.described} on a {other.input} one; {way_out}"
            )
        return dataclasses.replace(
            self,
            sent_forward=self.sent_forward + other.sent_forward,
            sent_backward=self.sent_backward + other.sent_backward,
            statistics=self.statistics + other.statistics,
            statistics_backward=self.statistics_backward + other.statistics_backward,
            step_bytes=self.step_bytes + other.step_bytes,
            kept=self.kept + other.kept,
        )

    @property
    def placed_as(self) -> tuple[Any, ...]:
        """What must be the same in every run of the layer."""
        return self.way, self.input, self.order, self.output_order

    @property
    def described(self) -> str:
        """For messages."""
        return repr(self.way) + (f" with its channels in order {str(self.order)!r}" if self.order != PLAIN else "")


def step(
    call: Call,
    way_name: str,
    lane_devices: int,
    *,
    order: Order = PLAIN,
    output_order: Order = PLAIN,
    statistics: int = 0,
    pays: bool = True,
) -> Step:
    """Count what a layer's call sends if it is placed in a way.

    Args:
        call: the layer's call.
        way_name: of WAYS.
        lane_devices: D.
        order: of the channels that it reads.
        output_order: of the channels that it makes.
        statistics: elements per image of each sum over lanes that it takes.
        pays: it puts the channels that it reads in plain order.
    """
    module, way = call.layer, WAYS[way_name]
    sizes = {name: p.numel() for name, p in module.named_parameters(recurse=False)} if module is not None else {}
    dims = {"weight": way.weight_dim, "bias": way.bias_dim}
    read, made = call.inputs[0].shape, call.outputs[0].shape
    inputs, outputs = math.prod(thinned(read, thinning(module))[1:]), math.prod(made[1:])
    # What runs without gradients (torch.no_grad) makes a tensor that needs none.
    input_grad = any(value.requires_grad for value in call.inputs) and call.outputs[0].requires_grad
    owed = 0.0
    if pays and order != PLAIN and "gather" not in way.crossings:
        owed = order.sent(lane_devices) * (inputs // read[1])
    shared = 0.0
    if way_name == "shared":
        weight: Any = getattr(module, "weight")  # noqa: B009
        learns = weight.requires_grad and call.outputs[0].requires_grad
        shared = 2 * weight.numel() * weight.itemsize * learns * (lane_devices - 1) / lane_devices
    return Step(
        call.function,
        way_name,
        way.input,
        way.output,
        sent_forward=way.sent_forward(inputs, outputs, lane_devices) + owed,
        sent_backward=way.sent_backward(inputs * input_grad, outputs, lane_devices) + owed * input_grad,
        statistics=way.sent_statistics(statistics, lane_devices),
        statistics_backward=way.sent_statistics(statistics, lane_devices) * input_grad,
        step_bytes=shared,
        kept=inputs if "gather" in way.crossings else 0,
        parameters=sum(size if dims[name] is None else size // lane_devices for name, size in sizes.items()),
        order=order,
        output_order=output_order,
    )


def cost(steps: list[Step]) -> float:
    """Elements sent per image, forward and backward."""
    return sum(step.sent_forward + step.sent_backward for step in steps)
