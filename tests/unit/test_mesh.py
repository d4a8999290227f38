"""Digests of tensors: alike for the same bits however they were computed, different for the least difference."""

import pytest
import torch
from torch import Tensor

from lanes.mesh import digest

TENSORS = {
    "float64": torch.randn(3, 400, dtype=torch.float64),
    "float32": torch.randn(1, 7, 30),
    "bfloat16": torch.randn(301).bfloat16(),
    "whole numbers": torch.arange(40),
    "yes and no": torch.rand(33) < 0.5,
    "complex": torch.randn(20, dtype=torch.complex64),
    "one number": torch.tensor(2.5),
}


@pytest.mark.parametrize("name", TENSORS)
def test_says_what_the_bits_are(name: str) -> None:
    tensor = TENSORS[name]
    place = torch.empty(tensor.numel() + 5, dtype=tensor.dtype)[5:].view(tensor.shape)  # elsewhere in memory
    assert digest(place.copy_(tensor)) == digest(tensor)
    flat = tensor.flatten()
    for index in {0, len(flat) // 2, len(flat) - 1}:
        assert digest(_changed(flat, index)) != digest(flat)


def _changed(flat: Tensor, index: int) -> Tensor:
    """The lowest bit of one element is another."""
    bits = flat.clone().view(torch.uint8)
    bits[index * flat.element_size()] ^= 1
    return bits.view(flat.dtype)


def test_order_counts() -> None:
    tensor = TENSORS["float64"]
    assert digest(tensor) != digest(tensor.flip(1))
    assert digest(tensor, tensor[0]) == (*digest(tensor), *digest(tensor[0]))


def test_does_not_depend_on_threads() -> None:
    """A float sum does, by a last digit: processes with unlike numbers of threads were told to differ."""
    tensor, before = torch.randn(100_003, dtype=torch.float64), torch.get_num_threads()
    found = set()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.add(digest(tensor))
    torch.set_num_threads(before)
    assert len(found) == 1


def test_large_ones_are_read_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = [digest(tensor) for tensor in TENSORS.values()]
    monkeypatch.setattr("lanes.mesh._DIGESTED", 7)
    assert [digest(tensor) for tensor in TENSORS.values()] == whole


def test_not_a_number_equals_itself() -> None:
    assert digest(torch.tensor([1.0, float("nan")])) == digest(torch.tensor([1.0, float("nan")]))
