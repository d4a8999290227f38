"""Networks by name: every one of them builds and runs, and a wrong name or argument is told."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from torch import nn

from lanes.grouping import grouping_report
from lanes.models import Named, build, names
from lanes.models.named import Arguments
from lanes.models.registry import ENTRIES
from lanes.models.resnet import EQUAL_COST_WIDTHS, ResNet
from tests.building import check_deferred_building, on_meta

PARAMETERS = {
    "alexnet": 60_965_224,
    "alexnet_dense": 62_378_344,
    "cuda_convnet2_alexnet": 60_965_224,
    "small_alexnet": 594_570,
    "small_alexnet_cifar": 594_570,
    "nin": 966_986,
    "nin_root2": 736_586,
    "nin_root4": 455_498,
    "nin_root8": 314_954,
    "nin_root16": 244_682,
    "nin_cifar": 247_594,
    "nin_root8_cifar": 84_586,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet50_2015": 25_557_032,
    "resnet50_root16": 18_744_104,
    "resnet50_root64": 15_365_864,
    "resnext50_1x64d": 25_557_032,
    "resnext50_2x40d": 25_425_000,
    "resnext50_4x24d": 25_292_968,
    "resnext50_8x14d": 25_603_016,
    "resnext50_32x4d": 25_028_904,
    "resnext101_32x4d": 44_177_704,
    "resnext29_8x64d_cifar": 34_426_698,
    "resnext11_8x4d_cifar": 135_898,
    "resnext20_1x16d_cifar": 220_378,
    "resnext20_2x10d_cifar": 218_186,
    "resnext20_4x6d_cifar": 215_994,
    "resnext20_8x3.5d_cifar": 216_250,
    "mobilenet_v1": 4_231_976,
    "mobilenet_v1_cifar": 1_824_250,
    "mobilenet_v2": 3_504_872,
    "mobilenet_v2_cifar": 700_490,
    "shufflenet_v1_g1": 1_531_936,
    "shufflenet_v1_g2": 1_733_848,
    "shufflenet_v1_g3": 1_865_728,
    "shufflenet_v1_g4": 1_968_344,
    "shufflenet_v1_g8": 2_434_768,
    "shufflenet_v1_g1_cifar": 248_374,
    "shufflenet_v1_g2_cifar": 246_942,
    "shufflenet_v1_g3_cifar": 242_134,
    "shufflenet_v1_g4_cifar": 238_490,
    "shufflenet_v1_g8_cifar": 250_138,
    "signal_net": 24_106,
    "volume_net": 19_674,
}


def test_the_table_names_them_all() -> None:
    assert names() == list(PARAMETERS)


@pytest.mark.parametrize("name", PARAMETERS)
def test_every_network_builds_and_runs_forward_and_backward(name: str) -> None:
    net = on_meta(build, name)
    assert sum(parameter.numel() for parameter in net.parameters()) == PARAMETERS[name]
    images = torch.empty(2, *net.image_shape, device="meta", requires_grad=True)
    logits = net(images)
    assert logits.shape == (2, ENTRIES[name].arguments["num_classes"])
    logits.sum().backward()
    assert images.grad.shape == images.shape
    assert [key for key, parameter in net.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("name", [name for name in PARAMETERS if name.endswith("_cifar")])
def test_small_networks_read_32_pixels_and_ten_classes(name: str) -> None:
    net = on_meta(build, name)
    assert net.image_shape == (3, 32, 32)
    assert ENTRIES[name].arguments["num_classes"] == 10
    if name != "resnext29_8x64d_cifar":  # the paper's
        assert grouping_report(net).multiply_adds < 60e6


def test_resnexts_of_equal_cost_are_named() -> None:
    for cardinality, width in EQUAL_COST_WIDTHS.items():
        net = on_meta(build, f"resnext50_{cardinality}x{width}d")
        assert (net.layer1[0].conv2.groups, net.layer1[0].conv2.out_channels) == (cardinality, cardinality * width)


@pytest.mark.parametrize("name", ["shufflenet_v1_g4_cifar", "resnext11_8x4d_cifar", "signal_net"])
def test_meta_then_init_layer_equals_building_at_once(name: str) -> None:
    check_deferred_building(build, name)


def test_arguments_come_before_what_the_name_stands_for() -> None:
    assert on_meta(build, "nin_root8").conv2a.groups == 8
    assert on_meta(build, "nin_root8", root=4).conv2a.groups == 4
    assert on_meta(build, "mobilenet_v2", num_classes=7).classifier[1].out_features == 7
    assert on_meta(build, "resnext50_32x4d", in_channels=1).image_shape == (1, 224, 224)
    assert ENTRIES["nin_root8"].arguments["root"] == 8  # the entry is as it was


def test_entries_fix_arguments_that_the_network_has() -> None:
    for name, entry in ENTRIES.items():
        assert set(entry.fixed) <= set(inspect.signature(entry.factory).parameters), name
        assert len(entry.about) < 70, name


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnext50_32x5d", {}, "there is no network 'resnext50_32x5d'; did you mean 'resnext50_32x4d'?"),
        ("transformer", {}, r"there is no network 'transformer' \(lanes models lists them\)"),
        ("resnet50", {"lanes": 2}, r"resnet50 has no argument 'lanes' \(it has num_classes, depth, cardinality, base_"),
        ("nin", {"num_clases": 2}, "nin has no argument 'num_clases'; did you mean 'num_classes'"),
        ("nin_root8", {"root": 5}, "root must be one of 1, 2, 4, 8, 16, 32, got 5"),
    ],
)
def test_it_refuses(name: str, arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **arguments)
    with pytest.raises(ValueError, match=message):
        Named(name, **arguments)


# --- as configurations write it


def parsed(*arguments: str) -> Any:
    """The factory of networks that a command line asks for, by way of the configuration that would be saved."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--net", type=Callable[[], nn.Module])
    saved = parser.dump(parser.parse_args(arguments))
    return parser.instantiate(parser.parse_string(saved)).net


def test_named_takes_the_arguments_that_networks_have() -> None:
    every = {argument for entry in ENTRIES.values() for argument in entry.arguments}
    assert set(Arguments.__annotations__) == every
    assert list(inspect.signature(Named).parameters) == ["name", *Arguments.__annotations__]


def test_a_configuration_makes_the_network_again_and_again() -> None:
    factory = parsed(
        *("--net", "lanes.models.Named", "--net.name", "resnext11_8x4d_cifar"),
        *("--net.num_classes", "5", "--net.cardinality", "4"),
    )
    first, second = factory(), factory()
    assert type(first).__name__ == "CifarResNeXt"
    assert first is not second
    assert (first.fc.out_features, first.layer1[0].conv2.groups) == (5, 4)


@pytest.mark.parametrize(
    ("arguments", "there"),
    [
        (("alexnet", "--net.cross", "[conv3]"), lambda net: net.conv3.groups == 1 and type(net.fc6) is not nn.Linear),
        (("nin", "--net.groups", "{conv2a: 4}"), lambda net: net.conv2a.groups == 4),
        (("signal_net", "--net.groups", "8"), lambda net: net.conv2.groups == 8),
        (("shufflenet_v1_g4_cifar", "--net.shuffle", "false"), lambda net: "ChannelShuffle" not in str(net)),
        (("resnet50", "--net.base_width", "32.5"), lambda net: net.layer1[0].conv2.out_channels == 32),
    ],
)
def test_arguments_arrive_with_their_types(arguments: tuple[str, ...], there: Callable[[nn.Module], bool]) -> None:
    with torch.device("meta"):
        net = parsed("--net", "lanes.models.Named", "--net.name", *arguments)()
    assert there(net)


def test_named_is_what_it_builds() -> None:
    torch.manual_seed(0)
    named = Named("signal_net", groups=2)
    torch.manual_seed(0)
    built = build("signal_net", groups=2)
    assert type(named) is type(built)
    torch.testing.assert_close(named.state_dict(), built.state_dict(), rtol=0, atol=0)
    with torch.device("meta"):
        assert isinstance(Named("resnet50"), ResNet)


def test_a_name_that_others_begin_with_lists_them() -> None:
    with pytest.raises(ValueError, match=r"no network 'ResNeXt101'; there are resnext101_32x4d .lanes models"):
        build("ResNeXt101")
    with pytest.raises(ValueError, match="no network 'resnext50'; there are resnext50_1x64d, resnext50_2x40d, "):
        build("resnext50")
    with pytest.raises(ValueError, match="no network 'alexnett'; did you mean 'alexnet'"):
        build("alexnett")
