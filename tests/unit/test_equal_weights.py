"""The number by which processes compare a tensor, and who is said to be wrong."""

import pytest
import torch

from lanes.faults.equal_weights import _in_words, sum_of_bits

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32, torch.uint8)


def flipped(tensor: torch.Tensor, bit: int) -> torch.Tensor:
    """With one bit flipped, counted from the first element's lowest."""
    other = tensor.clone().contiguous()
    data = other.flatten().view(torch.uint8)
    data[bit // 8] ^= 1 << bit % 8
    return data.view(tensor.dtype).view(other.shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (3,), (5, 7), (2, 4, 4)])
def test_every_bit_counts(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    """Also of what does not fill eight bytes."""
    tensor = (torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 50).abs().to(dtype)
    number = sum_of_bits(tensor)
    assert (number.dtype, number.dim()) == (torch.int64, 0)
    assert sum_of_bits(tensor.clone()) == number
    for bit in range(tensor.numel() * tensor.element_size() * 8):
        assert sum_of_bits(flipped(tensor, bit)) != number, bit


def test_the_same_numbers_stored_otherwise() -> None:
    """In another memory format, or beginning anywhere in memory; also of bools, or of nothing."""
    tensor = torch.randn(2, 3, 4, 5)
    memory = torch.empty(121)
    memory[1:] = tensor.flatten()
    assert sum_of_bits(tensor.to(memory_format=torch.channels_last)) == sum_of_bits(tensor)
    assert sum_of_bits(memory[1:].view(2, 3, 4, 5)) == sum_of_bits(tensor)
    assert sum_of_bits(torch.tensor([True, False])) == 1
    assert sum_of_bits(torch.empty(0)) == 0


def said(everyone: list[list[list[int]]], *, whole: list[bool]) -> str:
    """Of numbers [replicas][lane devices][tensors]."""
    numbers = torch.tensor(everyone)
    ranks = torch.arange(numbers[..., 0].numel()).view(numbers.shape[:2])
    names = ["one", "two", "three"][: numbers.shape[-1]]
    return _in_words(names, whole, numbers, ranks, [f"host{rank}" for rank in range(ranks.numel())])


def test_a_majority_names_the_culprit() -> None:
    three_replicas = said([[[1], [2]], [[1], [7]], [[1], [2]]], whole=[False])
    culprit = "rank 3 (lane device 1 of replica 1, on host3)"
    assert three_replicas == (
        f"one on lane device 1 is not the same everywhere: {culprit} holds something else than the 2 others"
    )
    shared = said([[[1], [1]], [[1], [7]]], whole=[True])
    assert f"one is not the same everywhere: {culprit} holds something else than the 3 others" in shared


def test_two_cannot_tell() -> None:
    words = said([[[1], [2]], [[3], [2]]], whole=[False])
    assert "one on lane device 0" in words
    assert "rank 0 (lane device 0 of replica 0, on host0) and rank 2 (lane device 0 of replica 1, on host2)" in words
    assert "no majority to tell who is right" in words
    halves = said([[[1], [1]], [[3], [3]]], whole=[True])
    assert all(f"rank {rank} " in halves for rank in range(4)), "two against two"


def test_where_the_culprit_is_known_is_told_first() -> None:
    """What a wrong tensor has spoilt since differs in more places."""
    words = said([[[1, 5], [2, 5]], [[1, 5], [3, 6]]], whole=[False, True])
    assert words.startswith("two is not the same everywhere: rank 3")
    assert words.endswith("(and 1 more tensor differs)")
