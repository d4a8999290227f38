"""What crossings send, as counted, equals their docstrings; channel shuffles send what changes device and no more."""

import pytest
import torch

import lanes
from lanes import crossing
from tests.crossings import CASES, LAST, WORLDS, Exercise, cross, integers, lane_axis, permutation, same, strict
from tests.ranks import Ranks


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
            forward, times_forward, backward, times_backward = COLLECTIVES[name] if world > 1 else (None, 0, None, 0)
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
