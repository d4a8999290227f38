"""The grouping report: published totals of AlexNet, every kind of layer against a dense one really built."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import lanes
from lanes.models import AlexNet, GroupedLinear, SmallAlexNet

# layer: constructor of it in g groups, and an input
LAYERS: dict[str, tuple[Callable[[int], nn.Module], Tensor]] = {
    "Conv1d": (lambda g: nn.Conv1d(12, 24, 5, stride=2, groups=g), torch.randn(2, 12, 17)),
    "Conv2d": (lambda g: nn.Conv2d(12, 24, (3, 2), dilation=2, groups=g), torch.randn(2, 12, 9, 8)),
    "Conv2d without bias": (lambda g: nn.Conv2d(12, 24, 3, groups=g, bias=False), torch.randn(2, 12, 9, 8)),
    "Conv3d": (lambda g: nn.Conv3d(12, 24, 3, groups=g), torch.randn(2, 12, 5, 6, 4)),
    "ConvTranspose1d": (lambda g: nn.ConvTranspose1d(12, 24, 3, stride=2, groups=g), torch.randn(2, 12, 7)),
    "ConvTranspose2d": (lambda g: nn.ConvTranspose2d(12, 24, 3, stride=2, groups=g), torch.randn(2, 12, 5, 4)),
    "ConvTranspose3d": (lambda g: nn.ConvTranspose3d(12, 24, 2, groups=g), torch.randn(2, 12, 3, 4, 2)),
    "GroupedLinear": (lambda g: GroupedLinear(12, 24, g), torch.randn(2, 12)),
}


def multiply_adds(layer: nn.Module, x: Tensor) -> int:
    """Counted by running: with ones everywhere and no bias, every multiply-add adds one to the sum of the output."""
    layer = copy.deepcopy(layer).double()
    nn.init.ones_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return int(layer(torch.ones(1, *x.shape[1:], dtype=torch.float64)).sum().item())


@pytest.mark.parametrize("groups", [2, 3, 4, 12])
@pytest.mark.parametrize("kind", LAYERS)
def test_a_grouped_layer_saves_exactly_its_groups(kind: str, groups: int) -> None:
    build, x = LAYERS[kind]
    grouped, dense = build(groups), build(1)
    found = lanes.grouping_report(nn.Sequential(grouped), x).layers["0"]
    assert found.groups == groups
    assert found.parameters == sum(p.numel() for p in grouped.parameters())
    assert found.dense_parameters == sum(p.numel() for p in dense.parameters())
    assert found.multiply_adds == multiply_adds(grouped, x)
    assert found.dense_multiply_adds == multiply_adds(dense, x)
    assert found.dense_multiply_adds == groups * found.multiply_adds
    assert found.dense_parameters - found.biases == groups * found.weights


def test_alexnet_as_published() -> None:
    """Two groups and one; 724 and 1135 million multiply-adds are those of all eight layers, biases not counted."""
    with torch.device("meta"):
        report, dense = lanes.grouping_report(AlexNet()), lanes.grouping_report(AlexNet(lanes=1))
    assert (report.parameters, report.dense_parameters) == (60_965_224, 62_378_344)
    assert round(report.multiply_adds / 1e6) == 724
    assert round(report.dense_multiply_adds / 1e6) == 1135
    assert (dense.parameters, dense.multiply_adds) == (report.dense_parameters, report.dense_multiply_adds)
    assert {name for name, layer in report.layers.items() if layer.groups == 2} == {"conv2", "conv4", "conv5"}


def test_prints_a_table() -> None:
    net = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(72, 10))
    assert (
        str(lanes.grouping_report(net, torch.zeros(2, 4, 5, 5)))
        == """\
multiply-adds are per image of 4 x 5 x 5, biases not counted
layer     type    groups  parameters  if dense  multiply-adds  if dense  saved
------------------------------------------------------------------------------
0         Conv2d       4          80       296            648     2,592    4 x
3         Linear       1         730       730            720       720      -
(others)                          16        16              -         -      -
------------------------------------------------------------------------------
total                            826     1,042          1,368     3,312
grouping saves 20.7 % of the parameters and 58.7 % of the multiply-adds"""
    )


def test_without_an_example_multiply_adds_are_not_counted() -> None:
    report = lanes.grouping_report(nn.Sequential(nn.Conv2d(4, 8, 3, groups=4)))
    assert report.image_shape is report.multiply_adds is report.dense_multiply_adds is None
    assert report.layers["0"].multiply_adds is report.layers["0"].dense_multiply_adds is None
    title, _, _, row, *_, last = str(report).splitlines()
    assert title == "multiply-adds are not counted: give an example, a batch of images"
    assert row.split() == ["0", "Conv2d", "4", "80", "296", "-", "-", "4", "x"]
    assert last == "grouping saves 73.0 % of the parameters"


class Hungry(nn.Module):
    """Draws, keeps statistics and counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, groups=2)
        self.norm = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.conv(x))) + torch.rand(1)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_leaves_the_model_and_the_random_stream_as_they_were(device: str) -> None:
    net = Hungry().to(device)
    net.norm.eval()
    hooks = [net.conv._forward_hooks.copy(), net.conv._forward_pre_hooks.copy()]
    before, stream = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    report = lanes.grouping_report(net, torch.randn(2, 4, 6, 6, generator=torch.Generator().manual_seed(0)))
    assert report.layers["conv"].multiply_adds == 8 * 2 * 9 * 16
    assert torch.equal(torch.get_rng_state(), stream)
    assert [module.training for module in (net, net.conv, net.norm, net.drop)] == [True, True, False, True]
    assert [net.conv._forward_hooks, net.conv._forward_pre_hooks] == hooks
    assert {name: p.device.type for name, p in net.state_dict().items()} == dict.fromkeys(before, device)
    if device == "cpu":
        torch.testing.assert_close(net.state_dict(), before, rtol=0, atol=0)


def test_leaves_the_model_as_it_was_when_the_forward_fails() -> None:
    net = Hungry()
    with pytest.raises(ValueError, match=r"the model's forward fails on an example of \[2, 3, 6, 6\]: .*channel"):
        lanes.grouping_report(net, torch.zeros(2, 3, 6, 6))
    assert net.training
    assert not net.conv._forward_hooks


def test_a_layer_that_runs_twice_works_twice_and_one_that_never_runs_not_at_all() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=2)
            self.spare = nn.Conv2d(8, 8, 3, groups=2)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    report = lanes.grouping_report(Twice(), torch.zeros(3, 8, 5, 5))
    assert report.layers["conv"].multiply_adds == 2 * 8 * 4 * 9 * 25
    assert report.layers["spare"].multiply_adds == 0
    assert report.parameters == 2 * (8 * 4 * 9 + 8)


def test_parameters_are_counted_once() -> None:
    tied = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    tied[1].weight = tied[0].weight
    assert lanes.grouping_report(tied).parameters == sum(p.numel() for p in tied.parameters()) == 36 + 12
    normed = nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 6)))
    assert lanes.grouping_report(normed, torch.zeros(1, 6)).parameters == 36 + 6


def test_a_linear_layer_over_places_works_at_each() -> None:
    found = lanes.grouping_report(nn.Sequential(nn.Linear(6, 10)), torch.zeros(4, 7, 6)).layers["0"]
    assert (found.groups, found.multiply_adds) == (1, 7 * 60)


def test_models_that_say_what_they_read_need_no_example() -> None:
    net = SmallAlexNet(lanes=4, image_size=32, in_channels=1).double()
    report = lanes.grouping_report(net)
    assert report.image_shape == (1, 32, 32)
    assert report == lanes.grouping_report(net, torch.zeros(5, 1, 32, 32, dtype=torch.float64))


@pytest.mark.parametrize("example", [torch.zeros(3), torch.zeros(0, 3, 8, 8), [1]])
def test_refuses_what_is_no_batch(example) -> None:
    with pytest.raises(ValueError, match=r"example must be a batch of images \[N, C, ...\], got"):
        lanes.grouping_report(nn.Conv2d(3, 4, 3), example)


def test_refuses_placed_models() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net[0].weight.device_mesh = "as a DTensor has"
    with pytest.raises(ValueError, match="placed already"):
        lanes.grouping_report(net)
