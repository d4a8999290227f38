"""Every crossing, forward and backward, against plain autograd on the full tensors in one process.

Exact equality throughout: numbers are small integers, whose sums do not depend on their order, in float64 and bfloat16;
the one test with other numbers says why it needs a tolerance.
"""

import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

import lanes
from lanes import crossing
from lanes.mesh import LANE_AXIS, Axis, axis
from tests.ranks import Ranks

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


@strict()
def check_all_cases(name: str) -> int:
    lane = lane_axis()
    for title, case in CASES.items():
        what = f"{name}, {title}"
        exercise = Exercise.make(name, case, lane.size)
        out, grad = exercise.expected(name, exercise.grads, lane)
        x = case.prepare(exercise.read_by(name, lane)).requires_grad_()
        before = x.detach().clone()
        ours = cross(name, x, lane)
        same(ours.detach(), out, case.dtype, f"{what}: outputs")
        incoming = case.grad(exercise.grads[lane.index])
        untouched = incoming.clone()
        (ours_grad,) = torch.autograd.grad(ours, x, incoming)
        same(ours_grad, grad, case.dtype, f"{what}: gradients")
        assert torch.equal(x, before), f"{what}: wrote into its input"
        assert torch.equal(incoming, untouched), f"{what}: wrote into the incoming gradient"
        assert torch.equal(ours.detach().double(), out), f"{what}: backward wrote into the result"
    return len(CASES)


@strict()
def check_formats(name: str) -> None:
    """Results, and gradients, have the memory format of what they are made from."""
    lane = lane_axis()
    formats = {
        "1-D": torch.contiguous_format,
        "2-D": torch.contiguous_format,
        "3-D": torch.contiguous_format,
        "channels last": LAST,
        "one image": torch.contiguous_format,
        "one image, channels last": LAST,
        "channels last 3-D": LAST_3D,
        "one channel on each of 4, channels last": LAST,
        "bfloat16, channels last": LAST,
    }
    for title, memory_format in formats.items():
        case = CASES[title]
        exercise = Exercise.make(name, case, lane.size)
        x = case.prepare(exercise.read_by(name, lane)).requires_grad_()
        assert x.is_contiguous(memory_format=memory_format)
        out = cross(name, x, lane)
        assert out.is_contiguous(memory_format=memory_format), f"{name}, {title}: result has strides {out.stride()}"
        incoming = case.prepare(exercise.grads[lane.index])
        (grad,) = torch.autograd.grad(out, x, incoming)
        if name != "leave":  # its own slice of a larger gradient is not dense
            assert grad.is_contiguous(memory_format=memory_format), f"{name}, {title}: gradient {grad.stride()}"


@strict()
def check_sum_of_result(name: str) -> None:
    """``.sum().backward()``: an incoming gradient in which all places share one number in memory."""
    lane = lane_axis()
    for title in ("vectors", "1-D", "2-D", "3-D", "channels last", "channels last 3-D", "one image"):
        case = CASES[title]
        exercise = Exercise.make(name, case, lane.size)
        ones = [torch.ones_like(grad) for grad in exercise.grads]
        _, grad = exercise.expected(name, ones, lane)
        x = case.prepare(exercise.read_by(name, lane)).requires_grad_()
        cross(name, x, lane).sum().backward()
        same(x.grad, grad, case.dtype, f"{name}, {title}: gradients of the sum")


@strict()
def check_twice(name: str) -> None:
    """Gradients accumulate: the same input through the crossing twice, and two backward passes."""
    lane = lane_axis()
    exercise = Exercise.make(name, CASES["2-D"], lane.size)
    _, grad = exercise.expected(name, exercise.grads, lane)
    x = exercise.read_by(name, lane).clone().requires_grad_()
    for _ in range(2):
        out = cross(name, x, lane) + cross(name, x, lane)
        out.backward(exercise.grads[lane.index])
    same(x.grad, 4 * grad, torch.float64, f"{name}: accumulated gradients")


@strict()
def check_no_grad(name: str) -> None:
    lane = lane_axis()
    for title in ("vectors", "2-D", "channels last", "not dense"):
        case = CASES[title]
        exercise = Exercise.make(name, case, lane.size)
        out, _ = exercise.expected(name, exercise.grads, lane)
        x = case.prepare(exercise.read_by(name, lane))
        with torch.no_grad():
            ours = cross(name, x.clone().requires_grad_(), lane)
        assert ours.grad_fn is None
        same(ours, out, case.dtype, f"{name}, {title}: outputs under no_grad")
        with torch.inference_mode():
            same(cross(name, x, lane).clone(), out, case.dtype, f"{name}, {title}: outputs under inference_mode")
        assert not cross(name, x, lane).requires_grad


def nonlinear(y: Tensor) -> Tensor:
    """Mixes all numbers of an image, so that no gradient of a gradient is the own slice by accident."""
    return y.flatten(1).softmax(1).view_as(y) * y**2


@strict()
def check_gradients_of_gradients(name: str) -> float:
    """d/dx of <v, d loss / d x>, where the loss is not linear in the result of the crossing."""
    lane = lane_axis()
    case = Case((2, 8, 3))
    generator = torch.Generator().manual_seed(11)
    exercise = Exercise.make(name, case, lane.size)
    exercise.inputs = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in exercise.inputs]
    probes = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in exercise.inputs]

    leaves = [x.clone().requires_grad_() for x in exercise.inputs]
    counted = list(zip(reference(name, leaves, lane.size), exercise.grads, strict=True))
    counted = counted[: 1 if name in COUNTS_ONCE else None]
    loss = torch.stack([(nonlinear(out) * grad).sum() for out, grad in counted]).sum()
    first = torch.autograd.grad(loss, leaves, create_graph=True)
    torch.stack([(g * v).sum() for g, v in zip(first, probes, strict=True)]).sum().backward()
    mine = lane.index if name in SUMMED_FORWARD else 0
    expected, probe = leaves[mine].grad, probes[mine]
    if name in LANED_INPUT:
        expected, probe = (t.chunk(lane.size, 1)[lane.index] for t in (expected, probe))

    x = exercise.read_by(name, lane).clone().requires_grad_()
    loss = (nonlinear(cross(name, x, lane)) * exercise.grads[lane.index]).sum()
    (first,) = torch.autograd.grad(loss, x, create_graph=True)
    (first * probe).sum().backward()
    return ((x.grad - expected).abs().max() / expected.abs().max()).item()


@strict()
def check_floats(name: str) -> tuple[bool, float, float]:
    """With numbers whose sums are rounded: whether outputs are bit-identical, and the errors of outputs, gradients."""
    lane = lane_axis()
    generator = torch.Generator().manual_seed(13)
    exercise = Exercise.make(name, Case((3, 8, 4, 5)), lane.size)
    exercise.inputs = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for x in exercise.inputs]
    grads = [torch.randn(g.shape, dtype=g.dtype, generator=generator) for g in exercise.grads]
    grads = [grads[0]] * lane.size if name in COUNTS_ONCE else grads
    out, grad = exercise.expected(name, grads, lane)
    x = exercise.read_by(name, lane).clone().requires_grad_()
    ours = cross(name, x, lane)
    ours.backward(grads[lane.index])
    error = ((ours.detach() - out).abs().max() / out.abs().max()).item()
    return torch.equal(ours.detach(), out), error, ((x.grad - grad).abs().max() / grad.abs().max()).item()


@strict()
def check_bytes(name: str) -> dict[str, tuple[dict[str, int], dict[str, int], dict[str, int], dict[str, int]]]:
    """Calls and bytes, forward and backward, as Traffic counts them."""
    lane = lane_axis()
    found = {}
    for title in ("vectors", "2-D", "channels last", "bfloat16"):
        case = CASES[title]
        exercise = Exercise.make(name, case, lane.size)
        x = case.prepare(exercise.read_by(name, lane)).requires_grad_()
        with lanes.Traffic(lane) as forward:
            out = cross(name, x, lane)
        with lanes.Traffic(lane) as backward:
            out.backward(exercise.grads[lane.index])
        counts = (forward.calls, forward.sent_bytes, backward.calls, backward.sent_bytes)
        found[title] = tuple(dict(count) for count in counts)
    return found


@strict()
def check_sum_of_any_shape() -> None:
    lane = lane_axis()
    for shape in ((), (5,), (2, 3), (2, 3, 1, 2, 2, 2)):
        generator = torch.Generator().manual_seed(17)
        inputs = [integers(generator, shape) for _ in range(lane.size)]
        grads = [integers(generator, shape) for _ in range(lane.size)]
        x = inputs[lane.index].clone().requires_grad_()
        out = crossing.sum(x, lane)
        out.backward(grads[lane.index])
        same(out.detach(), torch.stack(inputs).sum(0), torch.float64, f"sum of {shape}")
        same(x.grad, torch.stack(grads).sum(0), torch.float64, f"gradient of the sum of {shape}")
        assert torch.equal(x, inputs[lane.index])


@strict()
def check_shuffles(channels: int, memory_format: torch.memory_format) -> None:
    """Random permutations: values, gradients, bytes; the inverse leads back."""
    lane = lane_axis()
    generator = torch.Generator().manual_seed(19)
    full = integers(generator, (2, channels, 3, 2)).contiguous(memory_format=memory_format)
    own = channels // lane.size
    for seed in range(6):
        source = permutation(channels, seed)
        inverse = sorted(range(channels), key=source.__getitem__)
        x = full.chunk(lane.size, 1)[lane.index].contiguous(memory_format=memory_format).requires_grad_()
        with lanes.Traffic(lane) as traffic:
            out = crossing.shuffle(x, source, lane)
        same(out.detach(), full[:, source].chunk(lane.size, 1)[lane.index], torch.float64, f"shuffle {source}")
        needed = sum(c // own == lane.index != j // own for j, c in enumerate(source))
        assert traffic.sent_bytes["all_to_all"] == needed * 2 * 3 * 2 * 8
        with lanes.Traffic(lane) as traffic:
            out.backward(out.detach())  # the inverse must lead the numbers back to where they came from
        assert torch.equal(x.grad, x), f"shuffle {source}: gradients"
        moves = any(c // own != j // own for j, c in enumerate(source))
        assert traffic.calls.total() == moves  # where no channel changes device, no device is asked
        fetched = sum(c // own != lane.index == j // own for j, c in enumerate(source))
        assert traffic.sent_bytes["all_to_all"] == fetched * 2 * 3 * 2 * 8
        assert torch.equal(crossing.shuffle(out, inverse, lane), x), f"inverse of shuffle {source}"


@strict()
def check_identity_shuffle() -> int:
    lane = lane_axis()
    x = integers(torch.Generator().manual_seed(lane.index), (2, 4, 3)).requires_grad_()
    with lanes.Traffic(lane) as traffic:
        out = crossing.shuffle(x, range(4 * lane.size), lane)
        out.backward(2 * x.detach())
    assert torch.equal(out, x)
    assert torch.equal(x.grad, 2 * x)
    return traffic.sent_bytes.total()


@strict()
def check_bad_shuffles() -> list[str]:
    lane = lane_axis()
    size = 4 * lane.size
    messages = []
    for source in ([0] * size, list(range(size - 1)), list(range(size + 1)), list(range(1, size + 1)), []):
        with pytest.raises(ValueError, match="permutation") as error:
            crossing.shuffle(torch.zeros(2, 4), source, lane)
        messages.append(str(error.value))
    return messages


@strict()
def check_gradcheck(name: str) -> bool:
    """On one device, where an output depends on this process's input only."""
    lane = lane_axis()
    x = torch.randn(2, 4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()

    def function(x: Tensor) -> Tensor:
        return cross(name, x, lane) ** 3

    return torch.autograd.gradcheck(function, x) and torch.autograd.gradgradcheck(function, x)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", NAMES)
def test_equals_the_reference(ranks: Ranks, name: str, world: int) -> None:
    assert ranks(check_all_cases, world, name) == [len(CASES)] * world


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", NAMES)
def test_keeps_the_memory_format(ranks: Ranks, name: str, world: int) -> None:
    ranks(check_formats, world, name)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", NAMES)
def test_gradient_of_a_sum_and_of_several_uses(ranks: Ranks, name: str, world: int) -> None:
    ranks(check_sum_of_result, world, name)
    ranks(check_twice, world, name)


@pytest.mark.parametrize("world", [1, 4])
@pytest.mark.parametrize("name", NAMES)
def test_without_gradients(ranks: Ranks, name: str, world: int) -> None:
    ranks(check_no_grad, world, name)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", NAMES)
def test_rounds_only_where_it_sums(ranks: Ranks, name: str, world: int) -> None:
    for exact, error, grad_error in ranks(check_floats, world, name):
        assert exact or name in SUMMED_FORWARD
        assert error <= 1e-15  # at most 4 terms, each sum rounded to half an ulp, in another order
        assert grad_error <= (1e-15 if name in ("gather", "enter", "sum") else 0.0)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", NAMES)
def test_gradients_of_gradients(ranks: Ranks, name: str, world: int) -> None:
    assert max(ranks(check_gradients_of_gradients, world, name)) <= 1e-13  # sums over 24 places, of second derivatives


@pytest.mark.parametrize("name", NAMES)
def test_gradcheck_on_one_device(ranks: Ranks, name: str) -> None:
    assert ranks(check_gradcheck, 1, name) == [True]


COLLECTIVES = {  # forward and backward, and what they send as multiples of S (D - 1) / D
    "gather": ("all_gather", 1, "reduce_scatter", 1),
    "scatter_sum": ("reduce_scatter", 1, "all_gather", 1),
    "enter": (None, 0, "all_reduce", 2),
    "leave_sum": ("all_reduce", 2, None, 0),
    "leave": ("all_gather", 1, None, 0),
    "sum": ("all_reduce", 2, "all_reduce", 2),
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", COLLECTIVES)
def test_one_collective_with_the_bytes_of_the_docstring(ranks: Ranks, name: str, world: int) -> None:
    for found in ranks(check_bytes, world, name):
        for title, counts in found.items():
            whole_bytes = torch.Size(CASES[title].shape).numel() * CASES[title].dtype.itemsize
            share = whole_bytes * (world - 1) // world
            forward, times_forward, backward, times_backward = COLLECTIVES[name]
            assert counts[0] == ({forward: 1} if forward else {}), f"{title}: forward calls"
            assert counts[1] == ({forward: times_forward * share} if forward else {}), f"{title}: forward bytes"
            assert counts[2] == ({backward: 1} if backward else {}), f"{title}: backward calls"
            assert counts[3] == ({backward: times_backward * share} if backward else {}), f"{title}: backward bytes"


@pytest.mark.parametrize("world", WORLDS)
def test_sum_of_any_shape(ranks: Ranks, world: int) -> None:
    ranks(check_sum_of_any_shape, world)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, LAST])
@pytest.mark.parametrize("channels", [4, 12])
@pytest.mark.parametrize("world", WORLDS)
def test_shuffle(ranks: Ranks, world: int, channels: int, memory_format: torch.memory_format) -> None:
    ranks(check_shuffles, world, channels, memory_format)


@pytest.mark.parametrize("world", WORLDS)
def test_identity_shuffle_sends_nothing(ranks: Ranks, world: int) -> None:
    assert ranks(check_identity_shuffle, world) == [0] * world


@pytest.mark.parametrize("world", [1, 2])
def test_shuffle_refuses_what_is_no_permutation(ranks: Ranks, world: int) -> None:
    for messages in ranks(check_bad_shuffles, world):
        assert all(f"the {4 * world} channels" in message for message in messages)
