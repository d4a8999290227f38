"""Where deep networks cross: gathers and re-orderings made once, norms, shared weights; and Megatron's bytes."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lanes
from lanes import PlanError
from lanes.mesh import Axis
from lanes.models import Concat
from lanes.placement import _checked_layers
from lanes.planning import lane_devices_of
from tests.crossing_networks import NETWORKS, Factors, GateWithoutGradient, GatherOnce, Norms, Reordered
from tests.planned import plan_of, ways

IMAGE = (2, 3, 16, 16)


class TwoReaders(nn.Module):
    """A tensor of 8 channels and 16 x 16 places that two 1x1 convolutions read."""

    def __init__(self, first: nn.Module, second: nn.Module) -> None:
        super().__init__()
        self.stem, self.first, self.second = nn.Conv2d(3, 8, 1), first, second
        self.head = nn.LazyLinear(4)
        self(torch.zeros(IMAGE))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        return self.head(torch.cat([self.first(x).flatten(1), self.second(x).flatten(1)], 1))


def readers_plan(first: nn.Module, second: nn.Module, **arguments) -> dict[str, tuple[str, str, float]]:
    plan = plan_of(TwoReaders(first, second), IMAGE, **arguments)
    found = {name: plan.layers[name] for name in ("first", "second")}
    return {name: (layer.way, layer.shares, layer.sent_forward_bytes) for name, layer in found.items()}


WHOLE_TENSOR, THINNED = 8 * 256 * 4 / 2, 8 * 64 * 4 / 2


def test_two_readers_gather_once() -> None:
    plan = plan_of(TwoReaders(nn.Conv2d(8, 8, 1), nn.Conv2d(8, 32, 3)), IMAGE)
    first, second = plan.layers["first"], plan.layers["second"]
    assert (first.way, first.shares, first.sent_forward_bytes, first.kept_bytes) == ("gather", "", WHOLE_TENSOR, 8192)
    assert (second.way, second.shares, second.sent_forward_bytes, second.kept_bytes) == ("gather", "first", 0, 0)
    assert first.sent_backward_bytes == WHOLE_TENSOR
    assert second.sent_backward_bytes == 0
    assert "second  Conv2d  crosses: gather (with first)" in str(plan)


def test_a_strided_reader_reads_what_the_other_has_gathered() -> None:
    expected = {"first": ("gather", "", WHOLE_TENSOR), "second": ("gather", "first", 0)}
    assert readers_plan(nn.Conv2d(8, 16, 1), nn.Conv2d(8, 32, 1, 2)) == expected
    assert readers_plan(nn.Conv2d(8, 32, 1, 2), nn.Conv2d(8, 16, 1)) == expected


def test_equally_strided_readers_gather_thinned_out() -> None:
    expected = {"first": ("gather", "", THINNED), "second": ("gather", "first", 0)}
    assert readers_plan(nn.Conv2d(8, 16, 1, 2), nn.Conv2d(8, 32, 1, 2)) == expected


def test_narrow_readers_send_sums() -> None:
    ways = readers_plan(nn.Conv2d(8, 2, 1), nn.Conv2d(8, 2, 1))
    assert {way for way, _, _ in ways.values()} == {"scatter_sum"}


def test_two_that_alone_would_send_sums_gather_together() -> None:
    assert {way for way, _, _ in readers_plan(nn.Conv2d(8, 6, 1), nn.Conv2d(8, 6, 1)).values()} == {"gather"}


def test_a_narrow_reader_leaves_the_gathering_to_a_strided_one() -> None:
    expected = {"first": ("scatter_sum", "", 2 * 256 * 4 / 2), "second": ("gather", "", THINNED)}
    assert readers_plan(nn.Conv2d(8, 2, 1), nn.Conv2d(8, 32, 1, 2)) == expected


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ({"first": "scatter_sum"}, {"first": ("scatter_sum", "", 16384), "second": ("gather", "", WHOLE_TENSOR)}),
        ({"second": "scatter_sum"}, {"first": ("gather", "", WHOLE_TENSOR), "second": ("scatter_sum", "", 16384)}),
        (
            {"first": "gather", "second": "gather"},
            {"first": ("gather", "", WHOLE_TENSOR), "second": ("gather", "first", 0)},
        ),
    ],
)
def test_overridden_readers(override: dict[str, str], expected: dict) -> None:
    assert readers_plan(nn.Conv2d(8, 32, 1), nn.Conv2d(8, 32, 1), override=override) == expected


def test_one_device_decides_the_same_about_readers() -> None:
    one, two = (plan_of(GatherOnce(), IMAGE, lane_devices=d) for d in (1, 2))
    assert ways(one) == ways(two)
    assert [layer.shares for layer in one.layers.values()] == [layer.shares for layer in two.layers.values()]
    assert one.sent_bytes == 0
    assert one.parameters == sum(p.numel() for p in GatherOnce().parameters())


def test_orders_are_merged_and_paid_once() -> None:
    plan = plan_of(Reordered(), IMAGE, lane_devices=4)
    assert {name: (layer.way, layer.order) for name, layer in plan.layers.items() if layer.order} == {
        "shuffle1": ("shuffle", "16, shuffle 4"),
        "join": ("shuffle", "16+24"),
        "shuffle3": ("passes on", "40+40"),
        "again3": ("shuffle", "40+40, shuffle 5, shuffle 2"),
        "drop": ("stays", "80+40"),
        "wide": ("gather", "40+16"),
        "shuffle4": ("shuffle", "96, shuffle 3"),
        "flat": ("stays", "96+64"),
        "head": ("leave_sum", "384+256"),
    }
    # 16 channels in 4 groups on 4 devices of 4: of each device's channels one stays.
    assert plan.layers["shuffle1"].sent_forward_bytes == 3 * 256 * 4
    # What is gathered is put in order on each device: the order costs nothing.
    assert plan.layers["wide"].sent_forward_bytes == 56 * 7 * 7 * 4 * 3 / 4
    assert plan.layers["join3"].sent_forward_bytes == plan.layers["shuffle3"].sent_forward_bytes == 0


def test_a_sum_of_different_orders_is_refused() -> None:
    class Mismatched(nn.Module):
        def __init__(self, concat: Callable[..., Tensor]) -> None:
            super().__init__()
            self.conv, self.wide = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 16, 1)
            self.concat = concat
            self.head = nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.head((self.concat(y, y) + self.wide(x)).mean((2, 3)))

    with pytest.raises(PlanError, match=r"does add on \[2, 16.* orders 8\+8 and plain; .* lanes.models.Concat"):
        plan_of(Mismatched(lambda *parts: torch.cat(parts, 1)), IMAGE)
    assert plan_of(Mismatched(Concat()), IMAGE).layers["concat"].way == "shuffle"


@pytest.mark.parametrize(
    ("lane_devices", "expected"),
    [
        (2, {"within": "stays", "across": "sum", "all": "sum", "pixel": "sum", "image": "sum", "vector": "sum"}),
        (3, {"within": "sum", "across": "stays", "all": "sum", "pixel": "sum", "image": "sum", "vector": "sum"}),
    ],
)
def test_norms(lane_devices: int, expected: dict[str, str]) -> None:
    net = Norms()
    net.conv2, net.conv3, net.conv4 = (nn.Conv2d(24, 24, 3, s, padding=1, groups=6) for s in (1, 2, 1))
    net.fc, net.last, net.head = nn.Linear(24, 36), nn.LayerNorm(36), nn.Linear(36, 10)
    plan = plan_of(net, IMAGE, lane_devices=lane_devices)
    assert {name: plan.layers[name].way for name in expected} == expected


def test_statistics_are_counted() -> None:
    plan = plan_of(Norms(), IMAGE, lane_devices=2)
    sent = {name: layer.sent_forward_bytes for name, layer in plan.layers.items() if layer.way == "sum"}
    both = 2 * 2 / 2 * 4  # two sums, each an all-reduce of 4-byte numbers over two devices
    assert sent == {
        "across": 3 * both,
        "all": both,
        "pixel": 64 * both,
        "image": both,
        "bare": 64 * both,
        "vector": both,
        "last": both,
    }
    assert all(plan.layers[name].sent_backward_bytes == bytes_ for name, bytes_ in sent.items())
    half = plan_of(Norms(), IMAGE, lane_devices=2, dtype=torch.bfloat16)  # statistics stay in float32
    assert {name: half.layers[name].sent_forward_bytes for name in sent} == sent


def test_factors() -> None:
    plan = plan_of(Factors(), IMAGE, lane_devices=4)
    assert {name: plan.layers[name].way for name in ("shared", "each", "scale", "path")} == {
        "shared": "shared",
        "each": "stays",
        "scale": "stays",
        "path": "stays",
    }
    assert plan.layers["shared"].sent_step_bytes == 2 * (2 * 4 * 3 / 4)  # it runs twice, and sums twice
    assert plan.layers["shared"].sent_forward_bytes == plan.layers["shared"].sent_backward_bytes == 0
    assert plan.layers["each"].parameters == 4
    assert plan.layers["shared"].parameters == 1
    assert "shared" in plan.crossings
    assert "weights that all lanes share: 12 B" in str(plan)


@pytest.mark.parametrize("net", NETWORKS.values(), ids=NETWORKS)
def test_plans_with_these_crossings_are_saved_and_loaded(net: type[nn.Module], tmp_path: Path) -> None:
    plan = plan_of(net(), IMAGE, lane_devices=4)
    plan.save(tmp_path / "plan.yaml")
    assert lanes.Plan.load(tmp_path / "plan.yaml") == plan


def test_an_edited_order_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    plan_of(Reordered(), IMAGE, lane_devices=4).save(path)
    path.write_text(path.read_text().replace("40+16", "40-16"))
    with pytest.raises(ValueError, match=r"plan.yaml: wide: '40-16' is no order of channels"):
        lanes.Plan.load(path)


def test_lane_devices_of() -> None:
    assert lane_devices_of(Norms(), torch.zeros(IMAGE)) == [1, 2, 4]
    assert lane_devices_of(Norms(), torch.zeros(IMAGE), most=3) == [1, 2]
    net = Norms()
    net.pixel.weight = net.within.weight
    with pytest.raises(PlanError, match="is shared with within"):
        lane_devices_of(net, torch.zeros(IMAGE))


# ---- Orders of channels that meet other dimensions, or layers that run more than once


@pytest.mark.parametrize("flatten", [nn.Flatten(1, 2), partial(torch.flatten, start_dim=1, end_dim=2)])
def test_flattening_joins_the_places_that_it_says(flatten: Callable[[Tensor], Tensor]) -> None:
    plan = plan_of(Joined(flatten, nn.Conv1d(16 * 16, 4, 1, groups=4)), IMAGE)
    assert plan.layers["reader"].order == "128+128"  # 8 channels of 16 rows each
    assert plan.layers["reader"].sent_forward_bytes == 64 * 16 * 4  # half of what is not at its place


@pytest.mark.parametrize("flatten", [nn.Flatten(2), partial(torch.flatten, start_dim=2)])
def test_flattening_places_alone_keeps_the_order(flatten: Callable[[Tensor], Tensor]) -> None:
    assert plan_of(Joined(flatten, nn.Conv1d(16, 4, 1, groups=4)), IMAGE).layers["reader"].order == "8+8"


class Joined(nn.Module):
    """Two tensors of 8 channels, joined by each device for itself, and what reads them."""

    def __init__(self, flatten: Callable[[Tensor], Tensor], reader: nn.Module) -> None:
        super().__init__()
        self.conv, self.flatten, self.reader, self.head = nn.Conv2d(3, 8, 1), flatten, reader, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.head(self.reader(self.flatten(torch.cat([x, x], 1))).mean(2))


class Reused(nn.Module):
    """One activation, and one dense layer, that read joined channels and others."""

    def __init__(self, join: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.join, self.relu = nn.Conv2d(3, 8, 1), join, nn.ReLU()
        self.again, self.head = nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.conv(x))
        x = self.relu(self.join(x, x))
        return self.head(self.again(self.again(x)).mean((2, 3)))


def test_nothing_is_left_to_a_layer_that_runs_more_than_once() -> None:
    plan = plan_of(Reused(Concat()), IMAGE)
    assert {name: (layer.way, layer.order) for name, layer in plan.layers.items() if layer.order} == {
        "join": ("shuffle", "8+8")
    }
    with pytest.raises(PlanError, match=r"^relu: runs more than once, .*'8\+8'.*Concat\(\) instead of torch.cat"):
        plan_of(Reused(lambda *parts: torch.cat(parts, 1)), IMAGE)


def test_one_device_runs_a_layer_again_on_any_tensor() -> None:
    class Again(Joined):
        def forward(self, x: Tensor) -> Tensor:
            x = self.reader(self.conv(x).softmax(1))
            return self.head(self.reader(x).mean((2, 3)))

    net = Again(nn.Identity(), nn.Conv2d(8, 8, 1))
    net.head = nn.Linear(8, 4)
    assert plan_of(net, IMAGE, lane_devices=1).layers["reader"].way == "enter"


def test_layer_norm_over_columns_is_placed_on_one_device() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.LayerNorm(16), nn.Flatten(1), nn.Linear(8 * 256, 4))
    assert plan_of(net, IMAGE, lane_devices=1).layers["1"].way == "stays"
    assert plan_of(Norms(), IMAGE, lane_devices=1).layers["image"].way == "sum"


# ---- What a Megatron-style placement would send


def megatron(net: nn.Module, **arguments) -> dict[str, tuple[float, float]]:
    plan = plan_of(net, IMAGE, **arguments)
    sent = {name: (layer.megatron_forward_bytes, layer.megatron_backward_bytes) for name, layer in plan.layers.items()}
    return {name: both for name, both in sent.items() if any(both)}


def test_blocks_send_their_output_and_the_gradient_of_their_input() -> None:
    def reduced(channels: int, side: int) -> float:
        return 2 * channels * side**2 * 4 / 2

    assert megatron(GatherOnce()) == {
        "a1": (0, reduced(8, 16)),
        "a_short": (reduced(32, 8), 0),
        "b1": (0, reduced(32, 8)),
        "b_short": (reduced(64, 4), 0),
        "c1": (0, reduced(64, 4)),
        "c_short": (reduced(64, 2), 0),
    }  # the stem and the head find no partner: they run whole on every device


def test_chains_pair_their_layers() -> None:
    def chain(*layers: nn.Module) -> nn.Module:
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(16, 4))

    per_channel = 2 * 256 * 4 / 2
    pointwise = chain(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=8), nn.Conv2d(8, 16, 1))
    assert megatron(pointwise) == {"3": (16 * per_channel, 0)}  # the image needs no gradient
    longer = chain(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 16, 1))
    logits = 2 * 4 * 4 / 2
    assert megatron(longer) == {"1": (8 * per_channel, 0), "2": (0, 8 * per_channel), "5": (logits, 0)}


# ---- What others do to a tensor that is shared or out of order


class Trunk(nn.Module):
    """Two tensors of 8 channels, a layer that some glue uses, a dense layer, a head."""

    def __init__(self, glue: Callable[[nn.Module, Tensor, Tensor], Tensor], layer: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.one, self.two, self.layer, self.glue = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), layer, glue
        self.dense, self.head = nn.Conv2d(width, 16, 1), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.dense(self.glue(self, self.one(x), self.two(x))).mean((2, 3)))


def dropped_in_place(net: nn.Module, one: Tensor, two: Tensor) -> Tensor:
    x = torch.cat([one, two], 1)
    net.layer(x)
    return x


def changed_through_a_view(net: nn.Module, one: Tensor, two: Tensor) -> Tensor:
    y = net.layer(one)
    one.flatten(1).mul_(2)
    return torch.cat([y, one], 1)


def test_dropout_in_place_on_channels_out_of_order_is_refused() -> None:
    with pytest.raises(PlanError, match=r"^layer: works in place on channels in order '8\+8'; .* lanes.models.Concat"):
        plan_of(Trunk(dropped_in_place, nn.Dropout(0.5, inplace=True)), IMAGE)


def test_a_change_through_a_view_is_refused() -> None:
    with pytest.raises(PlanError, match=r"changed in place through a view of it.*\(clone\)"):
        plan_of(Trunk(changed_through_a_view, nn.Conv2d(8, 8, 1)), IMAGE)


def test_readers_without_gradient_do_not_share_and_send_nothing_back() -> None:
    plan = plan_of(GateWithoutGradient(), IMAGE)
    found = {name: plan.layers[name] for name in ("first", "second")}
    assert [layer.shares for layer in found.values()] == ["", ""]
    assert [layer.sent_backward_bytes > 0 for layer in found.values()] == [False, True]


def test_a_frozen_input_of_a_norm_sends_no_statistics_back() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.GroupNorm(3, 12), nn.Conv2d(12, 4, 1), nn.Flatten(), nn.Linear(1024, 4))
    net[0].requires_grad_(False)
    norm = plan_of(net, IMAGE).layers["1"]
    assert norm.sent_forward_bytes > 0
    assert norm.sent_backward_bytes == 0


def test_megatron_follows_the_way_to_the_last_output() -> None:
    class TwoOutputs(GatherOnce):
        def __init__(self) -> None:
            super().__init__()
            self.aside = nn.Linear(3, 4)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.aside(x.mean((2, 3))), super().forward(x)

    assert megatron(TwoOutputs()) == megatron(GatherOnce())


EDITED: dict[str, tuple[type[nn.Module], str, dict[str, str]]] = {
    "a sum that is left out": (Norms, "across", {"way": "stays"}),
    "a layer norm that stays": (Norms, "pixel", {"way": "stays"}),
    "a shuffle that nobody is told of": (Reordered, "shuffle1", {"way": "passes on"}),
    "a shuffle that does not divide": (Reordered, "shuffle1", {"order": "18, shuffle 4"}),
    "a gatherer that is not there": (GatherOnce, "a_short", {"shares": "nobody"}),
    "a gatherer that gathers nothing": (GatherOnce, "a_short", {"shares": "bn"}),
    "a shared slope that stays": (Factors, "shared", {"way": "stays"}),
}


@pytest.mark.parametrize("edit", EDITED)
def test_edited_plans_are_refused_before_anything_moves(edit: str) -> None:
    build, layer, change = EDITED[edit]
    net = build()
    plan = plan_of(net, IMAGE, lane_devices=4)
    edited = replace(plan, layers={**plan.layers, layer: replace(plan.layers[layer], **change)})
    lane = Axis(group=None, size=4, index=0)
    with pytest.raises(ValueError, match=rf"^{layer}"):
        _checked_layers(net, edited, lane)
    _checked_layers(net, plan, lane)  # as it was planned it passes
