"""``lanes.check``: passes where the placed network is the plain one, else names layer and lane device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lanes
from lanes.checking import CheckReport, from_everyone
from lanes.mesh import DATA_AXIS, LANE_AXIS, DeviceMesh, axis
from lanes.models import MapResponseNorm
from tests import networks
from tests.crossing_networks import NETWORKS
from tests.ranks import Ranks

Alter = Callable[[nn.Module, int, int], None]  # (placed network, replica, lane device)


def placing(net: nn.Module, mesh: DeviceMesh, *, example: Tensor, alter: Alter, sync: bool) -> lanes.Plan:
    plan = lanes.plan(net, example, lane_devices=axis(mesh, LANE_AXIS).size)
    lanes.place(net, plan, mesh, sync_batch_norm=sync)
    with torch.no_grad():
        alter(net, axis(mesh, DATA_AXIS).index, axis(mesh, LANE_AXIS).index)
    return plan


def as_it_is(net: nn.Module, replica: int, lane_device: int) -> None:
    pass


def random_flip(images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(torch.rand(len(images), 1, 1, 1) < 0.5, images.flip(-1), images), labels


def checked(
    build: Callable[[], nn.Module], lane_devices: int, alter: Alter = as_it_is, size: int = 16, sync: bool = False
) -> CheckReport:
    generator = torch.Generator().manual_seed(3)
    images, labels = torch.randn(8, 3, size, size, generator=generator), torch.randint(0, 10, (8,), generator=generator)
    mesh = lanes.init_mesh(lane_devices)
    how = partial(placing, example=images[:2].double(), alter=alter, sync=sync)
    before = torch.get_rng_state()
    report = lanes.check(build, images, labels, mesh, prepare=random_flip, placing=how)
    assert torch.equal(torch.get_rng_state(), before), "a check leaves the random stream alone"
    return report


@pytest.mark.parametrize("mesh", ["1x1", "1x2", "2x1", "2x2"])
def test_passes(ranks: Ranks, mesh: str) -> None:
    replicas, lane_devices = map(int, mesh.split("x"))
    reports = ranks(checked, replicas * lane_devices, networks.mixed_2d, lane_devices)
    for report in reports:  # all processes know the same
        assert report.passed, str(report)
        assert (report.replicas, report.lane_devices) == (replicas, lane_devices)
        assert str(report) == str(reports[0])
    wanted = {"weights before", "outputs", "output gradients", "gradients", "parameters", "statistics"}
    assert set(report.groups) == wanted
    assert "PASSED" in str(report)
    assert all(0 < report.noise(group) < 1e-12 for group in wanted - {"weights before"})
    names = {finding.name for finding in report.groups["gradients"]}
    assert names == {name for name, _ in networks.mixed_2d().named_parameters()}


@pytest.mark.parametrize("net", NETWORKS)
def test_passes_on_the_crossings_of_deep_networks(ranks: Ranks, net: str) -> None:
    report = ranks(checked, 4, NETWORKS[net], 4)[0]
    assert report.passed, str(report)


class Joining(nn.Module):
    """Joins its input and what it makes of it: a module that is no layer, whose result is not in the plain order."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, -torch.relu(x), torch.tanh(x)], 1)


def densely_connected() -> nn.Module:
    """As in DenseNet: the joined channels are normalised and read by the next layer."""
    head = (
        nn.BatchNorm2d(24),
        nn.ReLU(),
        nn.Conv2d(24, 8, 1),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, 10),
    )
    return nn.Sequential(nn.Conv2d(3, 8, 3), Joining(), *head)


@pytest.mark.parametrize("lane_devices", [2, 4])
def test_a_module_whose_channels_are_not_in_order(ranks: Ranks, lane_devices: int) -> None:
    report = ranks(checked, lane_devices, densely_connected, lane_devices)[0]
    assert report.passed, str(report)
    assert "1" in {finding.name for finding in report.groups["outputs"]}


def with_a_module_of_operations() -> nn.Module:
    """``norm`` is no layer that the planner knows, but made of operations that it does."""
    net = nn.Sequential()
    net.conv1 = nn.Conv2d(3, 8, 3)
    net.norm = MapResponseNorm(3)
    net.conv2 = nn.Conv2d(8, 8, 3, groups=2)
    net.pool = nn.AdaptiveAvgPool2d(1)
    net.flatten = nn.Flatten()
    net.head = nn.Linear(8, 10)
    return net


def test_a_module_that_the_plan_passes_through(ranks: Ranks) -> None:
    report = ranks(checked, 2, with_a_module_of_operations, 2)[0]
    assert report.passed, str(report)
    assert "norm" in [finding.name for finding in report.groups["outputs"]]


def test_synchronised_batch_norm(ranks: Ranks) -> None:
    report = ranks(checked, 4, networks.normed, 2, as_it_is, 16, True)[0]
    assert report.passed, str(report)


def altered_weight(net: Any, replica: int, lane_device: int) -> None:
    if lane_device == 1 and replica == net.fault_of_replica:
        net.get_submodule(net.fault_in).weight.to_local().view(-1)[3] += 1e-6


def faulty(name: str, replica: int = 0) -> nn.Module:
    net: Any = networks.mixed_2d()
    net.fault_in, net.fault_of_replica = name, replica
    return net


@pytest.mark.parametrize("layer", ["conv2", "fc7", "head"])  # split by outputs, gathered, split by inputs
def test_an_altered_weight_is_named(ranks: Ranks, layer: str) -> None:
    report = ranks(checked, 2, partial(faulty, layer), 2, altered_weight)[0]
    assert not report.passed
    assert f"FAILED: {layer}.weight: weights before differ by" in str(report)
    assert str(report).endswith("on lane device 1")


def test_the_replica_is_named_too(ranks: Ranks) -> None:
    report = ranks(checked, 4, partial(faulty, "conv2", 1), 2, altered_weight)[0]
    assert str(report).endswith("on lane device 1 of replica 1")


class _TooSteep(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0] * (1 + 1e-6)


def wrong_backward(net: Any, replica: int, lane_device: int) -> None:
    """The forward of conv2 is right on every lane device, its backward is off on one."""
    conv = net.conv2._conv_forward
    if lane_device == 1:
        net.conv2._conv_forward = lambda x, weight, bias: conv(_TooSteep.apply(x), weight, bias)


def wrong_weight_gradient(net: Any, replica: int, lane_device: int) -> None:
    conv = net.conv2._conv_forward
    if lane_device == 1:
        net.conv2._conv_forward = lambda x, weight, bias: conv(x, _TooSteep.apply(weight), bias)


def test_a_wrong_backward_is_named(ranks: Ranks) -> None:
    report = ranks(checked, 2, networks.mixed_2d, 2, wrong_backward)[0]
    assert report.error("outputs") <= report.bound("outputs")
    assert "FAILED: pool: output gradients differ by" in str(report)
    assert str(report).endswith("on lane device 1, between conv2 and pool on the way back")


def test_a_wrong_weight_gradient_is_named(ranks: Ranks) -> None:
    report = ranks(checked, 2, networks.mixed_2d, 2, wrong_weight_gradient)[0]
    assert "FAILED: conv2.weight: gradients differ by" in str(report)
    assert str(report).endswith("on lane device 1")


def test_a_number_that_is_none(ranks: Ranks) -> None:
    report = ranks(checked, 2, networks.mixed_2d, 2, spoil)[0]
    assert "conv1.weight: weights before differ by inf on lane device 0 and lane device 1" in str(report)


def spoil(net: Any, replica: int, lane_device: int) -> None:
    net.conv1.weight.to_local()[0] = torch.nan


class Overflows(nn.Module):
    """Its outputs are not finite, in float64 neither."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4 * 14 * 14, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.conv(images).flatten(1) * 1e308 * 1e10)


def test_a_plain_model_that_is_not_finite_does_not_pass(ranks: Ranks) -> None:
    """Its noise is no excuse: the placed model's numbers were compared with nothing."""
    report = ranks(checked, 1, Overflows, 1)[0]
    assert not report.passed
    assert "FAILED: head: outputs of the plain model itself differ by inf" in str(report)


def refused(images: int, build: Callable[[], nn.Module], sync: bool) -> None:
    example = torch.randn(images, 3, 16, 16)
    how = partial(placing, example=example[:2].double(), alter=as_it_is, sync=sync)
    lanes.check(build, example, torch.zeros(images, dtype=torch.int64), lanes.init_mesh(1), placing=how)


@pytest.mark.parametrize(
    ("images", "build", "sync", "said"),
    [
        (3, networks.mixed_2d, False, "3 images do not divide over 2 replicas"),
        (4, networks.mixed_2d, True, "synchronised batch norm and dropout"),
    ],
)
def test_refusals(ranks: Ranks, images: int, build: Callable[[], nn.Module], sync: bool, said: str) -> None:
    with pytest.raises(AssertionError, match=said):
        ranks(refused, 2, images, build, sync)


def everyones() -> Tensor:
    mesh = lanes.init_mesh(2)
    return from_everyone(torch.tensor([float(torch.distributed.get_rank()), torch.inf]), mesh)


def test_from_everyone(ranks: Ranks) -> None:
    for found in ranks(everyones, 4):
        assert found[..., 0].tolist() == [[0, 1], [2, 3]]
        assert found[..., 1].isinf().all()
