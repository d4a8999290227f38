"""Communication is counted, forward and backward.

Lane-local layers send nothing, each crossing sends exactly what the plan says.
"""

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import lanes
from lanes.mesh import DATA_AXIS, LANE_AXIS, axis
from lanes.models import AlexNet, GroupedLinear, LocalResponseNorm, SmallAlexNet
from lanes.placement import average_statistics
from lanes.ways import WAYS
from tests.crossing_networks import NETWORKS
from tests.ranks import Ranks

CALLS_FORWARD = {
    "gather": "all_gather",
    "scatter_sum": "reduce_scatter",
    "leave_sum": "all_reduce",
    "leave": "all_gather",
}
CALLS_BACKWARD = {"gather": "reduce_scatter", "scatter_sum": "all_gather", "enter": "all_reduce"}


@contextmanager
def strict() -> Iterator[None]:
    """Warnings of our own code are errors, also in the processes of ranks."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", module="lanes")
        yield


@dataclass
class Count:
    """What one direction of a training step sent, or is expected to send."""

    calls: Counter[str]
    sent_bytes: dict[str, float]


@dataclass
class Counted:
    """One training step of a placed model on one process.

    Attributes:
        forward: measured by Traffic on the lane axis.
        backward: the same.
        expected_forward: from the plan's layers.
        expected_backward: the same.
        ways: layer name -> way, of the layers with weights.
    """

    forward: Count
    backward: Count
    expected_forward: Count
    expected_backward: Count
    ways: dict[str, str]


def expected(plan: lanes.Plan, batch: int, image_needs_grad: bool) -> tuple[Count, Count]:
    """The collectives that a plan's layers announce; a layer with two crossings is not split by kind in the plan."""
    forward, backward = Count(Counter(), {}), Count(Counter(), {})
    for layer in plan.layers.values():
        names = WAYS[layer.way].crossings
        for calls, sent, count in (
            ([CALLS_FORWARD[n] for n in names if n in CALLS_FORWARD], layer.sent_forward_bytes, forward),
            (
                [CALLS_BACKWARD[n] for n in names if n in CALLS_BACKWARD and (n != "enter" or image_needs_grad)],
                layer.sent_backward_bytes,
                backward,
            ),
        ):
            if calls and sent:
                assert len(set(calls)) == 1
                count.calls[calls[0]] += len(calls)
                count.sent_bytes[calls[0]] = count.sent_bytes.get(calls[0], 0) + sent * batch
            else:
                assert sent == 0, f"{layer} announces bytes without a collective"
    return forward, backward


@strict()
def count_step(
    build: Callable[[], nn.Module],
    shape: tuple[int, ...],
    lane_devices: int,
    image_needs_grad: bool = False,
    override: dict[str, str] | None = None,
    autocast: bool = False,
) -> Counted:
    """Place a model and run one training step on ``shape``'s batch of images for each replica."""
    mesh = lanes.init_mesh(lane_devices)
    lane = axis(mesh, LANE_AXIS)
    torch.manual_seed(0)
    net = build()
    images = torch.randn(shape, generator=torch.Generator().manual_seed(1)).requires_grad_(image_needs_grad)
    dtype = torch.bfloat16 if autocast else None
    plan = lanes.plan(net, images, lane_devices=lane_devices, override=override, dtype=dtype)
    lanes.place(net, plan, mesh)
    with lanes.Traffic(lane) as forward, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        out = net(images)
    with lanes.Traffic(lane) as backward:
        out.float().square().mean().backward()
    assert (images.grad is not None) == image_needs_grad
    announced = expected(plan, shape[0], image_needs_grad)
    ways = {name: layer.way for name, layer in plan.layers.items() if layer.parameters}
    return Counted(
        Count(forward.calls, dict(forward.sent_bytes)),
        Count(backward.calls, dict(backward.sent_bytes)),
        *announced,
        ways,
    )


def check(counted: list[Counted]) -> Counted:
    """Every rank sent exactly what the plan says."""
    for rank, one in enumerate(counted):
        assert one.forward.calls == one.expected_forward.calls, f"rank {rank}"
        assert one.forward.sent_bytes == one.expected_forward.sent_bytes, f"rank {rank}"
        assert one.backward.calls == one.expected_backward.calls, f"rank {rank}"
        assert one.backward.sent_bytes == one.expected_backward.sent_bytes, f"rank {rank}"
    return counted[0]


# Lane-local layers: (layer, input shape) of nets that enter once and leave once.
LOCAL = {
    "grouped conv 1-D": (partial(nn.Conv1d, 8, 16, 3, groups=4), (4, 3, 9)),
    "grouped conv 2-D": (partial(nn.Conv2d, 8, 16, 3, groups=4, padding=1), (4, 3, 6, 6)),
    "strided grouped 1x1": (partial(nn.Conv2d, 8, 16, 1, groups=8, stride=2), (4, 3, 6, 6)),
    "depthwise conv 3-D": (partial(nn.Conv3d, 8, 8, 3, groups=8), (2, 3, 4, 4, 4)),
    "grouped linear": (partial(GroupedLinear, 8, 16, 4), (4, 3)),
    "batch norm 1-D": (partial(nn.BatchNorm1d, 8), (4, 3, 6)),
    "batch norm 2-D": (partial(nn.BatchNorm2d, 8), (4, 3, 6, 6)),
    "batch norm 3-D": (partial(nn.BatchNorm3d, 8), (4, 3, 3, 3, 3)),
    "response norm": (partial(LocalResponseNorm, 5, lanes=4), (4, 3, 6, 6)),
    "dropout": (partial(nn.Dropout, 0.5), (4, 3, 6, 6)),
    "channel dropout": (partial(nn.Dropout2d, 0.5), (4, 3, 6, 6)),
    "max pooling": (partial(nn.MaxPool2d, 2), (4, 3, 6, 6)),
    "average pooling": (partial(nn.AvgPool2d, 2), (4, 3, 6, 6)),
    "adaptive pooling": (partial(nn.AdaptiveAvgPool2d, 2), (4, 3, 6, 6)),
    "relu": (partial(nn.ReLU, inplace=True), (4, 3, 6, 6)),
    "gelu": (nn.GELU, (4, 3, 6, 6)),
    "flatten": (partial(nn.Flatten, 1), (4, 3, 6, 6)),
}


def entrance(shape: tuple[int, ...]) -> nn.Module:
    if len(shape) == 2:
        return nn.Linear(shape[1], 8)
    return {3: nn.Conv1d, 4: nn.Conv2d, 5: nn.Conv3d}[len(shape)](shape[1], 8, 1)


@strict()
def count_local_layer(title: str) -> tuple[int, int, Tensor]:
    """Collectives of one lane-local layer, forward and backward, between an entrance and a head."""
    make, shape = LOCAL[title]
    mesh = lanes.init_mesh()
    lane = axis(mesh, LANE_AXIS)
    torch.manual_seed(0)
    net = nn.Sequential(entrance(shape), make(), nn.Flatten(1), nn.LazyLinear(10)).eval()
    net(torch.zeros(shape))  # gives the head its size
    plan = lanes.plan(net.train(), torch.zeros(shape), lane_devices=lane.size)
    assert plan.layers["1"].way == "stays"
    assert "1" not in plan.crossings
    lanes.place(net, plan, mesh)
    laned = net[0](torch.randn(shape)).detach().requires_grad_()
    assert laned.shape[1] == 8 // lane.size
    with lanes.Traffic(lane) as forward:
        out = net[1](laned.clone())
    with lanes.Traffic(lane) as backward:
        out.square().sum().backward()
    return forward.calls.total(), backward.calls.total(), laned.grad


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("title", LOCAL)
def test_lane_local_layers_send_nothing(ranks: Ranks, title: str, world: int) -> None:
    for forward, backward, grad in ranks(count_local_layer, world, title):
        assert (forward, backward) == (0, 0)
        assert grad.isfinite().all()
        assert grad.abs().sum() > 0


MESHES = {"1x2": (2, 2), "1x4": (4, 4), "2x2": (4, 2), "1x1": (1, 1), "2x1": (2, 1)}  # data x lane: ranks, lane devices
CROSS = {
    "apart": (),
    "as in 2012": ("conv3", "fc6", "fc7"),
    "everywhere": ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7"),
}


@pytest.mark.parametrize("image_needs_grad", [False, True])
@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("cross", CROSS)
def test_small_alexnet(ranks: Ranks, cross: str, mesh: str, image_needs_grad: bool) -> None:
    world, lane_devices = MESHES[mesh]
    build = partial(SmallAlexNet, num_classes=12, lanes=4, cross=CROSS[cross])
    counted = check(ranks(count_step, world, build, (2, 3, 64, 64), lane_devices, image_needs_grad))
    num_dense = len(CROSS[cross])
    meets = lane_devices > 1  # one device asks nobody
    assert counted.forward.calls.total() == meets * (num_dense + 1)  # and the head
    assert counted.backward.calls.total() == meets * (num_dense + image_needs_grad)
    assert (counted.forward.sent_bytes.get("all_reduce", 0) > 0) == meets


def test_small_alexnet_in_bfloat16(ranks: Ranks) -> None:
    build = partial(SmallAlexNet, num_classes=12, lanes=4, cross=CROSS["everywhere"])
    full = check(ranks(count_step, 4, build, (2, 3, 64, 64), 4, True))
    half = check(ranks(count_step, 4, build, (2, 3, 64, 64), 4, True, None, True))
    for ours, theirs in ((half.forward, full.forward), (half.backward, full.backward)):
        assert ours.calls == theirs.calls
        assert {kind: 2 * sent for kind, sent in ours.sent_bytes.items()} == theirs.sent_bytes


@pytest.mark.parametrize(("batch", "image_needs_grad"), [(2, False), (1, True)])
def test_alexnet(ranks: Ranks, batch: int, image_needs_grad: bool) -> None:
    """The published network at its size: the numbers are written out, from the sizes in the paper's figure 2."""
    build = partial(AlexNet, num_classes=1000, lanes=2)
    counted = check(ranks(count_step, 2, build, (batch, 3, 224, 224), 2, image_needs_grad))
    assert counted.ways == {
        "conv1": "enter",
        "conv2": "stays",
        "conv3": "gather",
        "conv4": "stays",
        "conv5": "stays",
        "fc6": "scatter_sum",
        "fc7": "gather",
        "fc8": "leave_sum",
    }
    maps, features, hidden, logits, image = (4 * n for n in (256 * 13 * 13, 4096, 4096, 1000, 3 * 224 * 224))
    assert counted.forward.calls == {"all_gather": 2, "reduce_scatter": 1, "all_reduce": 1}
    assert counted.forward.sent_bytes == {
        "all_gather": batch * (maps + hidden) / 2,
        "reduce_scatter": batch * features / 2,
        "all_reduce": batch * 2 * logits / 2,
    }
    assert counted.backward.calls == {"all_gather": 1, "reduce_scatter": 2} | (
        {"all_reduce": 1} if image_needs_grad else {}
    )
    backward = {"all_gather": batch * features / 2, "reduce_scatter": batch * (maps + hidden) / 2}
    assert counted.backward.sent_bytes == backward | ({"all_reduce": batch * image} if image_needs_grad else {})


def laned_net(*layers: nn.Module) -> nn.Module:
    """Layers between an entrance of 8 channels and nothing else."""
    return nn.Sequential(nn.Conv2d(3, 8, 1), *layers)


def headed_net(layer: nn.Module, channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 1), layer, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(channels, 4))


def image_net() -> nn.Module:
    return nn.Conv2d(3, 8, 3)


def gather_net() -> nn.Module:
    return headed_net(nn.Conv2d(8, 16, 3), 16)


def strided_net() -> nn.Module:
    return headed_net(nn.Conv2d(8, 16, 1, stride=2), 16)


def final_net() -> nn.Module:
    return laned_net(nn.Conv2d(8, 4, 3))


def grouped_final_net() -> nn.Module:
    return laned_net(nn.Conv2d(8, 16, 3, groups=4))


def grouped_final_norm_net() -> nn.Module:
    return laned_net(nn.Conv2d(8, 16, 3, groups=4), nn.BatchNorm2d(16), nn.ReLU())


def grouped_first_net() -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 4))


def frozen_net() -> nn.Module:
    net = gather_net()
    net[0].requires_grad_(False)
    return net


class Twice(nn.Module):
    """A dense layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.again(torch.relu(self.first(x))))
        return self.head(torch.relu(self.again(x)).mean((2, 3)))


IMAGE = (2, 3, 6, 6)
# title -> net, override, layer, its way, {forward collective: elements per image in units of (D - 1) / D}, backward
SINGLE = {
    "gather": (gather_net, {"1": "gather"}, "1", "gather", {"all_gather": 8 * 36}, {"reduce_scatter": 8 * 36}),
    "scatter_sum": (
        gather_net,
        {"1": "scatter_sum"},
        "1",
        "scatter_sum",
        {"reduce_scatter": 16 * 16},
        {"all_gather": 16 * 16},
    ),
    "gather after subsampling": (
        strided_net,
        {"1": "gather"},
        "1",
        "gather",
        {"all_gather": 8 * 9},
        {"reduce_scatter": 8 * 9},
    ),
    "leave_sum": (final_net, {"1": "leave_sum"}, "1", "leave_sum", {"all_reduce": 2 * 4 * 16}, {}),
    "gather+leave": (
        final_net,
        {"1": "gather+leave"},
        "1",
        "gather+leave",
        {"all_gather": 8 * 36 + 4 * 16},
        {"reduce_scatter": 8 * 36},
    ),
    "enter+leave": (image_net, None, "", "enter+leave", {"all_gather": 8 * 16}, {"all_reduce": 2 * 3 * 36}),
    "stays+leave": (grouped_final_net, None, "1", "stays+leave", {"all_gather": 16 * 16}, {}),
    "stays+leave, norm": (grouped_final_norm_net, None, "2", "stays+leave", {"all_gather": 16 * 16}, {}),
    "enter+own": (grouped_first_net, None, "0", "enter+own", {}, {"all_reduce": 2 * 4 * 36}),
    "gather behind frozen layers": (frozen_net, {"1": "gather"}, "1", "gather", {"all_gather": 8 * 36}, {}),
}


@strict()
def count_single(title: str, image_needs_grad: bool) -> tuple[Counted, str]:
    """One step of a small net, and the name of the layer that it is about."""
    build, override, layer, *_ = SINGLE[title]
    mesh = lanes.init_mesh()
    shape = (IMAGE[0], 4, *IMAGE[2:]) if title == "enter+own" else IMAGE
    one = count_step(build, shape, mesh["lane"].size(), image_needs_grad, override)
    check([one])
    return one, layer


@pytest.mark.parametrize("image_needs_grad", [False, True])
@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("title", SINGLE)
def test_each_way_alone(ranks: Ranks, title: str, world: int, image_needs_grad: bool) -> None:
    _, _, _, way, forward, backward = SINGLE[title]
    for one, name in ranks(count_single, world, title, image_needs_grad):
        assert one.ways[name] == way
        announced_forward, announced_backward = dict(forward), dict(backward)
        head = {"3": "leave_sum", "4": "leave_sum"}.items() & one.ways.items()
        if head:
            announced_forward["all_reduce"] = announced_forward.get("all_reduce", 0) + 2 * 4
        entered = one.ways.get("0") == "enter" and image_needs_grad
        if entered:
            announced_backward["all_reduce"] = announced_backward.get("all_reduce", 0) + 2 * 3 * 36
        if "enter" in way and not image_needs_grad:
            announced_backward.pop("all_reduce")
        if title == "gather behind frozen layers" and image_needs_grad:
            announced_backward["reduce_scatter"] = 8 * 36
        scale = IMAGE[0] * 4 * (world - 1) / world
        assert one.forward.sent_bytes == {kind: n * scale for kind, n in announced_forward.items()}
        assert one.backward.sent_bytes == {kind: n * scale for kind, n in announced_backward.items()}


def test_a_layer_called_twice_counts_twice(ranks: Ranks) -> None:
    for override in ({"again": "gather"}, {"again": "scatter_sum"}):
        for one in ranks(count_step, 2, Twice, IMAGE, 2, False, override):
            assert one.forward.sent_bytes == one.expected_forward.sent_bytes
            assert one.backward.sent_bytes == one.expected_backward.sent_bytes
            assert one.forward.calls.total() == 3
            assert one.backward.calls.total() == 2


@dataclass
class ByLayer:
    """What one process sent in a step.

    Attributes:
        plan: of the network.
        layers: layer name -> bytes sent in its forward.
        forward: bytes by kind of collective.
        backward: the same, backward.
    """

    plan: lanes.Plan
    layers: dict[str, int]
    forward: dict[str, int]
    backward: dict[str, int]


@strict()
def count_by_layer(title: str, lane_devices: int) -> ByLayer:
    """One step on two images, counted layer by layer as they run."""
    mesh = lanes.init_mesh(lane_devices)
    lane = axis(mesh, LANE_AXIS)
    torch.manual_seed(0)
    net = NETWORKS[title]()
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    plan = lanes.plan(net, images, lane_devices=lane_devices)
    lanes.place(net, plan, mesh)
    layers: dict[str, int] = dict.fromkeys(plan.layers, 0)
    with lanes.Traffic(lane) as forward:
        for name, layer in net.named_modules():
            if name in layers:
                layer.register_forward_pre_hook(lambda *_: setattr(net, "before", forward.sent_bytes.total()))
                layer.register_forward_hook(
                    lambda *_, name=name: layers.update({name: layers[name] + forward.sent_bytes.total() - net.before})
                )
        out = net(images)
    with lanes.Traffic(lane) as backward:
        out.square().mean().backward()
    return ByLayer(plan, layers, dict(forward.sent_bytes), dict(backward.sent_bytes))


KINDS = {
    "gather once": {"all_gather", "reduce_scatter", "all_reduce"},
    "re-ordered": {"all_to_all", "all_gather", "reduce_scatter", "all_reduce"},
    "norms": {"all_reduce", "all_gather"},
    "factors": {"all_reduce", "all_gather", "reduce_scatter"},
}


@pytest.mark.parametrize("lane_devices", [1, 2, 4])
@pytest.mark.parametrize("title", NETWORKS)
def test_crossings_of_deep_networks(ranks: Ranks, title: str, lane_devices: int) -> None:
    """Of each layer, the busiest lane device sends what the plan says; re-ordering loads devices unequally."""
    counted = ranks(count_by_layer, lane_devices, title, lane_devices)
    plan = counted[0].plan
    for name, layer in plan.layers.items():
        assert max(one.layers[name] for one in counted) == 2 * layer.sent_forward_bytes, name
    backward = 2 * sum(layer.sent_backward_bytes for layer in plan.layers.values())
    step = sum(layer.sent_step_bytes for layer in plan.layers.values())
    for one in counted:
        assert one.forward.get("all_to_all", 0) == one.backward.get("all_to_all", 0)  # what went comes back
        assert sum(one.backward.values()) <= backward + step
        assert lane_devices == 1 or {kind for kind, sent in one.forward.items() if sent} == KINDS[title]
    if title != "re-ordered":
        assert sum(counted[0].backward.values()) == backward + step


@strict()
def count_evaluation() -> tuple[Counter[str], Counter[str]]:
    """Collectives on the lane axis in evaluation, and of averaging statistics, on 2 x 2."""
    mesh = lanes.init_mesh(2)
    lane = axis(mesh, LANE_AXIS)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3), nn.Flatten(1), nn.Linear(32, 4))
    images = torch.randn(2, 3, 6, 6)
    lanes.place(net, lanes.plan(net, images, lane_devices=2), mesh).eval()
    with torch.no_grad(), lanes.Traffic(lane) as evaluation:
        net(images)
    with lanes.Traffic(lane) as on_lane, lanes.Traffic(axis(mesh, DATA_AXIS)) as on_data:
        average_statistics(net, mesh)
    assert not on_lane.calls
    return evaluation.calls, on_data.calls


def test_evaluation_and_statistics(ranks: Ranks) -> None:
    for evaluation, statistics in ranks(count_evaluation, 4):
        assert evaluation.total() == 2
        assert statistics == {"all_reduce": 2}


@strict()
def count_unknown() -> str:
    lane = axis(lanes.init_mesh(), LANE_AXIS)
    with pytest.raises(NotImplementedError) as error, lanes.Traffic(lane):
        torch.distributed.broadcast(torch.zeros(2), src=0)
    return str(error.value)


def test_a_collective_that_cannot_be_counted_is_refused(ranks: Ranks) -> None:
    assert all("broadcast" in message for message in ranks(count_unknown, 2))
