"""A plan as data: how each layer is placed and what it sends. It prints as a table, is saved as YAML and read again.

Kept out: how a plan is found (planning.py), moving weights (placement.py).
"""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from lanes.ordering import Order
from lanes.tables import table
from lanes.ways import WAYS
from lanes.words import near

FORMAT = "lanes-plan/1"
_HEAD = ("layer", "type", "stays | crosses", "sent forward", "sent backward", "Megatron-style", "kept", "parameters")


@dataclass(frozen=True)
class LayerPlan:
    """How one layer is placed.

    Attributes:
        type: the layer's class name, e.g. "Conv2d".
        way: the name of an entry of :data:`lanes.ways.WAYS`.
        input: state of the tensor it reads, "laned" or "whole".
        output: state of the tensor it makes.
        sent_forward_bytes: what one lane device sends per image, forward; the busiest, where channels are re-ordered.
        sent_backward_bytes: the same, backward.
        kept_bytes: of gathered inputs kept for backward, per image and lane device.
        parameters: how many parameters each lane device holds.
        sent_step_bytes: what one lane device sends per training step whatever the batch: the gradients of a weight that
            all lanes share.
        order: of the channels that it reads, "" for the plain model's; e.g. "24+216, shuffle 3": each lane device has
            concatenated its parts of 24 and 216 channels, and a channel shuffle in 3 groups is owed.
        output_order: of the channels that it makes.
        shares: the layer that gathers the tensor that both read; "" for none. Like the orders this is a fact about the
            model, not a choice: do not edit it.
        megatron_forward_bytes: what one device of a Megatron-style placement would send here (megatron.py).
        megatron_backward_bytes: the same, backward.
    """

    type: str
    way: str
    input: str
    output: str
    sent_forward_bytes: float
    sent_backward_bytes: float
    kept_bytes: int
    parameters: int
    sent_step_bytes: float = 0.0
    order: str = ""
    output_order: str = ""
    shares: str = ""
    megatron_forward_bytes: float = 0.0
    megatron_backward_bytes: float = 0.0


@dataclass(frozen=True)
class Plan:
    """The placement of a model over ``lane_devices`` devices, layer by layer in the order of the forward.

    Attributes:
        lane_devices: D.
        dtype: the data type that crossings send, e.g. "float32".
        layers: qualified layer name -> how it is placed.
        orders: names of modules that are no layers -> the order of the channels that they return, if not the plain one.
    """

    lane_devices: int
    dtype: str
    layers: dict[str, LayerPlan]
    orders: dict[str, str] = field(default_factory=dict)

    def output_order(self, module: str) -> Order:
        """The order of the channels that a layer or module returns."""
        layer = self.layers.get(module)
        return Order.parse(self.orders.get(module, "") if layer is None else layer.output_order)

    @property
    def crossings(self) -> dict[str, LayerPlan]:
        """The layers at which lanes meet."""
        return {
            name: layer
            for name, layer in self.layers.items()
            if WAYS[layer.way].meets or layer.sent_backward_bytes or layer.sent_step_bytes
        }

    @property
    def sent_bytes(self) -> float:
        """What one lane device sends per image and training step, forward and backward.

        Where channels are re-ordered the busiest device counts, layer by layer: then no device sends more.
        """
        return sum(layer.sent_forward_bytes + layer.sent_backward_bytes for layer in self.layers.values())

    @property
    def megatron_bytes(self) -> float:
        """What one device of a Megatron-style placement would send per image and training step."""
        return sum(layer.megatron_forward_bytes + layer.megatron_backward_bytes for layer in self.layers.values())

    @property
    def parameters(self) -> int:
        """How many parameters each lane device holds."""
        return sum(layer.parameters for layer in self.layers.values())

    def _placement(self, name: str) -> str:
        layer = self.layers[name]
        if self.lane_devices == 1:
            return "whole" if layer.way == "whole" else "stays"  # there is nobody to meet
        if name not in self.crossings:
            return {"enter": "reads all", "enter+own": "reads its own", "whole": "on every device"}.get(
                layer.way, layer.way
            )
        shared = f" (with {layer.shares})" if layer.shares else ""
        owed = f" ({layer.order})" if layer.order else ""
        if layer.order and layer.way in ("stays", "stays+leave"):  # what it owes is sent before
            return f"crosses: shuffle{owed}, {layer.way}"
        return f"crosses: {layer.way}{shared}{owed}"

    def __str__(self) -> str:
        rows = [
            (
                name,
                layer.type,
                self._placement(name),
                _bytes(layer.sent_forward_bytes),
                _bytes(layer.sent_backward_bytes),
                _bytes(layer.megatron_forward_bytes + layer.megatron_backward_bytes),
                _bytes(layer.kept_bytes),
                f"{layer.parameters:,}" if layer.parameters else "-",
            )
            for name, layer in self.layers.items()
        ]
        forward = sum(layer.sent_forward_bytes for layer in self.layers.values())
        kept = sum(layer.kept_bytes for layer in self.layers.values())
        sums = [_bytes(n) for n in (forward, self.sent_bytes - forward, self.megatron_bytes, kept)]
        total = ("total", "", "", *sums, f"{self.parameters:,}")
        title = f"{self.lane_devices} lane device{'s' if self.lane_devices > 1 else ''}, crossings in {self.dtype}"
        lines = [
            f"{title}; bytes are per image and lane device",
            table([_HEAD, *rows, total], "<<<>>>>>", total=True),
            "Megatron-style: forward and backward, if activations were whole between blocks",
        ]
        if step := sum(layer.sent_step_bytes for layer in self.layers.values()):
            lines.append(f"and once per training step, for weights that all lanes share: {_bytes(step)}")
        return "\n".join(lines)

    def save(self, path: str | Path) -> None:
        """Write the plan as YAML."""
        layers = {name: dataclasses.asdict(layer) for name, layer in self.layers.items()}
        document = {"format": FORMAT, "lane_devices": self.lane_devices, "dtype": self.dtype, "layers": layers}
        document |= {"orders": self.orders} if self.orders else {}
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
            loaded = cls(
                int(document["lane_devices"]), str(document["dtype"]), layers, dict(document.get("orders") or {})
            )
            orders = {name: [layer.order, layer.output_order] for name, layer in layers.items()}
            for name, order in [(n, o) for n, both in orders.items() for o in both] + list(loaded.orders.items()):
                if not isinstance(order, str):
                    raise TypeError(f"{name} has the order {order!r}, which is no text")
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a whole plan: {error}") from error
        for name, layer in layers.items():
            if layer.way not in WAYS:
                raise ValueError(
                    f"{path}: {name} has no way {layer.way!r}{near(layer.way, WAYS)}; ways are {', '.join(WAYS)}"
                )
        for name, order in [(n, o) for n, both in orders.items() for o in both] + list(loaded.orders.items()):
            try:
                Order.parse(order)
            except ValueError as error:
                raise ValueError(f"{path}: {name}: {error}") from error
        return loaded


def _bytes(number: float) -> str:
    if not number:
        return "-"
    return f"{number:,.0f} B" if number < 10_000 else f"{number / 1024:,.1f} KiB"
