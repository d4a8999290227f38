"""Mixing: targets say exactly what the pixels say, and shares follow Beta(alpha, alpha)."""

import pytest
import torch
from torch import Tensor

from lanes.data.mixing import CutMix, MixUp


def _mixed(
    mixing: MixUp | CutMix, images: Tensor, labels: Tensor, num_classes: int, seed: int = 0
) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return mixing(images, labels, num_classes)


def _mixture(mixing: MixUp | CutMix, images: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Every image a class of its own: the targets are the matrix that says how much of which image is in each."""
    return _mixed(mixing, images, torch.arange(len(images)), len(images), seed)


def _own_share(mixing: MixUp | CutMix, number: int, size: int = 2) -> Tensor:
    """The shares of images that have another partner than themselves."""
    shares = []
    for seed in range(number // 200):
        _, weights = _mixture(mixing, torch.zeros(200, 1, size, size), seed)
        own = weights.diagonal()
        shares.append(own[weights.count_nonzero(1) == 2])
    return torch.cat(shares)


def test_mixup_blends_pixels_as_its_targets_say():
    images = torch.rand(32, 3, 8, 8, dtype=torch.float64)
    mixed, weights = _mixture(MixUp(1.0), images)
    assert torch.allclose(mixed, torch.einsum("ij,jchw->ichw", weights, images))
    assert torch.allclose(weights.sum(1), torch.ones(32, dtype=torch.float64))
    assert torch.allclose(weights.sum(0) - weights.diagonal(), 1 - weights.diagonal()[_partners(weights).argsort()])
    assert weights.diagonal().unique().numel() > 25  # a share for each image; those that met themselves have 1


def _partners(weights: Tensor) -> Tensor:
    """The partner of each image; its own number where it has none."""
    others = weights - torch.diag(weights.diagonal())
    return torch.where(others.sum(1) > 0, others.argmax(1), torch.arange(len(weights)))


def test_every_image_is_the_partner_of_one():
    _, weights = _mixture(MixUp(1.0), torch.zeros(50, 1, 2, 2))
    partners = _partners(weights)
    assert sorted(partners.tolist()) == list(range(50))
    assert (partners != torch.arange(50)).sum() > 40


@pytest.mark.parametrize("alpha", [0.05, 0.2, 1.0, 4.0])
def test_mixup_shares_follow_beta(alpha):
    shares = _own_share(MixUp(alpha), 20_000)
    variance = 1 / (4 * (2 * alpha + 1))
    assert shares.mean() == pytest.approx(0.5, abs=5 * (variance / 19_000) ** 0.5)
    assert shares.var() == pytest.approx(variance, rel=0.05)


def test_cutmix_replaces_one_box_whose_share_its_targets_say():
    """Image i is i everywhere: its own pixels, and those of its partner, can be told in the mixture."""
    number, height, width = 64, 9, 14
    images = torch.arange(number, dtype=torch.float32)[:, None, None, None].expand(number, 3, height, width)
    mixed, weights = _mixture(CutMix(), images)
    partners = _partners(weights)
    for index, (picture, partner) in enumerate(zip(mixed, partners.tolist(), strict=True)):
        replaced = picture[0] != index
        assert torch.equal(picture, torch.where(replaced, float(partner), float(index)).expand(3, -1, -1))
        assert weights[index, partner].item() == pytest.approx(
            1.0 if partner == index else replaced.sum().item() / (height * width), abs=1e-6
        )
        rows, columns = replaced.any(1), replaced.any(0)
        assert torch.equal(replaced, rows[:, None] & columns[None, :])  # a box ...
        for side in (rows, columns):
            covered = side.nonzero().flatten().tolist()
            assert not covered or covered == list(range(covered[0], covered[-1] + 1))  # ... in one piece
    assert torch.allclose(weights.sum(1), torch.ones(number))


def test_cutmix_takes_the_pixels_of_the_same_place():
    images = torch.rand(16, 3, 8, 8)
    mixed, weights = _mixture(CutMix(), images)
    partners = _partners(weights)
    assert ((mixed == images) | (mixed == images[partners])).all()
    assert not torch.equal(mixed, images)


def test_cutmix_boxes_are_as_in_the_paper():
    """Middles anywhere, cut by the border: a border pixel is covered about half as often as one in the middle."""
    covered = torch.zeros(16, 16)
    images = torch.arange(200.0)[:, None, None, None].expand(200, 1, 16, 16)
    for seed in range(50):
        mixed, _ = _mixture(CutMix(), images, seed)
        covered += (mixed != images).float().mean((0, 1)) / 50
    # Along one axis, of sides sqrt(1 - share) with share uniform: side / 2 at the border, at most side in the middle.
    corner, middle = covered[[0, 0, -1, -1], [0, -1, 0, -1]].mean().item(), covered[7:9, 7:9].mean().item()
    assert corner == pytest.approx(0.5 / 4, abs=0.04)
    assert 0.35 < middle < 0.52
    shares = _own_share(CutMix(), 4_000, size=32)
    assert shares.mean() > 0.5 + 0.1  # what lies outside is lost
    assert shares.min() < 0.1


def test_large_alpha_makes_all_cutmix_boxes_half_the_image():
    shares = _own_share(CutMix(1000.0), 4_000, size=32)
    assert shares.min() > 0.48  # the whole box
    assert 0.8 < shares.max() < 0.9  # a quarter of it: the middle is a corner


@pytest.mark.parametrize("mixing", [MixUp(), CutMix()])
def test_partners_of_one_class_keep_it_whole(mixing):
    labels = torch.tensor([3, 3, 3, 3])
    _, targets = _mixed(mixing, torch.rand(4, 3, 8, 8), labels, 5)
    assert torch.allclose(targets, torch.eye(5)[labels])


@pytest.mark.parametrize("mixing", [MixUp(), CutMix()])
def test_classes_get_the_shares_of_their_images(mixing):
    images, labels = torch.rand(12, 3, 8, 8), torch.arange(12) % 4
    mixed, weights = _mixture(mixing, images)
    again, targets = _mixed(mixing, images, labels, 7)
    assert torch.equal(mixed, again)
    assert targets.shape == (12, 7)
    assert torch.allclose(targets, weights @ torch.eye(7)[labels])


@pytest.mark.parametrize("mixing", [MixUp(), CutMix()])
def test_a_batch_of_one_is_left_as_it_is(mixing):
    image = torch.rand(1, 3, 8, 8)
    mixed, targets = _mixed(mixing, image, torch.tensor([1]), 2)
    assert torch.allclose(mixed, image)
    assert torch.allclose(targets, torch.tensor([[0.0, 1.0]]))


@pytest.mark.parametrize("mixing", [MixUp, CutMix])
def test_alpha_is_checked_and_shown(mixing):
    assert repr(mixing(0.5)) == f"{mixing.__name__}(alpha=0.5)"
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match=f"alpha={alpha} must be positive"):
            mixing(alpha)


@pytest.mark.parametrize("mixing", [MixUp(), CutMix()])
def test_mixes_also_where_half_precision_is_the_default(mixing):
    """Lightning's precision "bf16-true" sets the default dtype; there is no Beta distribution in bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    try:
        mixed, targets = _mixed(mixing, torch.rand(4, 3, 8, 8), torch.arange(4), 4)
    finally:
        torch.set_default_dtype(torch.float32)
    assert mixed.dtype == targets.dtype == torch.bfloat16
    assert torch.allclose(targets.float().sum(1), torch.ones(4), atol=0.01)
