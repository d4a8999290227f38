"""Network in Network: the sizes of the paper's and the thesis' tables, and what they leave open."""

import math

import pytest
import torch
from torch import nn

from lanes.grouping import grouping_report
from lanes.models import NetworkInNetwork
from tests.building import check_deferred_building, loss_after, on_meta

# rootdata/nincifar{,_root_s,_tree_s,_col_s}.csv of github.com/yanii/phd-thesis: groups of conv2a and conv3a, multiply-
# adds (with one for each of the 1,418 biases), parameters.
PUBLISHED = {
    "original": (1, 1, 222_487_946, 966_986),
    "root-2": (2, 1, 163_505_546, 736_586),
    "root-4": (4, 2, 123_397_514, 455_498),
    "root-8": (8, 4, 103_343_498, 314_954),
    "root-16": (16, 8, 93_316_490, 244_682),
    "tree-2": (2, 4, 147_580_298, 487_754),
    "tree-4": (4, 8, 115_434_890, 331_082),
    "tree-8": (8, 16, 99_362_186, 252_746),
    "tree-16": (16, 32, 91_325_834, 213_578),
    "column-2": (2, 2, 152_888_714, 570_698),
    "column-4": (4, 4, 118_089_098, 372_554),
    "column-8": (8, 8, 100_689_290, 273_482),
    "column-16": (16, 16, 91_989_386, 223_946),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_sizes_are_those_of_the_thesis(name: str) -> None:
    conv2a, conv3a, multiply_adds, parameters = PUBLISHED[name]
    by_layer = {"groups": {"conv2a": conv2a, "conv3a": conv3a}}
    report = grouping_report(on_meta(NetworkInNetwork, **({"root": conv2a} if name.startswith("root") else by_layer)))
    biases = sum(layer.biases for layer in report.layers.values())
    assert biases == 1_418
    assert (report.multiply_adds + biases, report.parameters) == (multiply_adds, parameters)


def test_root_8_has_the_published_shares() -> None:
    original, root8 = grouping_report(on_meta(NetworkInNetwork)), grouping_report(on_meta(NetworkInNetwork, root=8))
    assert round(100 * root8.parameters / original.parameters, 1) == 32.6
    assert round(100 * root8.multiply_adds / original.multiply_adds, 1) == 46.4
    assert {name: layer.groups for name, layer in root8.layers.items() if layer.groups > 1} == {
        "conv2a": 8,
        "conv3a": 4,
    }
    assert root8.dense_parameters == original.parameters


def test_maps_have_32_16_and_8_pixels() -> None:
    net, sides = on_meta(NetworkInNetwork), {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda layer, args, y, name=name: sides.update({name: y.shape[-1]}))
    assert net(torch.empty(2, *net.image_shape, device="meta")).shape == (2, 10)
    assert {sides[f"conv1{step}"] for step in "abc"} == {32}
    assert {sides[f"conv2{step}"] for step in "abc"} == {16}
    assert {sides[f"conv3{step}"] for step in "abc"} == {8}
    assert sides["pool3"] == 1


def test_pools_reach_over_the_edge_without_counting_what_is_not_there() -> None:
    net = on_meta(NetworkInNetwork)
    assert isinstance(net.pool1, nn.MaxPool2d)
    assert isinstance(net.pool2, nn.AvgPool2d)
    ones = torch.ones(1, 1, 16, 16)
    assert torch.equal(net.pool1(-ones), -torch.ones(1, 1, 8, 8))
    assert torch.equal(net.pool2(ones), torch.ones(1, 1, 8, 8))


def test_a_relu_follows_every_convolution() -> None:
    kinds = [type(layer) for layer in on_meta(NetworkInNetwork).children()]
    assert kinds.count(nn.Conv2d) == 9
    assert all(kinds[i + 1] is nn.ReLU for i, kind in enumerate(kinds) if kind is nn.Conv2d)


def test_batch_norm_stands_behind_every_convolution_but_the_last() -> None:
    names = [name for name, _ in on_meta(NetworkInNetwork, batch_norm=True).named_children()]
    norms = [name for name in names if name.startswith("norm")]
    assert norms == [f"norm{stage}{step}" for stage in "123" for step in "abc"][:-1]
    assert all(names[names.index(norm) - 1] == norm.replace("norm", "conv") for norm in norms)
    assert grouping_report(on_meta(NetworkInNetwork, batch_norm=True)).other_parameters == 2 * 1_408


def test_weights_start_by_the_inputs_of_their_group() -> None:
    torch.manual_seed(0)
    net = NetworkInNetwork(root=8, batch_norm=True)
    for name, inputs in (("conv1a", 75), ("conv2a", 12 * 25), ("conv2b", 192), ("conv3a", 48 * 9), ("conv3b", 192)):
        layer = net.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(math.sqrt(2 / inputs), rel=0.03), name
        assert not layer.bias.any()
    assert bool((net.norm2a.weight == 1).all())


def test_meta_then_init_layer_equals_building_at_once() -> None:
    check_deferred_building(NetworkInNetwork, root=8, width=0.25, batch_norm=True)


@pytest.mark.parametrize("batch_norm", [False, True])
def test_it_learns(batch_norm: bool) -> None:
    torch.manual_seed(0)
    net = NetworkInNetwork(num_classes=4, root=4, width=0.125, batch_norm=batch_norm, dropout=0.0)
    assert loss_after(net, torch.optim.Adam(net.parameters(), lr=3e-3), steps=60) < 0.4


def test_arguments_of_data() -> None:
    net = on_meta(NetworkInNetwork, num_classes=7, in_channels=1, dropout=0.25, width=0.5)
    assert net.image_shape == (1, 32, 32)
    assert net(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, 7)
    assert [layer.p for layer in net.modules() if isinstance(layer, nn.Dropout)] == [0.25, 0.25]
    assert [net.get_submodule(f"conv{place}").out_channels for place in ("1a", "1b", "1c", "3b")] == [96, 80, 48, 96]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"root": 3}, "root must be one of 1, 2, 4, 8, 16, 32, got 3"),
        ({"root": 16, "width": 0.25}, r"conv2a: 24 -> 48 channels do not divide over 16 groups; use one of \[1, 2, 3,"),
        ({"groups": {"conv2d": 2}}, r"groups: no layer 'conv2d'; did you mean 'conv2\w'\? \(there are conv1a, conv1b"),
        ({"groups": {"image": 3}}, "groups: no layer 'image'"),
        ({"groups": {"conv1a": 3, "conv3c": 5}}, r"conv3c: 192 -> 10 channels .* 5 groups; use one of \[1, 2\]"),
        ({"groups": {"conv3a": 0}}, "conv3a: .* do not divide over 0 groups"),
        ({"width": 0.3}, r"conv1a: width 0.3 of 192 channels is .*use a multiple of 1/32"),
        ({"width": 0.0}, "width must be a positive number, got 0.0"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, got 0"),
        ({"dropout": 1.5}, "dropout probability"),
    ],
)
def test_it_refuses_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(NetworkInNetwork, **arguments)
