"""Channels in memory: re-ordered as an index would, in either memory format, with its gradients."""

import pytest
import torch
from torch import Tensor

from lanes.channels import channels_last, inverse, reordered, selected

SHAPES = [(3, 6), (2, 6, 5), (2, 6, 4, 3), (2, 6, 1, 1), (2, 6, 2, 3, 2)]
SOURCE = (4, 0, 5, 1, 3, 2)


def stored(shape: tuple[int, ...], last: bool) -> Tensor:
    x = torch.randn(shape, dtype=torch.float64)
    return x.movedim(1, -1).contiguous().movedim(-1, 1) if last else x


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_reordered_is_an_index_and_keeps_the_format(shape: tuple[int, ...], last: bool) -> None:
    x = stored(shape, last).requires_grad_()
    y = reordered(x, SOURCE)
    assert torch.equal(y, x[:, list(SOURCE)])
    assert channels_last(y) == channels_last(x)
    seed = stored(shape, last)
    (dx,) = torch.autograd.grad(y, x, seed)
    assert torch.equal(dx, seed[:, inverse(SOURCE)])
    assert torch.equal(reordered(y, inverse(SOURCE)), x)


@pytest.mark.parametrize("last", [False, True])
def test_gradients_of_gradients(last: bool) -> None:
    x = stored((2, 6, 2, 2), last).requires_grad_()
    assert torch.autograd.gradcheck(lambda t: reordered(t, SOURCE).square(), x)
    assert torch.autograd.gradgradcheck(lambda t: reordered(t, SOURCE).square(), x)


def test_a_layer_behind_may_work_in_place() -> None:
    x = torch.randn(2, 6, 3, requires_grad=True)
    torch.relu_(reordered(x, SOURCE)).sum().backward()
    assert torch.equal(x.grad, (x > 0).float())


@pytest.mark.parametrize("dim", [1, 3])
def test_a_part_of_the_channels_or_none(dim: int) -> None:
    x = torch.randn(2, 6, 3, 6)
    assert torch.equal(selected(x, dim, (5, 2)), x.index_select(dim, torch.tensor([5, 2])))
    assert selected(x, dim, ()).shape[dim] == 0
