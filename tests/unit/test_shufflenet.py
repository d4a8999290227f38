"""ShuffleNet V1: published sizes, the layers of the paper, what the shuffle does, lanes, small forms, errors."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lanes.grouping import grouping_report
from lanes.models import Concat, ShuffleNetV1
from tests.building import check_deferred_building, loss_after, on_meta, randomised

GROUPS = [1, 2, 3, 4, 8]
SCALES = [0.25, 0.5, 1.0, 1.5, 2.0]
SMALL = {"num_classes": 10, "image_size": 32, "total_stride": 8}


def units(net: ShuffleNetV1) -> list[nn.Module]:
    return [*net.stage2, *net.stage3, *net.stage4]


# --- sizes


@pytest.mark.parametrize(
    ("groups", "scale", "million_multiply_adds"),
    [  # the paper, Tables 1, 2 and 5
        *[(1, 1.0, 143), (2, 1.0, 140), (3, 1.0, 137), (4, 1.0, 133), (8, 1.0, 137)],
        *[(3, 2.0, 524), (3, 1.5, 292), (4, 0.5, 38), (1, 0.5, 38), (3, 0.5, 38), (1, 0.25, 13)],
        *[(8, 2.0, 522), (8, 1.5, 290), (8, 0.5, 40)],  # the authors' README
    ],
)
def test_multiply_adds_are_the_published_ones(groups: int, scale: float, million_multiply_adds: int) -> None:
    report = grouping_report(on_meta(ShuffleNetV1, groups=groups, scale=scale))
    assert report.multiply_adds == pytest.approx(1e6 * million_multiply_adds, rel=0.02)


@pytest.mark.parametrize(
    ("groups", "scale", "million_parameters"),
    [  # the authors' README
        *[(3, 2.0, 5.4), (3, 1.5, 3.4), (3, 1.0, 1.9), (3, 0.5, 0.7)],
        *[(8, 2.0, 6.5), (8, 1.5, 4.3), (8, 1.0, 2.4), (8, 0.5, 1.0)],
    ],
)
def test_parameters_are_the_published_ones(groups: int, scale: float, million_parameters: float) -> None:
    parameters = grouping_report(on_meta(ShuffleNetV1, groups=groups, scale=scale)).parameters
    assert parameters == pytest.approx(
        1e6 * million_parameters, abs=0.06e6
    )  # rounded there, batch norm left out or not


# --- layers


@pytest.mark.parametrize(
    ("groups", "channels"),
    [(1, (144, 288, 576)), (2, (200, 400, 800)), (3, (240, 480, 960)), (4, (272, 544, 1088)), (8, (384, 768, 1536))],
)
def test_has_the_layers_of_table_1(groups: int, channels: tuple[int, ...]) -> None:
    net = on_meta(ShuffleNetV1, groups=groups)
    shapes = []
    for layer in (net.stem, net.maxpool, *units(net)):
        layer.register_forward_hook(lambda layer, args, y: shapes.append(tuple(y.shape[1:])))
    assert net(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)
    stages = [(channels[0], 28, 4), (channels[1], 14, 8), (channels[2], 7, 4)]
    expected = [(width, size, size) for width, size, repeats in stages for _ in range(repeats)]
    assert shapes == [(24, 112, 112), (24, 56, 56), *expected]


@pytest.mark.parametrize("groups", GROUPS)
def test_every_unit_has_the_layers_of_fig_2(groups: int) -> None:
    net = on_meta(ShuffleNetV1, groups=groups)
    for unit in units(net):
        branch = unit.branch
        made = branch.expand.out_channels + (branch.reduce.in_channels if hasattr(unit, "concat") else 0)
        assert branch.reduce.groups == (1 if unit is net.stage2[0] else groups)
        assert branch.expand.groups == groups
        assert branch.depthwise.groups == branch.depthwise.in_channels == made // 4
        behind_depthwise = [type(layer) for layer in branch][-3:]
        assert behind_depthwise == [nn.BatchNorm2d, nn.Conv2d, nn.BatchNorm2d]  # no ReLU
        shuffles = [layer.groups for layer in branch if isinstance(layer, nn.ChannelShuffle)]
        assert shuffles == ([groups] if groups > 1 else [])
    strided = [unit for unit in units(net) if hasattr(unit, "concat")]
    assert strided == [net.stage2[0], net.stage3[0], net.stage4[0]]
    assert all(type(unit.concat) is Concat for unit in strided)


def by_hand(branch: nn.Sequential, x: Tensor, *, groups: int, first_groups: int, stride: int) -> Tensor:
    """The branch of Fig. 2(b) and (c), written with functions."""

    def norm(x: Tensor, layer: nn.BatchNorm2d) -> Tensor:
        return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps)

    x = F.relu(norm(F.conv2d(x, branch.reduce.weight, groups=first_groups), branch.norm1))
    x = x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)  # section 3.1: (g, n), transposed, flattened
    x = F.conv2d(x, branch.depthwise.weight, stride=stride, padding=1, groups=len(x[0]))
    return norm(F.conv2d(norm(x, branch.norm2), branch.expand.weight, groups=groups), branch.norm3)


@pytest.mark.parametrize("groups", [2, 3, 4])
def test_units_are_the_papers_formulas(groups: int) -> None:
    net = randomised(ShuffleNetV1(groups=groups, scale=0.25, **SMALL))
    entry, strided, plain = net.stage2[0], net.stage3[0], net.stage3[1]
    for unit, first_groups in ((entry, 1), (strided, groups)):
        x = torch.randn(2, unit.branch.reduce.in_channels, 6, 6, dtype=torch.float64)
        y = by_hand(unit.branch, x, groups=groups, first_groups=first_groups, stride=2)
        expected = F.relu(torch.cat([F.avg_pool2d(x, 3, 2, 1), y], 1))
        torch.testing.assert_close(unit(x), expected, rtol=1e-12, atol=1e-12)
    x = torch.randn(2, plain.branch.reduce.in_channels, 6, 6, dtype=torch.float64)
    expected = F.relu(x + by_hand(plain.branch, x, groups=groups, first_groups=groups, stride=1))
    torch.testing.assert_close(plain(x), expected, rtol=1e-12, atol=1e-12)


# --- the shuffle


@pytest.mark.parametrize("shuffle", [True, False])
def test_groups_meet_by_the_shuffle_only(shuffle: bool) -> None:
    branch = randomised(ShuffleNetV1(groups=4, scale=0.5, shuffle=shuffle, **SMALL).stage3[1].branch)
    x = torch.randn(1, branch.reduce.in_channels, 4, 4, dtype=torch.float64, requires_grad=True)
    reached = []
    for group in branch(x).chunk(4, dim=1):
        (dx,) = torch.autograd.grad(group.square().sum(), x, retain_graph=True)
        reached.append([bool(part.any()) for part in dx.chunk(4, dim=1)])
    assert torch.tensor(reached).tolist() == (torch.ones(4, 4) if shuffle else torch.eye(4)).bool().tolist()


def test_with_and_without_shuffle_differ_in_nothing_else() -> None:
    torch.manual_seed(1)
    with_shuffle = ShuffleNetV1(groups=4, scale=0.25, **SMALL).eval()
    torch.manual_seed(1)
    without = ShuffleNetV1(groups=4, scale=0.25, shuffle=False, **SMALL).eval()
    torch.testing.assert_close(with_shuffle.state_dict(), without.state_dict(), rtol=0, atol=0)
    assert not any(isinstance(layer, nn.ChannelShuffle) for layer in without.modules())
    images = torch.randn(2, 3, 32, 32)
    assert not torch.allclose(with_shuffle(images), without(images))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_torchs_shuffle_has_a_backward(device: str) -> None:
    """Of the layers used here the only one whose backward, in double precision and without memory, is rarely run."""
    x = torch.randn(2, 12, 3, 3, dtype=torch.float64, device=device, requires_grad=True)
    y = nn.ChannelShuffle(4)(x)
    seed = torch.randn_like(y)
    (dx,) = torch.autograd.grad(y, x, seed)
    assert dx.shape == x.shape
    assert dx.dtype == torch.float64
    if device == "cpu":
        assert torch.equal(y, x.unflatten(1, (4, 3)).transpose(1, 2).flatten(1, 2))
        assert torch.equal(dx, seed.unflatten(1, (3, 4)).transpose(1, 2).flatten(1, 2))


# --- lanes


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("groups", GROUPS)
def test_channels_and_groups_divide_over_as_many_devices_as_groups(groups: int, scale: float) -> None:
    net = on_meta(ShuffleNetV1, groups=groups, scale=scale)
    for name, conv in net.named_modules():
        if isinstance(conv, nn.Conv2d):
            assert conv.out_channels % groups == 0, name  # a strided unit's shortcut: the layers' before it
            assert conv.groups == 1 or conv.groups % groups == 0, name


# --- small images


@pytest.mark.parametrize("total_stride", [8, 16])
def test_small_images_have_fewer_strides(total_stride: int) -> None:
    net = on_meta(ShuffleNetV1, num_classes=10, groups=4, scale=0.5, image_size=32, total_stride=total_stride)
    maps = {}
    net.avgpool.register_forward_hook(lambda layer, args, y: maps.update(last=args[0].shape[2:]))
    assert net.image_shape == (3, 32, 32)
    assert net(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 10)
    assert maps["last"] == (32 // total_stride,) * 2
    assert net.stem[0].stride == (1, 1)
    assert type(net.maxpool) is (nn.Identity if total_stride == 8 else nn.MaxPool2d)
    assert net.state_dict().keys() == on_meta(ShuffleNetV1).state_dict().keys()


@pytest.mark.parametrize("shuffle", [True, False])
def test_small_network_learns(shuffle: bool) -> None:
    torch.manual_seed(0)
    net = ShuffleNetV1(groups=4, scale=0.25, shuffle=shuffle, **(SMALL | {"num_classes": 4}))
    assert loss_after(net, torch.optim.SGD(net.parameters(), lr=0.02, momentum=0.9), steps=25) < 0.4


# --- building


def test_meta_then_init_layer_equals_building_at_once() -> None:
    check_deferred_building(ShuffleNetV1, scale=0.25)


def test_arguments_of_data() -> None:
    net = on_meta(ShuffleNetV1, num_classes=7, in_channels=1, image_size=96)
    assert net.image_shape == (1, 96, 96)
    assert net(torch.empty(2, 1, 96, 96, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"in_channels": 1.5}, r"in_channels must be a whole number of at least 1, got 1\.5"),
        ({"groups": 5}, r"groups must be one of 1, 2, 3, 4, 8, got 5"),
        ({"scale": 0.7}, r"scale must be one of 0\.25, 0\.5, 1\.0, 1\.5, 2\.0, got 0\.7"),
        ({"total_stride": 4}, "total_stride must be one of 8, 16, 32, got 4"),
        ({"image_size": 28}, "got 28 pixels and 32; use larger images or a smaller total_stride"),
    ],
)
def test_refuses_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(ShuffleNetV1, **arguments)
