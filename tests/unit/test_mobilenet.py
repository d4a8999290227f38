"""MobileNet V1 and V2: published sizes, the layers of the papers' tables, small forms, initial weights, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes.grouping import grouping_report
from lanes.models import MobileNetV1, MobileNetV2
from tests.building import check_deferred_building, loss_after, on_meta, randomised

BOTH = pytest.mark.parametrize("model", [MobileNetV1, MobileNetV2])


def map_sizes(net: nn.Module, layers: nn.Sequential) -> list[tuple[int, ...]]:
    """Shape [C, H, W] of the output of every layer for one image."""
    shapes: list[tuple[int, ...]] = []
    for layer in layers:
        layer.register_forward_hook(lambda layer, args, y: shapes.append(tuple(y.shape[1:])))
    net(torch.empty(2, *net.image_shape, device="meta"))
    return shapes


# --- sizes


@pytest.mark.parametrize(
    ("width_multiplier", "image_size", "million_parameters", "million_multiply_adds"),
    [  # the first paper, Tables 4, 6 and 7; the 4.24 M parameters in full in the authors' code
        (1.0, 224, 4.24, 569),
        (0.75, 224, 2.59, 325),
        (0.5, 224, 1.34, 149),
        (0.25, 224, 0.47, 41),
        (1.0, 192, 4.24, 418),
        (1.0, 160, 4.24, 290),
        (1.0, 128, 4.24, 186),
    ],
)
def test_v1_has_the_published_sizes(
    width_multiplier: float, image_size: int, million_parameters: float, million_multiply_adds: float
) -> None:
    report = grouping_report(on_meta(MobileNetV1, width_multiplier=width_multiplier, image_size=image_size))
    assert report.parameters == pytest.approx(1e6 * million_parameters, rel=0.01)
    assert report.multiply_adds == pytest.approx(1e6 * million_multiply_adds, rel=0.01)


@pytest.mark.parametrize(
    ("width_multiplier", "image_size", "million_parameters", "million_multiply_adds"),
    [  # the table in the authors' code, research/slim/nets/mobilenet/README.md; it leaves batch norm's out
        (1.4, 224, 6.06, 582),
        (1.3, 224, 5.34, 509),
        (1.0, 224, 3.47, 300),
        (0.75, 224, 2.61, 209),
        (0.5, 224, 1.95, 97),
        (0.35, 224, 1.66, 59),
        (1.0, 128, 3.47, 99),
    ],
)
def test_v2_has_the_published_sizes(
    width_multiplier: float, image_size: int, million_parameters: float, million_multiply_adds: float
) -> None:
    report = grouping_report(on_meta(MobileNetV2, width_multiplier=width_multiplier, image_size=image_size))
    of_weighted_layers = sum(layer.parameters for layer in report.layers.values())
    assert round(of_weighted_layers / 1e6, 2) == million_parameters
    assert report.multiply_adds == pytest.approx(1e6 * million_multiply_adds, rel=0.005)


def test_exact_numbers_of_parameters() -> None:
    assert grouping_report(on_meta(MobileNetV1)).parameters == 4_231_976
    assert grouping_report(on_meta(MobileNetV2)).parameters == 3_504_872  # torchvision's, to the last


# --- layers


def test_v1_has_the_layers_of_table_1() -> None:
    net = on_meta(MobileNetV1)
    published = [(64, 112), (128, 56), (128, 56), (256, 28), (256, 28), *[(512, 14)] * 6, (1024, 7), (1024, 7)]
    assert map_sizes(net, net.blocks) == [(channels, size, size) for channels, size in published]
    assert (net.stem[0].out_channels, net.stem[0].stride) == (32, (2, 2))
    for block in net.blocks:
        assert block.depthwise[0].groups == block.depthwise[0].out_channels == block.pointwise[0].in_channels
        assert block.pointwise[0].groups == 1
        for part in (block.depthwise, block.pointwise):
            assert [type(layer) for layer in part] == [nn.Conv2d, nn.BatchNorm2d, nn.ReLU]
            assert part[0].bias is None


def test_v2_has_the_layers_of_table_2() -> None:
    net = on_meta(MobileNetV2)
    stages = [(32, 1, 112), (16, 1, 112), (24, 2, 56), (32, 3, 28), (64, 4, 14), (96, 3, 14), (160, 3, 7), (320, 1, 7)]
    published = [(channels, size, size) for channels, number, size in [*stages, (1280, 1, 7)] for _ in range(number)]
    assert map_sizes(net, net.features) == published
    firsts = [1, 2, 4, 7, 11, 14, 17]  # the first block of each stage has no sum
    assert [i for i, block in enumerate(net.features[1:-1], 1) if not block.sums] == firsts


def test_v2_has_torchvisions_names() -> None:
    shapes = {name: tuple(tensor.shape) for name, tensor in on_meta(MobileNetV2).state_dict().items()}
    assert len(shapes) == 314
    assert shapes["features.0.0.weight"] == (32, 3, 3, 3)
    assert shapes["features.0.1.running_var"] == (32,)
    assert shapes["features.1.conv.0.0.weight"] == (32, 1, 3, 3)  # no expansion
    assert shapes["features.1.conv.1.weight"] == (16, 32, 1, 1)
    assert shapes["features.1.conv.2.bias"] == (16,)
    assert shapes["features.2.conv.0.0.weight"] == (96, 16, 1, 1)
    assert shapes["features.2.conv.1.0.weight"] == (96, 1, 3, 3)
    assert shapes["features.2.conv.2.weight"] == (24, 96, 1, 1)
    assert shapes["features.17.conv.3.num_batches_tracked"] == ()
    assert shapes["features.18.0.weight"] == (1280, 320, 1, 1)
    assert shapes["classifier.1.weight"] == (1000, 1280)


def conv_norm(x: Tensor, conv: nn.Conv2d, norm: nn.BatchNorm2d, **window: int) -> Tensor:
    mean, var, weight, bias = (getattr(norm, name) for name in ("running_mean", "running_var", "weight", "bias"))
    return F.batch_norm(F.conv2d(x, conv.weight, **window), mean, var, weight, bias, eps=norm.eps)


@pytest.mark.parametrize(("index", "stride", "sums"), [(3, 1, True), (4, 2, False)])
def test_a_block_of_v2_is_an_inverted_residual_with_a_linear_bottleneck(index: int, stride: int, sums: bool) -> None:
    block = randomised(MobileNetV2(num_classes=2, width_multiplier=0.5).features[index])
    expand, depthwise, project, norm = block.conv
    x = torch.randn(2, expand[0].in_channels, 6, 6, dtype=torch.float64)
    y = F.relu6(conv_norm(x, expand[0], expand[1]))
    y = F.relu6(conv_norm(y, depthwise[0], depthwise[1], stride=stride, padding=1, groups=6 * len(x[0])))
    y = conv_norm(y, project, norm)
    torch.testing.assert_close(block(x), x + y if sums else y, rtol=1e-13, atol=1e-13)


def test_a_block_of_v1_is_a_separable_convolution() -> None:
    block = randomised(MobileNetV1(num_classes=2, width_multiplier=0.25).blocks[1])
    x = torch.randn(2, 16, 6, 6, dtype=torch.float64)
    y = F.relu(conv_norm(x, *block.depthwise[:2], stride=2, padding=1, groups=16))
    y = F.relu(conv_norm(y, *block.pointwise[:2]))
    torch.testing.assert_close(block(x), y, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize(
    ("width_multiplier", "widths"),
    [  # as torchvision and the authors' code round them; 8.4 and 11.2 come to 8 and 16: at most a tenth is taken off
        (0.35, [16, 8, 8, 16, 24, 32, 56, 112, 1280]),
        (0.5, [16, 8, 16, 16, 32, 48, 80, 160, 1280]),
        (1.4, [48, 24, 32, 48, 88, 136, 224, 448, 1792]),
    ],
)
def test_widths_are_rounded_as_published(width_multiplier: float, widths: list[int]) -> None:
    net = on_meta(MobileNetV2, width_multiplier=width_multiplier, image_size=32)
    found = [shape[0] for shape in map_sizes(net, net.features)]
    assert [found[i] for i in (0, 1, 2, 4, 7, 11, 14, 17, 18)] == widths


# --- small images


@pytest.mark.parametrize(
    ("model", "total_stride", "unstrided"),
    [
        (MobileNetV1, 16, ["stem.0"]),
        (MobileNetV2, 8, ["features.0.0", "features.2.conv.1.0"]),
        (MobileNetV1, 1, [f"blocks.{i}.depthwise.0" for i in (1, 3, 5, 11)] + ["stem.0"]),
    ],
)
def test_small_images_have_fewer_strides(model: type[nn.Module], total_stride: int, unstrided: list[str]) -> None:
    net = on_meta(model, num_classes=10, width_multiplier=0.5, image_size=32, total_stride=total_stride)
    maps = {}
    net.avgpool.register_forward_hook(lambda layer, args, y: maps.update(last=args[0].shape[2:]))
    assert net.image_shape == (3, 32, 32)
    assert net(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert maps["last"] == (32 // total_stride,) * 2
    published = on_meta(model, num_classes=10, width_multiplier=0.5)
    changed = [
        n for n, m in net.named_modules() if getattr(m, "stride", 0) != getattr(published.get_submodule(n), "stride", 0)
    ]
    assert sorted(changed) == sorted(unstrided)
    assert net.state_dict().keys() == published.state_dict().keys()


@pytest.mark.parametrize(("model", "total_stride"), [(MobileNetV1, 16), (MobileNetV2, 8)])
def test_small_networks_learn(model: type[nn.Module], total_stride: int) -> None:
    torch.manual_seed(0)
    net = model(num_classes=4, width_multiplier=0.25, image_size=32, total_stride=total_stride, dropout=0.0)
    assert loss_after(net, torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9), steps=25) < 0.4


# --- building


@BOTH
def test_meta_then_init_layer_equals_building_at_once(model: type[nn.Module]) -> None:
    check_deferred_building(model, width_multiplier=0.25, num_classes=10)


@BOTH
def test_arguments_of_data(model: type[nn.Module]) -> None:
    net = on_meta(model, num_classes=7, in_channels=1, image_size=96, dropout=0.4)
    assert net.image_shape == (1, 96, 96)
    assert net(torch.empty(2, 1, 96, 96, device="meta")).shape == (2, 7)
    assert [layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)] == [0.4]


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"in_channels": 1.5}, r"in_channels must be a whole number of at least 1, got 1\.5"),
        ({"width_multiplier": 0}, r"width_multiplier must be a positive number, e\.g\. 0\.5, got 0"),
        ({"width_multiplier": float("nan")}, "width_multiplier must be a positive number"),
        ({"total_stride": 12}, "total_stride must be one of 1, 2, 4, 8, 16, 32, got 12"),
        ({"image_size": 28}, "got 28 pixels and 32; use larger images or a smaller total_stride"),
        ({"dropout": 1.5}, "dropout probability"),
    ],
)
def test_refuses_bad_arguments(model: type[nn.Module], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(model, **arguments)
