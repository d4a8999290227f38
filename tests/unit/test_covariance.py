"""Covariance between layers on made responses with known answers, and blocks of nets with groups and without."""

import pytest
import torch
from torch import Tensor, nn

from lanes.analysis.covariance import LayerCovariance, block_ratio, layer_covariances, merged
from lanes.models import SmallAlexNet

PAIR = ("conv1", "conv2")


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def squares(first: Tensor, second: Tensor, parts: int = 1) -> dict[str, Tensor]:
    metric = LayerCovariance((first.shape[1], second.shape[1]))
    for a, b in zip(first.chunk(parts), second.chunk(parts), strict=True):
        metric.update(a, b)
    return metric.compute()


def samples(maps: Tensor) -> Tensor:
    """[n, C]."""
    return maps.movedim(1, -1).flatten(0, -2)


def expected(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """By the formulas of the source, from all samples at once: singular vectors instead of eigenvectors."""
    one, two = (samples(x) - samples(x).mean(0) for x in (first, second))
    (u1, _, v1), (u2, _, v2) = (torch.linalg.svd(x, full_matrices=False) for x in (one, two))
    whitened = (u1 @ v1).T @ (u2 @ v2)  # sqrt(N - 1) (X X^T)^(-1/2) X = sqrt(N - 1) U V^T
    both = torch.corrcoef(torch.cat([one, two], 1).T)
    return whitened.abs(), both[: one.shape[1], one.shape[1] :].abs()


def test_as_the_source_says() -> None:
    first = torch.einsum("nchw,cd->ndhw", drawn(8, 5, 6, 7), drawn(5, 5, seed=1)) + 3
    second = torch.einsum("nchw,cd->ndhw", first, drawn(5, 4, seed=2)) + drawn(8, 4, 6, 7, seed=3) - 50
    whitened, correlation = expected(first, second)
    assert whitened.max() > 0.3
    for parts in (1, 3, 8):  # batches of different size
        found = squares(first, second, parts)
        torch.testing.assert_close(found["whitened"], whitened, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found["correlation"], correlation, rtol=1e-9, atol=1e-12)


def test_whitening_takes_out_what_is_inside_a_layer() -> None:
    """Channels that share one factor go together with a copy of one of them; whitened, only the copy is left."""
    one = 0.1 * drawn(50, 6, 4, 4) + drawn(50, 1, 4, 4, seed=1)
    found = squares(one, one.clone())
    torch.testing.assert_close(found["whitened"], torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9)
    assert found["correlation"].min() > 0.95


def test_independent_layers() -> None:
    """Each entry is a correlation of n independent pairs: normal with sd 1/sqrt(n); 5.5 sds for 64 of them."""
    first, second = drawn(40, 8, 10, 10), drawn(40, 8, 10, 10, seed=1)
    for square in squares(first, second).values():
        assert square.max() < 5.5 / 4000**0.5
        assert square.mean() > 0.5 / 4000**0.5, "what noise leaves is not 0"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_dead_and_equal_channels(dtype: torch.dtype) -> None:
    """Dead ones (0, and a constant that no float holds exactly) go with nothing; two equal ones share what they say."""
    maps = drawn(64, 5, 8, 8).to(dtype)
    maps[:, 1], maps[:, 2], maps[:, 4] = 0, 0.1, maps[:, 3]
    found = squares(maps, maps.clone(), parts=4)
    alone, shared = torch.zeros(5, 5, dtype=torch.float64), torch.zeros(5, 5, dtype=torch.float64)
    alone[0, 0] = shared[0, 0] = 1
    alone[3:, 3:], shared[3:, 3:] = 1, 0.5
    torch.testing.assert_close(found["whitened"], shared, rtol=0, atol=1e-6)
    assert found["whitened"].isfinite().all()
    assert (found["correlation"][1:3] == 0).all()
    torch.testing.assert_close(found["correlation"], alone, rtol=0, atol=0.1)


def test_almost_equal_channels_are_told_apart_if_the_data_type_can() -> None:
    """Channels that differ by a hundred-thousandth: seen in float64, in bfloat16 the difference is rounding."""
    first = drawn(64, 2, 8, 8)
    first[:, 1] = first[:, 0] + 1e-5 * first[:, 1]
    assert squares(first, first)["whitened"].diagonal() == pytest.approx([1, 1], abs=1e-3)
    rounded = first.bfloat16()
    assert squares(rounded, rounded)["whitened"].flatten().tolist() == pytest.approx([0.5] * 4, abs=1e-3)


def test_far_from_zero() -> None:
    """Means 1e6 times the spread: sums of squares in float64 would keep four digits of the variance."""
    first, second = drawn(64, 3, 8, 8), drawn(64, 3, 8, 8, seed=1)
    second = second + first
    near, far = squares(first, second), squares(first + 1e6, second - 1e6, parts=16)
    torch.testing.assert_close(far["whitened"], near["whitened"], rtol=1e-6, atol=1e-8)


def test_smaller_maps_and_vectors() -> None:
    """A smaller map counts once for every pixel of the larger, whichever layer has it."""
    large, small, vector = drawn(8, 3, 7, 6), drawn(8, 2, 3, 3, seed=1), drawn(8, 2, seed=2)
    rows, columns = [0, 0, 1, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2]  # the nearest centres, by hand
    upsampled = small[:, :, rows][..., columns]
    torch.testing.assert_close(squares(large, small), squares(large, upsampled))
    torch.testing.assert_close(squares(small, large), squares(upsampled, large))
    repeated = vector[:, :, None, None].expand(8, 2, 7, 6)
    torch.testing.assert_close(squares(large, vector), squares(large, repeated))


def test_merged_in_any_order() -> None:
    """What replicas have seen, and an empty state, as torchmetrics merges them."""
    first, second = drawn(12, 3, 4, 4) + 7, drawn(12, 2, 4, 4, seed=1)
    whole = LayerCovariance((3, 2))
    whole.update(first, second)
    parts = []
    for images in (slice(1), slice(1, 8), slice(8, 12)):
        parts.append(LayerCovariance((3, 2)))
        parts[-1].update(first[images], second[images])
    empty = LayerCovariance((3, 2)).moments
    found = merged(torch.stack([empty, *(part.moments for part in parts)]))
    torch.testing.assert_close(found, whole.moments, rtol=1e-12, atol=1e-12)
    parts[0].merge_state(parts[2])
    parts[0].merge_state(parts[1])
    torch.testing.assert_close(parts[0].compute(), whole.compute(), rtol=1e-10, atol=1e-12)


class TwoLayers(nn.Module):
    """Two convolutions, the nonlinearity between them in place."""

    def __init__(self, groups: tuple[int, int], *, images: int = 64) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(images, 32, 3, padding=1, groups=groups[0])
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(32, 32, 3, padding=1, stride=2, groups=groups[1])

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.relu(self.conv1(x)))


def measured(groups: tuple[int, int]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    net = TwoLayers(groups)
    batches = [drawn(16, 64, 16, 16, seed=seed).float() for seed in range(4)]
    return layer_covariances(net, [PAIR], batches)[PAIR]


@pytest.mark.parametrize("kind", ["whitened", "correlation"])
def test_eight_groups_are_eight_bright_blocks(kind: str) -> None:
    """Also where the layer before has none; without groups no block stands out."""
    for groups, least in (((8, 8), 10), ((1, 8), 3)):
        square = measured(groups)[kind]
        assert block_ratio(square, 8) > least
        blocks = square.unflatten(1, (8, 4)).unflatten(0, (8, 4)).mean((1, 3))
        darker = blocks.clone().fill_diagonal_(0)
        assert blocks.diagonal().min() > darker.max(), "each of them is brighter than all else"
    assert block_ratio(measured((1, 1))[kind], 8) == pytest.approx(1, abs=0.2)


def test_responses_are_taken_before_the_nonlinearity() -> None:
    """Which works in place; and the network's modes are as they were."""
    net = TwoLayers((1, 1), images=3)
    net.conv2.eval()
    images = drawn(6, 3, 16, 16).float()
    found = layer_covariances(net, [PAIR], [images[:4], images[4:]])[PAIR]
    with torch.no_grad():
        first = net.conv1(images)
        second = net.conv2(torch.relu(first))
    torch.testing.assert_close(found, squares(first, second), rtol=1e-6, atol=1e-8)
    assert net.training
    assert net.conv1.training
    assert not net.conv2.training


def test_several_pairs_at_once() -> None:
    net = SmallAlexNet(num_classes=4, lanes=2, image_size=32)
    pairs = [("conv1", "conv2"), ("conv2", "conv3")]
    found = layer_covariances(net, pairs, [torch.rand(4, 3, 32, 32)])
    assert list(found) == pairs
    assert [tuple(square["whitened"].shape) for square in found.values()] == [(48, 96), (96, 128)]
    for square in found.values():
        assert square["whitened"].max() <= 1 + 1e-9


def test_block_ratio() -> None:
    square = torch.tensor([[2.0, -2, 1, 0], [2, 2, 0, -1], [1, 0, -4, 4], [0, 1, 4, 4]])
    assert block_ratio(square, 2) == pytest.approx(3 / 0.5)
    assert block_ratio(torch.block_diag(torch.ones(2, 3), torch.ones(2, 3)), 2) == torch.inf
    for shape, blocks in (((4, 4), 3), ((4, 6), 1), ((4,), 2), ((0, 0), 2)):
        with pytest.raises(ValueError, match="does not divide into"):
            block_ratio(torch.ones(shape), blocks)


def test_refused() -> None:
    metric = LayerCovariance((3, 2))
    with pytest.raises(ValueError, match="no maps, alike in dimensions, of 3 and 2 channels"):
        metric.update(drawn(4, 3, 5, 5), drawn(4, 3, 5, 5))
    with pytest.raises(ValueError, match="alike in dimensions"):
        metric.update(drawn(4, 3, 5, 5), drawn(4, 2, 5))
    with pytest.raises(ValueError, match="4 and 3 images"):
        metric.update(drawn(4, 3, 5, 5), drawn(3, 2, 5, 5))
    metric.update(drawn(5, 3), drawn(5, 2))
    with pytest.raises(ValueError, match=r"5 samples .* too few for 3 \+ 2 channels"):
        metric.compute()
    metric.update(drawn(50, 3) / 0, drawn(50, 2))
    with pytest.raises(ValueError, match="not finite"):
        metric.compute()


def test_refused_layers() -> None:
    net, images = TwoLayers((1, 1), images=3), [torch.rand(4, 3, 8, 8)]
    with pytest.raises(ValueError, match="no layer 'conv3'; did you mean 'conv"):
        layer_covariances(net, [("conv1", "conv3")], images)
    with pytest.raises(ValueError, match="no images"):
        layer_covariances(net, [PAIR], [])
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(ValueError, match="spare does not run in evaluation mode"):
        layer_covariances(net, [("conv1", "spare")], images)
    with pytest.raises(ValueError, match="needs its plan and its mesh"):
        layer_covariances(net, [PAIR], images, mesh=object())  # type: ignore[arg-type]
