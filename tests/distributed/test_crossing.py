"""Every crossing, forward and backward, against plain autograd on the full tensors in one process.

Exact equality throughout, in float64 and bfloat16; the one test with other numbers says why it needs a tolerance.
"""

import pytest
import torch
from torch import Tensor

from tests.crossings import (
    CASES,
    COUNTS_ONCE,
    LANED_INPUT,
    LAST,
    LAST_3D,
    NAMES,
    SUMMED_FORWARD,
    WORLDS,
    Case,
    Exercise,
    cross,
    lane_axis,
    reference,
    same,
    strict,
)
from tests.ranks import Ranks


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
