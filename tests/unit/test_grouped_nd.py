"""Networks in one and three dimensions: their groups are those of Keras, their sizes and what they refuse."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lanes.grouping import grouping_report
from lanes.models import SignalNet, VolumeNet
from lanes.planning import lane_devices_of
from tests.building import check_deferred_building, loss_after, on_meta

BOTH = pytest.mark.parametrize("model", [SignalNet, VolumeNet])
SMALL = {SignalNet: {"length": 16, "channels": 8}, VolumeNet: {"size": 8, "channels": 8}}


@pytest.mark.parametrize(
    ("model", "image_shape", "parameters", "multiply_adds"),
    [(SignalNet, (1, 256), 24_106, 1_697_024), (VolumeNet, (1, 28, 28, 28), 19_674, 24_060_032)],
)
def test_sizes(model: type[nn.Module], image_shape: tuple[int, ...], parameters: int, multiply_adds: int) -> None:
    net = on_meta(model)
    report = grouping_report(net)
    assert net.image_shape == report.image_shape == image_shape
    assert (report.parameters, report.multiply_adds) == (parameters, multiply_adds)
    assert net(torch.empty(2, *image_shape, device="meta")).shape == (2, 10)


@BOTH
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_a_group_reads_its_own_channels(model: type[nn.Module], groups: int) -> None:
    """Keras: the input is split along its channels, each group is convolved with its filters, outputs are joined."""
    net = model(groups=groups, **SMALL[model]).double()
    rank = len(net.image_shape) - 1
    conv: Any = {1: F.conv1d, 3: F.conv3d}[rank]
    for layer in (net.conv2, net.conv4):
        x = torch.randn(2, layer.in_channels, *[6] * rank, dtype=torch.float64)
        weights = layer.weight.chunk(groups)
        parts = [conv(part, w, padding=layer.padding) for part, w in zip(x.chunk(groups, 1), weights, strict=True)]
        assert layer.groups == groups
        torch.testing.assert_close(layer(x), torch.cat(parts, 1), rtol=1e-12, atol=1e-12)
    assert (net.conv1.groups, net.conv3.groups) == (1, 1)


@BOTH
def test_groups_divide_weights_and_work(model: type[nn.Module]) -> None:
    dense = grouping_report(on_meta(model, groups=1))
    for groups in (2, 4, 8):
        report = grouping_report(on_meta(model, groups=groups))
        assert (report.dense_parameters, report.dense_multiply_adds) == (dense.parameters, dense.multiply_adds)
        for name in ("conv2", "conv4"):
            assert report.layers[name].weights * groups == dense.layers[name].weights


@BOTH
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_lanes_divide_over_their_groups(model: type[nn.Module], groups: int) -> None:
    net = on_meta(model, groups=groups)
    found = lane_devices_of(net, torch.empty(2, *net.image_shape, device="meta"), most=8)
    assert found == [d for d in (1, 2, 4, 8) if groups == 1 or groups % d == 0]


@BOTH
def test_it_learns(model: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = model(num_classes=4, **SMALL[model])
    assert loss_after(net, torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9), steps=40) < 0.2


@BOTH
def test_meta_then_init_layer_equals_building_at_once(model: type[nn.Module]) -> None:
    check_deferred_building(model, **SMALL[model])


def test_arguments_of_data() -> None:
    signal = on_meta(SignalNet, num_classes=5, in_channels=12, length=1000, channels=16)
    assert signal.image_shape == (12, 1000)
    assert signal(torch.empty(2, 12, 1000, device="meta")).shape == (2, 5)
    volume = on_meta(VolumeNet, num_classes=11, in_channels=2, size=16, groups=8)
    assert volume.image_shape == (2, 16, 16, 16)
    assert volume(torch.empty(2, 2, 16, 16, 16, device="meta")).shape == (2, 11)


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"groups": 3, "channels": 16}, r"conv2: 16 channels do not divide over 3 groups; use one of \[1, 2, 4, 8, 16"),
        ({"groups": 0}, "groups must be a whole number of at least 1, got 0"),
        ({"channels": 8.5}, "channels must be a whole number of at least 1, got 8.5"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, got 0"),
    ],
)
def test_it_refuses_bad_arguments(model: type[nn.Module], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(model, **arguments)


def test_it_refuses_what_two_pools_would_use_up() -> None:
    with pytest.raises(ValueError, match="length must be at least 4, which two pools halve to 1, got 3"):
        SignalNet(length=3)
    with pytest.raises(ValueError, match="size must be at least 4"):
        VolumeNet(size=3)
