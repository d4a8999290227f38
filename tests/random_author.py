"""Writes random small networks (random_networks.py), line by line.

Shapes: N batch, C channels, one to three spatial dimensions, or none: vectors.
"""

import random
from collections.abc import Callable
from math import gcd
from typing import Protocol

import torch
from torch import Tensor, nn

from lanes.models import (
    ChannelLayerNorm,
    Concat,
    DropPath,
    GroupedLinear,
    LayerScale,
    LocalResponseNorm,
    SqueezeExcitation,
)
from lanes.rules.kinds import CHANNELWISE
from tests.random_operations import CATS, FLATS, GATES, INPLACE, JOINS, SAFE, SHRINKS, UNSAFE, Statement

CLASSES = 10
CONVOLUTIONS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
BATCH_NORMS = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CHANNEL_DROPOUTS = {1: nn.Dropout1d, 2: nn.Dropout2d, 3: nn.Dropout3d}
ACTIVATIONS = [
    kind for kind in CHANNELWISE if kind.__module__ in ("torch.nn.modules.activation", "torch.nn.modules.linear")
]


class Program(Protocol):
    """What is written on."""

    layers: nn.ModuleDict
    program: list[Statement]

    def run(self, line: Statement, tensors: dict[str, Tensor]) -> Tensor:
        """Run a line."""


class Author:
    """Writes a network line by line, and runs each on numbers to know its shape."""

    def __init__(self, net: Program, shape: tuple[int, ...], lane_devices: int, rng: random.Random) -> None:
        self.net, self.rng = net, rng
        self.lane_devices = lane_devices
        careful = rng.random() < 0.9
        self.unit = rng.choice([lane_devices, lane_devices, 2 * lane_devices]) if careful else rng.choice([1, 2, 3])
        self.risk = 0.0 if rng.random() < 0.85 else 0.3  # of what has to be refused
        self.tensors = {"image": torch.randn(shape, generator=torch.Generator().manual_seed(0))}
        self.fresh = ""  # the tensor that nothing needs any more as it is: it may be changed in place

    # ---- Lines

    def line(self, operation: str, *sources: str) -> str:
        """Run an operation or a layer that there is; the name of its result."""
        line = Statement(f"t{len(self.net.program)}", operation, sources)
        layer = self.net.layers[operation].eval() if operation in self.net.layers else None
        with torch.no_grad():
            self.tensors[line.target] = self.net.run(line, self.tensors)
        if layer is not None:
            layer.train()
        self.net.program.append(line)
        return line.target

    def layer(self, module: nn.Module, *sources: str) -> str:
        """A new layer."""
        name = f"{type(module).__name__.lower()}{len(self.net.layers)}"
        self.net.layers[name] = module
        return self.line(name, *sources)

    def any_of(self, operations: dict[str, Callable[..., Tensor]], *sources: str) -> str:
        return self.line(self.rng.choice(list(operations)), *sources)

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    # ---- Sizes

    def channels(self, x: str) -> int:
        return self.tensors[x].shape[1]

    def dims(self, x: str) -> int:
        return self.tensors[x].dim() - 2

    def side(self, x: str) -> int:
        return min(self.tensors[x].shape[2:], default=0)

    def width(self) -> int:
        return self.unit * self.rng.randint(-(-6 // self.unit), max(2, 24 // self.unit))

    def groups(self, channels: int, least: int = 2) -> int:
        """A number of groups, mostly one that divides over lane devices."""
        every = [g for g in range(least, channels + 1) if channels % g == 0]
        good = [g for g in every if g % self.lane_devices == 0]
        return self.rng.choice((good if good and not self.chance(self.risk) else every) or [1])

    # ---- Layers with weights

    def convolution(self, x: str, out: int, groups: int, *, kernel: int | None = None, stride: int = 1) -> str:
        """A convolution that keeps the places, or takes every other one; of vectors, a linear layer."""
        channels, dims = self.channels(x), self.dims(x)
        bias = self.chance(0.5)
        if dims == 0:
            linear = GroupedLinear(channels, out, groups, bias) if groups > 1 else nn.Linear(channels, out, bias)
            return self._made(self.layer(linear, x))
        kernel = self.rng.choice((1, 3)) if kernel is None else kernel
        mode = "circular" if kernel == 3 and self.side(x) > 2 and self.chance(0.1) else "zeros"
        sizes = {"kernel_size": kernel, "stride": stride, "padding": kernel // 2, "padding_mode": mode}
        return self._made(self.layer(CONVOLUTIONS[dims](channels, out, groups=groups, bias=bias, **sizes), x))

    def dense(self, x: str, out: int = 0, **sizes: int) -> str:
        return self.convolution(x, out or self.width(), 1, **sizes)

    def grouped(self, x: str, out: int = 0, **sizes: int) -> str:
        groups = self.groups(self.channels(x))
        return self.convolution(x, out or groups * max(1, self.width() // groups), groups, **sizes)

    def strided(self, x: str) -> str:
        """A layer that may take every other place."""
        stride = 2 if self.side(x) > 3 and self.chance(0.4) else 1
        return self.rng.choice((self.dense, self.grouped))(x, stride=stride)

    def _made(self, x: str) -> str:
        self.fresh = x
        return x

    # ---- Layers that keep the shape

    def norm(self, x: str) -> str:
        """A norm whose statistics are of enough numbers: those of two or three are signs, without a gradient."""
        channels, dims = self.channels(x), self.dims(x)
        shape = list(self.tensors[x].shape[1:])
        places, lanes = torch.Size(shape[1:]).numel(), self.groups(channels)
        if channels < 6:
            return x
        few = [g for g in (1, 2, 3, 4, 6, 8) if channels % g == 0 and channels // g * places >= 6]
        kinds: list[Callable[[], nn.Module]] = [
            lambda: BATCH_NORMS[dims](channels),
            lambda: BATCH_NORMS[dims](channels, affine=False, momentum=None),
            lambda: BATCH_NORMS[dims](channels, momentum=0.3, track_running_stats=self.chance(0.5)),
            lambda: nn.GroupNorm(self.rng.choice(few), channels, affine=self.chance(0.8)),
            lambda: ChannelLayerNorm(channels, affine=self.chance(0.7)),
            lambda: nn.LayerNorm(shape if dims else channels, bias=self.chance(0.5)),
            lambda: LocalResponseNorm(3, alpha=0.5, lanes=lanes),
        ]
        module = self.rng.choice(kinds if places > 1 else kinds[3:])()
        if isinstance(module, tuple(BATCH_NORMS.values())):
            self.without_bias(x)
        return self._made(self.layer(module, x))

    def without_bias(self, x: str) -> None:
        """Drop the bias of the layer that made a tensor: in front of a batch norm its gradient is noise."""
        made_by = next((line.operation for line in self.net.program if line.target == x), "")
        if made_by in self.net.layers and isinstance(self.net.layers[made_by], (nn.Linear, *CONVOLUTIONS.values())):
            self.net.layers[made_by].register_parameter("bias", None)

    def activation(self, x: str) -> str:
        if x == self.fresh and self.chance(0.3):
            return self.layer(nn.ReLU(inplace=True), x) if self.chance(0.5) else self.any_of(INPLACE, x)
        if self.chance(0.3):
            return self.any_of(SAFE, x)
        slopes = nn.PReLU(self.rng.choice((1, self.channels(x))))
        return self.layer(slopes if self.chance(0.25) else self.rng.choice(ACTIVATIONS)(), x)

    def factor(self, x: str) -> str:
        """What multiplies: by a number for each channel, image or element."""
        inplace = x == self.fresh and self.chance(0.3)
        kinds = [LayerScale(self.channels(x), 0.5), DropPath(0.3), nn.Dropout(0.3, inplace=inplace), nn.Dropout(0.3)]
        kinds += [CHANNEL_DROPOUTS[self.dims(x)](0.3)] * 2 if self.dims(x) else []
        return self.layer(self.rng.choice(kinds), x)

    def shuffle(self, x: str) -> str:
        if not self.dims(x):
            return x
        return self.layer(nn.ChannelShuffle(self.rng.choice([g for g in (2, 3, 4, 1) if self.channels(x) % g == 0])), x)

    def twice(self, x: str) -> str:
        """The same layers run twice, on its own result."""
        channels = self.channels(x)
        name = f"t{len(self.net.program)}"
        x = self.convolution(x, channels, 1 if self.chance(0.5) else self.groups(channels), kernel=3)
        again = next(line.operation for line in self.net.program if line.target == name)
        x = self.layer(nn.PReLU() if self.chance(0.5) else nn.ReLU(), x)
        relu = self.net.program[-1].operation
        return self.line(relu, self.line(again, x))

    def gate(self, x: str) -> str:
        """Squeeze and excitation, in several spellings."""
        channels, dims, squeezed = self.channels(x), self.dims(x), self.width()
        self.fresh = ""
        if dims == 2 and self.chance(0.4):
            return self.layer(SqueezeExcitation(channels, squeezed), x)
        if dims and self.chance(0.4):
            pooled = self.layer(getattr(nn, f"AdaptiveAvgPool{dims}d")(1), x)
            inner = self.activation(self.dense(pooled, squeezed, kernel=1))
            return self.any_of(JOINS, x, self.dense(inner, channels, kernel=1))
        pooled = self.line("x.mean(places)", x) if dims else x
        inner = self.activation(self.strided(pooled))
        gate = self.line("F.silu(x)", self.dense(inner, channels))
        return self.any_of(GATES, x, gate)

    def unsafe(self, x: str) -> str:
        """What cannot be placed on several lane devices, or at all."""
        channels, dims = self.channels(x), self.dims(x)
        if dims and self.chance(0.3):
            norms = nn.LocalResponseNorm(3), LocalResponseNorm(3), nn.LayerNorm(self.tensors[x].shape[-1])
            return self.layer(self.rng.choice(norms), x)
        if dims and self.side(x) > 1 and self.chance(0.3):
            return self.layer(getattr(nn, f"InstanceNorm{dims}d")(channels, affine=True), x)
        return self.any_of({name: f for name, f in UNSAFE.items() if channels % 2 == 0 or name != "chunk"}, x)

    def keep(self, x: str) -> str:
        """Any of these."""
        if self.chance(self.risk):
            return self.unsafe(x)
        kinds = [self.norm] * 3 + [self.activation] * 4 + [self.factor] * 2 + [self.shuffle, self.twice, self.gate]
        return self.rng.choice(kinds)(x)

    # ---- Blocks

    def branch(self, x: str, out: int = 0) -> str:
        """Layers on a tensor that others read too; ``out`` channels if given, and all places."""
        self.fresh = ""
        for _ in range(self.rng.randint(0, 2)):
            x = self.keep(x)
        x = self.rng.choice((self.dense, self.grouped))(x) if self.chance(0.4) else x
        if out and (self.channels(x) != out or self.chance(0.5)):
            both = gcd(self.channels(x), out)
            groups = self.groups(both) if self.chance(0.5) else 1
            x = self.convolution(x, out, groups if both % groups == 0 else 1)
        return self.norm(x) if self.chance(0.3) else x

    def residual(self, x: str) -> str:
        return self._made(self.any_of(JOINS, x, self.branch(x, self.channels(x))))

    def readers(self, x: str) -> str:
        """Two or three dense layers on one tensor: blocks and shortcuts, strided or not."""
        out, stride = self.width(), 2 if self.side(x) > 3 and self.chance(0.5) else 1
        self.fresh = ""
        y = self.dense(x, out, kernel=1, stride=stride)
        for _ in range(self.rng.randint(1, 2)):
            if self.chance(0.5):
                z = self.dense(x, out, stride=stride)
            else:
                z = self.convolution(self.activation(self.dense(x, kernel=1)), out, 1, stride=stride)
            y = self.any_of(JOINS, y, z)
        return self._made(y)

    def concatenation(self, x: str) -> str:
        if self.channels(x) > 30:
            return self.strided(x)
        self.fresh = ""
        parts = [x, self.branch(x), *([self.branch(x)] if self.chance(0.2) else [])]
        self.rng.shuffle(parts)
        self.fresh = ""
        x = self.layer(Concat(), *parts) if self.chance(0.5) else self.any_of(CATS, *parts)
        for _ in range(self.rng.randint(0, 2)):
            passing = [self.activation, self.shuffle, self.pool, self.shrink, self.factor]
            x = self.rng.choice(passing)(x)
        return x

    def pool(self, x: str) -> str:
        if self.side(x) < 4:
            return x
        kind, dims = self.rng.choice(("Max", "Avg", "AdaptiveAvg", "AdaptiveMax")), self.dims(x)
        return self.layer(getattr(nn, f"{kind}Pool{dims}d")(2 if kind in ("Max", "Avg") else 3), x)

    def shrink(self, x: str) -> str:
        """Fewer places, or another number of dimensions."""
        if not self.dims(x):
            return x
        possible = [name for name in SHRINKS if name[1] == "[" and self.side(x) > 2]
        possible += ["x.unsqueeze(-1)"] if self.dims(x) < 3 else []
        possible += ["x.flatten(2)", "x.amax(-1)"] if self.dims(x) > 1 else []
        possible += ["x.flatten(1, 2)"] if self.dims(x) > 1 and self.channels(x) < 9 else []
        chosen = self.rng.choice(possible)
        if "flatten" in chosen and self.chance(0.5):
            return self.layer(nn.Flatten(2) if chosen == "x.flatten(2)" else nn.Flatten(1, 2), x)
        return self.line(chosen, x)

    def flat(self, x: str) -> str:
        """Vectors."""
        places = self.tensors[x].shape[2:].numel()
        few = places * self.channels(x) <= 150
        if few and self.chance(0.3):
            return self.layer(nn.Flatten(1), x)
        if self.side(x) > 2 and self.chance(0.2):
            x = self.layer(getattr(nn, f"AdaptiveAvgPool{self.dims(x)}d")(2 if self.channels(x) < 12 else 1), x)
            return self.layer(nn.Flatten(), x)
        return self.any_of(
            {name: f for name, f in FLATS.items() if few or name in ("x.mean(places)", "x.sum(places)")}, x
        )

    # ---- The whole

    def write(self) -> str:
        """The network; the name of its output."""
        x = "image"
        x = self.norm(x) if self.chance(0.1) else x
        if self.chance(0.08):
            return self.head(self.flat(x))
        x = self.grouped(x, kernel=3) if self.chance(0.15) else self.dense(x, kernel=3)
        blocks = [self.keep] * 4 + [self.residual, self.readers, self.concatenation] * 2
        blocks += [self.strided, self.strided, self.pool, self.pool, self.shrink]
        for _ in range(self.rng.randint(2, 6)):
            x = self.rng.choice(blocks)(x)
        x = self.flat(x)
        if self.channels(x) > 64:
            x = self.dense(x)
        blocks = [self.keep] * 3 + [self.residual, self.readers, self.concatenation, self.dense, self.grouped]
        for _ in range(self.rng.randint(0, 3)):
            x = self.rng.choice(blocks)(x)
        return self.head(x)

    def head(self, x: str) -> str:
        """One or two layers that make the classes, or grouped ones that leave."""
        self.fresh = ""
        classes = self.rng.choice((CLASSES, CLASSES + 1, 12, 24))
        if self.chance(0.2):
            groups = self.groups(self.channels(x))
            x = self.convolution(x, groups * -(-CLASSES // groups), groups)
            if self.chance(0.5):
                self.without_bias(x)
                x = self.layer(nn.BatchNorm1d(self.channels(x), eps=0.1), x)
            return self.line("torch.relu(x)", x) if self.chance(0.3) else x
        y = self.dense(x, classes)
        if self.chance(0.25):
            self.fresh = ""
            z = self.dense(self.keep(x) if self.chance(0.5) else x, classes)
            y = self.any_of(JOINS, y, z) if self.chance(0.7) else self.layer(Concat(), y, z)
        return self.norm(y) if self.chance(0.1) else y
