"""Decides, for each layer of a plain model, whether it stays in its lane or crosses, how, and what that costs.

A plan is data: it prints as a table, is saved to and loaded from YAML, and can be overridden by layer name.
What cannot be proved to equal the plain model is refused, with the layer, the operation, the numbers and the way out.

Shapes: N batch, C all channels, D lane devices, H W spatial. States of a tensor: *laned* (each lane device holds its
own channels, dimension 1) or *whole* (alike on all lane devices).

Kept out: reading the model (tracing.py), moving weights (placement.py).
"""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from lanes import rules
from lanes.glue import glue
from lanes.mesh import check_lane_devices, divisors, one_of
from lanes.rules import Step
from lanes.tables import table
from lanes.tracing import PlanError, Trace, Value, trace
from lanes.ways import WAYS

__all__ = ["LayerPlan", "Plan", "PlanError", "plan"]

FORMAT = "lanes-plan/1"


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is placed.

    Attributes:
        type: the layer's class name, e.g. "Conv2d".
        way: the name of an entry of :data:`lanes.ways.WAYS`, or "local" for layers without one.
        input: state of the tensor it reads, "laned" or "whole".
        output: state of the tensor it makes.
        sent_forward_bytes: what one lane device sends per image, forward.
        sent_backward_bytes: the same, backward.
        kept_bytes: of gathered inputs kept for backward, per image and lane device.
        parameters: how many parameters each lane device holds.
    """

    type: str
    way: str
    input: str
    output: str
    sent_forward_bytes: float
    sent_backward_bytes: float
    kept_bytes: int
    parameters: int


@dataclass(frozen=True)
class Plan:
    """The placement of a model over ``lane_devices`` devices, layer by layer in the order of the forward.

    Attributes:
        lane_devices: D.
        dtype: the data type that crossings send, e.g. "float32".
        layers: qualified layer name -> how it is placed.
    """

    lane_devices: int
    dtype: str
    layers: dict[str, LayerPlan]

    @property
    def crossings(self) -> dict[str, LayerPlan]:
        """The layers at which lanes meet."""
        return {
            name: layer for name, layer in self.layers.items() if WAYS[layer.way].meets or layer.sent_backward_bytes
        }

    @property
    def sent_bytes(self) -> float:
        """What one lane device sends per image and training step, forward and backward."""
        return sum(layer.sent_forward_bytes + layer.sent_backward_bytes for layer in self.layers.values())

    @property
    def parameters(self) -> int:
        """How many parameters each lane device holds."""
        return sum(layer.parameters for layer in self.layers.values())

    def _placement(self, name: str) -> str:
        way = self.layers[name].way
        if name in self.crossings:
            return f"crosses: {way}"
        return {"enter": "reads all", "enter+own": "reads its own", "whole": "on every device"}.get(way, "stays")

    def __str__(self) -> str:
        head = ("layer", "type", "stays | crosses", "sent forward", "sent backward", "kept", "parameters")
        rows = [
            (
                name,
                layer.type,
                self._placement(name),
                _bytes(layer.sent_forward_bytes),
                _bytes(layer.sent_backward_bytes),
                _bytes(layer.kept_bytes),
                f"{layer.parameters:,}" if layer.parameters else "-",
            )
            for name, layer in self.layers.items()
        ]
        forward = sum(layer.sent_forward_bytes for layer in self.layers.values())
        kept = sum(layer.kept_bytes for layer in self.layers.values())
        total = (
            "total",
            "",
            "",
            _bytes(forward),
            _bytes(self.sent_bytes - forward),
            _bytes(kept),
            f"{self.parameters:,}",
        )
        title = f"{self.lane_devices} lane device{'s' if self.lane_devices > 1 else ''}, crossings in {self.dtype}"
        return f"{title}; bytes are per image and lane device\n{table([head, *rows, total], '<<<>>>>', total=True)}"

    def save(self, path: str | Path) -> None:
        """Write the plan as YAML."""
        layers = {name: dataclasses.asdict(layer) for name, layer in self.layers.items()}
        document = {"format": FORMAT, "lane_devices": self.lane_devices, "dtype": self.dtype, "layers": layers}
        Path(path).write_text(yaml.safe_dump(document, sort_keys=False))

    @classmethod
    def load(cls, path: str | Path) -> "Plan":
        """Read a plan that :meth:`save` wrote.

        Raises:
            ValueError: names the file and what in it is not a plan.
        """
        try:
            document = yaml.safe_load(Path(path).read_text())
        except yaml.YAMLError as error:
            raise ValueError(f"{path} is not YAML: {error}") from error
        if not isinstance(document, dict) or document.get("format") != FORMAT:
            found = document.get("format") if isinstance(document, dict) else type(document).__name__
            raise ValueError(f"{path} is not a plan of this version: its format is {found!r}, not {FORMAT!r}")
        try:
            layers = {name: LayerPlan(**layer) for name, layer in document["layers"].items()}
            loaded = cls(int(document["lane_devices"]), str(document["dtype"]), layers)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a whole plan: {error}") from error
        for name, layer in layers.items():
            if layer.way not in WAYS:
                raise ValueError(
                    f"{path}: {name} has no way {layer.way!r}{near(layer.way, WAYS)}; ways are {', '.join(WAYS)}"
                )
        return loaded


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
        dtype: the data type in which crossings are sent, if not the example's (autocast: ``torch.bfloat16``).

    Raises:
        PlanError: a layer or operation that cannot be placed exactly: names it, the numbers and the way out.
        ValueError: an unknown layer or way in ``override``.
    """
    check_lane_devices(lane_devices)
    if not isinstance(example, Tensor) or example.dim() < 2:
        found = list(example.shape) if isinstance(example, Tensor) else type(example).__name__
        raise ValueError(f"example must be a batch of inputs [N, C, ...], got {found}")
    if any(hasattr(parameter, "device_mesh") for parameter in model.parameters()):
        raise ValueError("the model is placed already; plan the plain model")
    traces = _trace_both_modes(model, example)
    item_bytes = (dtype or example.dtype).itemsize
    name = str(dtype or example.dtype).removeprefix("torch.")
    override = _checked_override(override or {}, traces)
    try:
        steps = _decide(model, traces, lane_devices, override)
    except PlanError as error:
        others = _way_out(model, traces, lane_devices, override)
        joint = "" if not others else ", or " if "; " in str(error) else "; "
        raise PlanError(f"{error}{joint}{others}") from None
    return Plan(lane_devices, name, {layer: _priced(step, lane_devices, item_bytes) for layer, step in steps.items()})


def _trace_both_modes(model: nn.Module, example: Tensor) -> list[Trace]:
    """The forward in training and in evaluation: both must be right."""
    modes = {module: module.training for module in model.modules()}
    # A cumulative average asks for the number of batches so far, which has no value here; its shape is any momentum's.
    cumulative = [m for m in modes if isinstance(m, rules.BATCH_NORMS) and m.momentum is None]
    try:
        for norm in cumulative:
            norm.momentum = 0.1
        return [trace(model.train(mode), example, rules.is_layer) for mode in (True, False)]
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


def near(word: str, words: Any) -> str:
    """A hint for a mistyped word: ``"; did you mean 'conv3'?"`` or nothing."""
    matches = difflib.get_close_matches(word, list(words), n=1)
    return f"; did you mean {matches[0]!r}?" if matches else ""


def _way_out(model: nn.Module, traces: list[Trace], refused: int, override: Mapping[str, str]) -> str:
    """The numbers of lane devices for which the model can be placed, if there are any but one."""
    works = []
    for lane_devices in sorted({d for call in traces[0].calls for d in divisors(rules.channels(call))} - {refused}):
        try:
            _decide(model, traces, lane_devices, override)
        except PlanError:
            continue
        works.append(lane_devices)
    return f"use {one_of(works)} lane device{'s' if works[-1] > 1 else ''}" if works else ""


def _decide(model: nn.Module, traces: list[Trace], lane_devices: int, override: Mapping[str, str]) -> dict[str, Step]:
    rules.check_parameters(model, traces[0])
    rules.check_hooks(model)
    steps: dict[str, Step] = {}
    for traced in traces:
        for name, step in _follow(traced, lane_devices, override).items():
            first = steps.setdefault(name, step)
            # On one device laned and whole are the same.
            if lane_devices > 1 and (first.way, first.input) != (step.way, step.input):
                raise PlanError(
                    f"{name}: runs as {first.way!r} on a {first.input} tensor in training and as {step.way!r} on a "
                    f"{step.input} one in evaluation"
                )
    return steps


def _follow(traced: Trace, lane_devices: int, override: Mapping[str, str]) -> dict[str, Step]:
    """Follow the states of all tensors through the forward; make the output whole."""
    leaving: set[str] = set()
    while True:
        states: dict[Value, str] = {}
        steps: dict[str, Step] = {}
        last = rules.last_mixing_calls(traced)
        for position, call in enumerate(traced.calls):
            inputs = [states.get(value, "whole") for value in call.inputs]
            if call.layer is None:
                state = glue(call, inputs, traced.batch, lane_devices)
            else:
                final = call.where in leaving or (position in last and rules.is_dense(call.layer))
                step = rules.layer(call, inputs, lane_devices, final, override.get(call.where))
                state = step.output
                earlier = steps.setdefault(call.where, step)
                steps[call.where] = earlier.again(step)
            states |= dict.fromkeys(call.outputs, state)
        laned = [value for value in traced.outputs if states.get(value) == "laned"]
        if not laned:
            return steps
        leaving.add(rules.last_to_leave(traced, laned[0], leaving))


def _priced(step: Step, lane_devices: int, item_bytes: int) -> LayerPlan:
    way = WAYS[step.way]
    forward = way.sent_forward(step.inputs, step.outputs, lane_devices) * item_bytes
    backward = way.sent_backward(step.inputs * step.input_grad, step.outputs, lane_devices) * item_bytes
    kept = step.inputs * item_bytes if "gather" in way.crossings else 0
    return LayerPlan(step.type, step.way, step.input, step.output, forward, backward, kept, step.parameters)


def _bytes(number: float) -> str:
    if not number:
        return "-"
    return f"{number:,.0f} B" if number < 10_000 else f"{number / 1024:,.1f} KiB"
