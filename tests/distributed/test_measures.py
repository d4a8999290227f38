"""Measures of filters and responses do not depend on the layout, and send nothing but their results."""

import math

import pytest
import torch
from torch import Tensor, nn

import lanes
from lanes.analysis.gratings import Gratings, OrientationSelectivity
from lanes.analysis.recording import recorded, whole_layer
from lanes.analysis.responses import ClassSelectivity, ColourSelectivity, turned_grey
from lanes.analysis.selectivity import FilterMeasures, filter_measures
from lanes.layers import local
from lanes.mesh import DATA_AXIS, LANE_AXIS, Axis, axis
from lanes.ordering import PLAIN
from lanes.plans import Plan
from tests.ranks import Ranks

LANES, SIDE, IMAGES, BATCH = 4, 28, 16, 4
GRATINGS = Gratings((SIDE, SIDE), orientations=6, frequencies=(1 / 8, 1 / 4), phases=2)
Found = dict[str, Tensor]


class Shuffled(nn.Module):
    """Its shuffle is owed: its channels lie in another order than the plain model's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 24, 5, padding=2)
        self.shuffle = nn.ChannelShuffle(3)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(24, 8, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.shuffle(self.conv1(x)))
        y: Tensor = self.head(self.flatten(self.pool(self.conv2(x))))
        return y


def build(kind: str) -> nn.Module:
    torch.manual_seed(0)
    net: nn.Module = lanes.models.SmallAlexNet(lanes=LANES, image_size=SIDE) if kind == "alexnet" else Shuffled()
    return net.double()


def photos() -> tuple[Tensor, Tensor]:
    images = torch.rand(IMAGES, 3, SIDE, SIDE, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return images - 0.5, torch.arange(IMAGES) % 10


class Measures:
    """All measures of all layers."""

    def __init__(self, data: Axis | None) -> None:
        self.data = data
        self.colour: dict[str, ColourSelectivity] = {}
        self.classes: dict[str, ClassSelectivity] = {}
        self.orientation: dict[str, OrientationSelectivity] = {}

    def run(self, net: nn.Module, layers: list[str]) -> None:
        images, labels = photos()
        index, size = (0, 1) if self.data is None else (self.data.index, self.data.size)
        net.eval()
        with torch.no_grad(), recorded(net, layers) as made:
            for x, y in zip(images[index::size].split(BATCH), labels[index::size].split(BATCH), strict=True):
                net(x)
                seen = dict(made)
                net(turned_grey(x))
                for name in layers:
                    own = seen[name].shape[1]
                    # Fewer images than there are: which count is asked of all replicas together.
                    self.colour.setdefault(name, ColourSelectivity(own, num_images=5, data=self.data))
                    self.colour[name].update(seen[name], made[name])
                    self.classes.setdefault(name, ClassSelectivity(own, num_classes=10, data=self.data))
                    self.classes[name].update(seen[name], y)
            for number, (x, orientation) in enumerate(GRATINGS.batches(6)):
                if number % size == index:  # replicas show the network some of them each
                    net(x.double())
                    for name in layers:
                        measure = OrientationSelectivity(made[name].shape[1], orientations=6, data=self.data)
                        self.orientation.setdefault(name, measure).update(made[name], orientation)

    def found(self) -> Found:
        found = {f"{name}/colour": measure.compute() for name, measure in self.colour.items()}
        found |= {f"{name}/classes": measure.compute() for name, measure in self.classes.items()}
        for name, measure in self.orientation.items():
            found[f"{name}/orientation"], found[f"{name}/degrees"] = measure.compute()
        return found


def of_filters(measures: FilterMeasures) -> Found:
    return {f"filters/{name}": values for name, values in vars(measures).items()} | {"filters/dead": measures.dead()}


def placed(kind: str, lane_devices: int) -> tuple[Found, dict[str, int]]:
    """What is measured, and the bytes sent to other lane devices while measuring and while gathering the results."""
    mesh = lanes.init_mesh(lane_devices)
    lane, data = axis(mesh, LANE_AXIS), axis(mesh, DATA_AXIS)
    net = build(kind)
    plan: Plan = lanes.plan(net, photos()[0][:2].requires_grad_(), lane_devices=lane_devices)
    lanes.place(net, plan, mesh)
    if kind == "shuffled":
        assert plan.output_order("relu1") != PLAIN
    layers = list(plan.layers)
    measures = Measures(data)
    measures.run(net, layers)
    weight = net.get_submodule("conv1").weight
    own = filter_measures(weight)
    assert len(own.norm) == len(local(weight)) == len(weight) // lane_devices
    found = measures.found()
    with lanes.Traffic(lane) as gathering:
        whole = {key: whole_layer(values, key.split("/")[0], plan, lane) for key, values in found.items()}
        whole |= of_filters(own.gathered(lane))
    return whole, dict(gathering.sent_bytes)


def plain(kind: str) -> Found:
    net = build(kind)
    measures = Measures(None)
    layers = list(lanes.plan(net, photos()[0][:2].requires_grad_(), lane_devices=1).layers)
    measures.run(net, layers)
    return measures.found() | of_filters(filter_measures(net.get_submodule("conv1").weight))


def check_alike(ours: Found, theirs: Found) -> float:
    """Returns the largest difference, but for preferred orientations."""
    assert ours.keys() == theirs.keys()
    worst = 0.0
    for key, expected in theirs.items():
        assert ours[key].shape == expected.shape, key
        assert torch.equal(ours[key].isnan(), expected.isnan()), key
        difference = (ours[key].double() - expected.double())[~expected.isnan()]
        if "degrees" in key:  # of a channel that prefers little, rounding turns what it prefers
            assert (((difference + 90) % 180 - 90).abs() < 1e-8).all(), key
        elif len(difference):
            worst = max(worst, difference.abs().max().item())
    return worst


_plain: dict[str, Found] = {}


@pytest.mark.parametrize(
    ("kind", "world", "lane_devices"),
    [
        ("alexnet", 1, 1),
        ("alexnet", 2, 2),
        ("alexnet", 4, 4),
        ("alexnet", 2, 1),
        ("alexnet", 4, 2),
        ("shuffled", 2, 2),
        ("shuffled", 4, 4),
    ],
)
def test_as_the_plain_model(ranks: Ranks, measured, kind: str, world: int, lane_devices: int) -> None:
    expected = _plain.setdefault(kind, plain(kind))
    informative = [key for key, values in expected.items() if values.double().nan_to_num().std() > 0.01]
    assert {"conv1/colour", "conv2/orientation", "conv2/degrees", "conv2/classes"} <= set(informative)
    answers = ranks(placed, world, kind, lane_devices, timeout_s=240)
    worst = max(check_alike(found, expected) for found, _ in answers)
    assert worst < 1e-12
    measured(f"measures of {kind} on {world // lane_devices} x {lane_devices}: largest difference {worst:.1e}")
    results = sum(values.numel() for values in expected.values())
    for _, sent in answers:  # a few numbers per channel, and nothing else
        assert sum(sent.values()) <= results * 8 * (lane_devices - 1) / lane_devices
        assert (sum(sent.values()) > 0) == (lane_devices > 1)


def without_exchange(lane_devices: int) -> tuple[int, bool]:
    """Bytes that measures send between lane devices, beside those that the network sends."""
    mesh = lanes.init_mesh(lane_devices)
    lane, data = axis(mesh, LANE_AXIS), axis(mesh, DATA_AXIS)
    maps, labels = torch.rand(8, 6, 3, 3) + lane.index, torch.arange(8)
    with lanes.Traffic(lane) as traffic:
        colour = ColourSelectivity(6, data=data)
        colour.update(maps, maps / 2)
        classes = ClassSelectivity(6, num_classes=8, data=data)
        classes.update(maps, labels)
        orientation = OrientationSelectivity(6, orientations=8, data=data)
        orientation.update(maps, labels)
        exact = bool((colour.compute() == 0.5).all() and classes.compute().isfinite().all())
        exact = exact and orientation.compute().selectivity.max() < 1
    return traffic.calls.total(), exact


def test_measuring_sends_nothing_between_lane_devices(ranks: Ranks) -> None:
    assert ranks(without_exchange, 4, 4) == [(0, True)] * 4


def one_channel_each(lane_devices: int) -> list[float]:
    """torchmetrics makes a number of one channel."""
    mesh = lanes.init_mesh(lane_devices)
    lane = axis(mesh, LANE_AXIS)
    net = nn.Sequential(nn.Conv2d(3, lane_devices, 3), nn.Flatten(), nn.Linear(lane_devices, 10))
    plan = lanes.plan(net, torch.zeros(2, 3, 3, 3), lane_devices=lane_devices)
    measure = ColourSelectivity(1)
    measure.update(torch.full((1, 1), 8.0), torch.full((1, 1), float(lane.index)))
    found: list[float] = whole_layer(measure.compute(), "0", plan, lane).tolist()
    with pytest.raises(ValueError, match="the network has no layer 'conv'; it has 0, 1, 2"):
        whole_layer(measure.compute(), "conv", plan, lane)
    return found


def test_one_channel_on_each_lane_device(ranks: Ranks) -> None:
    for found in ranks(one_channel_each, 4, 4):
        assert all(math.isclose(value, 1 - index / 8) for index, value in enumerate(found))
