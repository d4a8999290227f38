"""The preset against cuda-convnet2's configuration, written down here a second time, and its same-map norm."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lanes
from lanes.models import AlexNet, CudaConvnet2AlexNet, LocalResponseNorm, MapResponseNorm
from tests.building import check_deferred_building, on_meta

# One lane of layers-imagenet-2gpu-model.cfg, in its order: layer, its inputs' channels (both lanes' where they meet),
# window, stride, filters, initW, initB, and what it makes of 224x224 pixels, as [channels, side] of one lane.
CONVOLUTIONS = {
    #        in  window stride filters initW initB  side
    "conv1": (3, 11, 4, 48, 0.01, 0.0, 55),
    "conv2": (48, 5, 1, 128, 0.01, 1.0, 27),
    "conv3": (256, 3, 1, 192, 0.03, 0.0, 13),
    "conv4": (192, 3, 1, 192, 0.03, 1.0, 13),
    "conv5": (192, 3, 1, 128, 0.03, 1.0, 13),
}
FULLY_CONNECTED = {
    #       in  outputs initW initB
    "fc6": (2 * 128 * 6 * 6, 2048, 0.01, 1.0),
    "fc7": (2 * 2048, 2048, 0.01, 1.0),
}
HEAD = (2 * 2048, 1000, 0.01, 0.0)  # fc1000: on GPU 0 alone, from both lanes
POOLS = {"pool1": (48, 27), "pool2": (128, 13), "pool5": (128, 6)}  # 3x3, stride 2
ORDER = """conv1 norm1 pool1 relu1 conv2 relu2 norm2 cnorm2 pool2 conv3 relu3 conv4 relu4 conv5 pool5 relu5 flatten
    fc6 relu6 drop6 fc7 relu7 drop7 fc8""".split()


def shapes_of(net: nn.Module) -> dict[str, tuple[int, ...]]:
    """Shapes [C, ...] that the layers make, in the order in which they run."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda layer, args, y, name=name: shapes.update({name: tuple(y.shape[1:])}))
    net(torch.empty(2, *net.image_shape, device="meta"))
    return shapes


@pytest.fixture(scope="module")
def net() -> CudaConvnet2AlexNet:
    torch.manual_seed(0)
    return CudaConvnet2AlexNet()


def test_the_layers_run_in_the_order_of_the_configuration() -> None:
    assert list(shapes_of(on_meta(CudaConvnet2AlexNet))) == ORDER


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(net: CudaConvnet2AlexNet, name: str) -> None:
    channels, window, stride, filters, std, bias, side = CONVOLUTIONS[name]
    layer = net.get_submodule(name)
    assert layer.weight.shape == (2 * filters, channels, window, window)
    assert layer.stride == (stride, stride)
    assert shapes_of(on_meta(CudaConvnet2AlexNet))[name] == (2 * filters, side, side)
    assert layer.weight.std().item() == pytest.approx(std, rel=0.02)
    assert abs(layer.weight.mean().item()) < 0.03 * std
    assert layer.bias.unique().tolist() == [bias]


@pytest.mark.parametrize("name", FULLY_CONNECTED)
def test_fully_connected_layers(net: CudaConvnet2AlexNet, name: str) -> None:
    features, outputs, std, bias = FULLY_CONNECTED[name]
    layer = net.get_submodule(name)
    assert type(layer) is nn.Linear
    assert layer.weight.shape == (2 * outputs, features)
    assert layer.weight.std().item() == pytest.approx(std, rel=0.01)
    assert layer.bias.unique().tolist() == [bias]
    assert net.get_submodule(name.replace("fc", "drop")).p == 0.5


def test_head(net: CudaConvnet2AlexNet) -> None:
    features, outputs, std, bias = HEAD
    assert net.fc8.weight.shape == (outputs, features)
    assert net.fc8.weight.std().item() == pytest.approx(std, rel=0.01)
    assert net.fc8.bias.unique().tolist() == [bias]


def test_pools_and_norms() -> None:
    net = on_meta(CudaConvnet2AlexNet)
    shapes = shapes_of(net)
    for name, (channels, side) in POOLS.items():
        pool = net.get_submodule(name)
        assert (type(pool), pool.kernel_size, pool.stride) == (nn.MaxPool2d, 3, 2)
        assert shapes[name] == (2 * channels, side, side)
    for norm in (net.norm1, net.norm2):  # cmrnorm: size 5, scale 1e-4, pow .75, minDiv 2, in each lane
        assert type(norm) is LocalResponseNorm
        assert (norm.size, norm.alpha, norm.beta, norm.k, norm.lanes) == (5, 1e-4, 0.75, 2.0, 2)
    assert (net.cnorm2.size, net.cnorm2.alpha, net.cnorm2.beta, net.cnorm2.k) == (5, 1e-3, 0.75, 1.0)
    assert on_meta(CudaConvnet2AlexNet, map_window=9).cnorm2.size == 9


def test_lanes_meet_where_the_configuration_says() -> None:
    with torch.device("meta"):
        plan = lanes.plan(CudaConvnet2AlexNet(), torch.empty(2, 3, 224, 224), lane_devices=2)
    assert list(plan.crossings) == ["conv3", "fc6", "fc7", "fc8"]


def test_checkpoints_of_alexnet_fit() -> None:
    with torch.device("meta"):
        theirs = AlexNet().state_dict()
    ours = on_meta(CudaConvnet2AlexNet).state_dict()
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}


def test_meta_then_init_layer_equals_building_at_once() -> None:
    check_deferred_building(CudaConvnet2AlexNet, num_classes=10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lanes": 3}, r"conv2: 256 channels do not divide over 3 lanes; use one of \[1, 2, 4, 8, 16, 32\]"),
        ({"cross": ("conv6",)}, "no layer 'conv6' that may cross"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, got 0"),
        ({"map_window": 4}, "size must be an odd whole number of at least 1, got 4"),
        ({"dropout": -1.0}, "dropout probability"),
    ],
)
def test_refuses_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(CudaConvnet2AlexNet, **arguments)


def same_map_norm(x: Tensor, size: int, scale: float, power: float, min_div: float) -> Tensor:
    """cuda-convnet2's `rnorm`, pixel by pixel: scale is divided by size^2, pixels outside the image do not count."""
    reach, (height, width) = size // 2, x.shape[-2:]
    y = torch.empty_like(x)
    for h in range(height):
        for w in range(width):
            window = x[..., max(0, h - reach) : h + reach + 1, max(0, w - reach) : w + reach + 1]
            squares = window.pow(2).sum((-2, -1))
            y[..., h, w] = x[..., h, w] / (min_div + scale / size**2 * squares) ** power
    return y


@pytest.mark.parametrize("size", [1, 3, 5, 9])
def test_map_response_norm_is_rnorm(size: int) -> None:
    x = torch.randn(2, 3, 7, 6, dtype=torch.float64)
    norm = MapResponseNorm(size, alpha=0.4, beta=0.7, k=1.3)
    torch.testing.assert_close(norm(x), same_map_norm(x, size, 0.4, 0.7, 1.3), rtol=1e-13, atol=1e-14)
    torch.autograd.gradcheck(norm, torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True))


def test_local_response_norm_with_alpha_of_the_configuration_is_cmrnorm() -> None:
    """cuda-convnet2 divides `scale` by the size of the window (NormLayerParser), as PyTorch does."""
    x = torch.randn(2, 8, 3, 3, dtype=torch.float64)
    squares = F.pad(x.pow(2), (0, 0, 0, 0, 2, 2)).unfold(1, 5, 1).sum(-1)
    expected = x / (2 + 1e-4 / 5 * squares) ** 0.75
    torch.testing.assert_close(LocalResponseNorm(5, 1e-4, 0.75, 2.0)(x), expected, rtol=1e-14, atol=1e-15)


def test_map_response_norm_in_half_precision_computes_in_float32() -> None:
    x = torch.full((1, 1, 3, 3), 1000.0, dtype=torch.float16)  # its square is infinite
    y = MapResponseNorm(3, alpha=1.0)(x)
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, MapResponseNorm(3, alpha=1.0)(x.float()).half())
    assert y.isfinite().all()


def test_map_response_norm_refuses_other_ranks() -> None:
    with pytest.raises(ValueError, match=r"expected \[N, C, H, W\], got 3 dims"):
        MapResponseNorm(3)(torch.zeros(2, 3, 4))
