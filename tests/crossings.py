"""Crossings on tensors of all kinds, and what they must give: plain autograd on the full tensors in one process.

Numbers are small integers, whose sums do not depend on their order.
"""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

import lanes
from lanes import crossing
from lanes.mesh import LANE_AXIS, Axis, axis

NAMES = ("gather", "scatter_sum", "enter", "leave_sum", "leave", "sum", "shuffle")
LANED_INPUT = ("gather", "leave", "shuffle")
LANED_OUTPUT = ("scatter_sum", "shuffle")
ALIKE_INPUT = ("enter",)  # a whole tensor; the other whole inputs are partial sums, different on each device
COUNTS_ONCE = ("leave", "leave_sum")  # the loss is computed alike on every device
SUMMED_FORWARD = ("scatter_sum", "leave_sum", "sum")
WORLDS = (1, 2, 4)
LAST, LAST_3D = torch.channels_last, torch.channels_last_3d


@contextmanager
def strict() -> Iterator[None]:
    """Warnings of our own code are errors, also in the processes of ranks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lanes")
        yield


def as_it_is(x: Tensor) -> Tensor:
    return x


def channels_last(x: Tensor) -> Tensor:
    # Not .contiguous(memory_format=...): it leaves a tensor of one channel as it is, with the other format's strides.
    return torch.empty_like(x, memory_format=LAST if x.dim() == 4 else LAST_3D).copy_(x)


def every_other_column(x: Tensor) -> Tensor:
    """The same numbers as a slice of a larger tensor: not dense."""
    wide = x.new_full((*x.shape[:-1], 2 * x.shape[-1]), -77.0)
    wide[..., ::2] = x
    return wide[..., ::2]


def some_channels(x: Tensor) -> Tensor:
    """The same numbers as the middle channels of a larger tensor in channels-last: not dense, channels innermost."""
    wide = channels_last(x.new_full((x.shape[0], x.shape[1] + 2, *x.shape[2:]), -77.0))
    wide[:, 1:-1] = x
    return wide[:, 1:-1]


def transposed(x: Tensor) -> Tensor:
    """The same numbers with the memory order of the dimensions turned round."""
    order = list(reversed(range(x.dim())))
    return x.permute(order).contiguous().permute(order)


@dataclass(frozen=True)
class Case:
    """How the tensors of one check look.

    Attributes:
        shape: of the full tensor.
        prepare: gives the input its layout.
        grad: gives the incoming gradient its layout.
        dtype: of all tensors.
    """

    shape: tuple[int, ...]
    prepare: Callable[[Tensor], Tensor] = as_it_is
    grad: Callable[[Tensor], Tensor] = as_it_is
    dtype: torch.dtype = torch.float64


CASES = {
    "vectors": Case((4, 8)),
    "1-D": Case((2, 8, 5)),
    "2-D": Case((3, 8, 4, 5)),
    "3-D": Case((2, 8, 3, 2, 4)),
    "channels last": Case((3, 8, 4, 5), channels_last),
    "channels last, gradient too": Case((3, 8, 4, 5), channels_last, channels_last),
    "contiguous, gradient channels last": Case((3, 8, 4, 5), grad=channels_last),
    "channels last 3-D": Case((2, 8, 3, 2, 4), channels_last, channels_last),
    "not dense, vectors": Case((4, 8), every_other_column),
    "not dense": Case((3, 8, 4, 5), every_other_column, every_other_column),
    "not dense, channels last": Case((3, 8, 4, 5), some_channels, some_channels),
    "transposed": Case((3, 8, 4, 5), transposed, transposed),
    "transposed vectors": Case((4, 8), transposed, transposed),
    "one image": Case((1, 8, 4, 5)),
    "one image, channels last": Case((1, 8, 4, 5), channels_last, channels_last),
    "one vector": Case((1, 8)),
    "one place": Case((3, 8, 1, 1), channels_last, channels_last),
    "one channel on each of 4": Case((3, 4, 4, 5)),
    "one channel on each of 4, channels last": Case((3, 4, 4, 5), channels_last, channels_last),
    "bfloat16": Case((3, 8, 4, 5), dtype=torch.bfloat16),
    "bfloat16, channels last": Case((3, 8, 4, 5), channels_last, channels_last, torch.bfloat16),
    "float32": Case((3, 8, 4, 5), dtype=torch.float32),
}


def integers(generator: torch.Generator, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randint(-8, 9, shape, generator=generator).to(dtype)


def permutation(channels: int, seed: int = 5) -> list[int]:
    return random.Random(seed).sample(range(channels), channels)


def cross(name: str, x: Tensor, lane: Axis) -> Tensor:
    if name == "shuffle":
        return crossing.shuffle(x, permutation(x.shape[1] * lane.size), lane)
    return getattr(crossing, name)(x, lane)


def reference(name: str, inputs: list[Tensor], devices: int) -> list[Tensor]:
    """The outputs of all devices from the inputs of all devices, on full tensors.

    A laned or alike input is one full tensor; partial sums are one tensor for each device.
    """
    if name in SUMMED_FORWARD:
        total = torch.stack(inputs).sum(0)
        return list(total.chunk(devices, 1)) if name in LANED_OUTPUT else [total] * devices
    if name == "shuffle":
        return list(inputs[0][:, permutation(inputs[0].shape[1])].chunk(devices, 1))
    return [inputs[0]] * devices


@dataclass
class Exercise:
    """The tensors of one check: what every device reads, and the gradient that enters on every device."""

    inputs: list[Tensor]
    grads: list[Tensor]

    @classmethod
    def make(cls, name: str, case: Case, devices: int) -> "Exercise":
        generator = torch.Generator().manual_seed(7)
        inputs = [integers(generator, case.shape, case.dtype) for _ in range(devices if name in SUMMED_FORWARD else 1)]
        made = [out.shape for out in reference(name, inputs, devices)]
        grads = [integers(generator, tuple(shape), case.dtype) for shape in made]
        return cls(inputs, [grads[0]] * devices if name in COUNTS_ONCE else grads)

    def read_by(self, name: str, lane: Axis) -> Tensor:
        if name in LANED_INPUT:
            return self.inputs[0].chunk(lane.size, 1)[lane.index].contiguous()
        return self.inputs[lane.index if name in SUMMED_FORWARD else 0]

    def expected(self, name: str, grads: list[Tensor], lane: Axis) -> tuple[Tensor, Tensor]:
        """This device's output and input gradient, by plain autograd in one process."""
        leaves = [x.double().clone().requires_grad_() for x in self.inputs]
        outputs = reference(name, leaves, lane.size)
        counted = list(zip(outputs, grads, strict=True))[: 1 if name in COUNTS_ONCE else None]
        torch.stack([(out * grad.double()).sum() for out, grad in counted]).sum().backward()
        leaf = leaves[lane.index if name in SUMMED_FORWARD else 0].grad
        grad = leaf.chunk(lane.size, 1)[lane.index] if name in LANED_INPUT else leaf
        return outputs[lane.index].detach(), grad


def lane_axis() -> Axis:
    return axis(lanes.init_mesh(), LANE_AXIS)


def same(ours: Tensor, theirs: Tensor, dtype: torch.dtype, what: str) -> None:
    assert ours.shape == theirs.shape, f"{what}: {ours.shape} is not {theirs.shape}"
    assert ours.dtype == dtype, f"{what}: {ours.dtype}"
    assert torch.equal(ours.double(), theirs), f"{what} differ by {(ours.double() - theirs).abs().max()}"
