"""The planner: what it decides for the published network, what it accepts, and what it refuses, with which words."""

import copy
import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor, nn
from torch.nn.utils import prune

import lanes
from lanes import Plan, PlanError
from lanes.models import AlexNet, GroupedLinear, LocalResponseNorm, SmallAlexNet
from lanes.ways import WAYS
from tests import networks

IMAGE = (2, 3, 8, 8)


def alexnet(**arguments) -> nn.Module:
    with torch.device("meta"):
        return AlexNet(**arguments)


def plan_alexnet(lane_devices: int = 2, **arguments) -> Plan:
    return lanes.plan(alexnet(), torch.empty(2, 3, 224, 224, device="meta"), lane_devices=lane_devices, **arguments)


def plan_of(net: nn.Module, shape: tuple[int, ...] = IMAGE, lane_devices: int = 2, **arguments) -> Plan:
    return lanes.plan(net, torch.zeros(shape), lane_devices=lane_devices, **arguments)


def ways(plan: Plan) -> dict[str, str]:
    return {name: layer.way for name, layer in plan.layers.items()}


class Glued(nn.Module):
    """Two convolutions with user code between them, then a head.

    Args:
        glue: gets the model and a laned tensor [N, 8, H, W] or, with ``vectors``, [N, 8].
        vectors: whether the glue sees vectors.
    """

    def __init__(self, glue: Callable[[nn.Module, Tensor], Tensor], vectors: bool = False) -> None:
        super().__init__()
        self.glue, self.vectors = glue, vectors
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.LazyLinear(4)
        self.eval()(torch.zeros(IMAGE))  # gives the head its size
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv(x))
        x = x.mean((2, 3)) if self.vectors else x
        x = self.glue(self, x)
        x = self.pool(x) if x.dim() == 4 else x
        return self.head(x.flatten(1))


class Layers(nn.Module):
    """A convolution, layers between, a head; the layers are registered as "layer"."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.layer = layers[0] if len(layers) == 1 else nn.Sequential(*layers)
        self.head = nn.LazyLinear(4)
        self.eval()(torch.zeros(IMAGE))
        self.train()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.conv(x)).flatten(1))


# ---- The plan of the published network


def test_alexnet_on_two_devices() -> None:
    plan = plan_alexnet()
    with_weights = {name: layer.way for name, layer in plan.layers.items() if layer.parameters}
    assert with_weights == {
        "conv1": "enter",
        "conv2": "stays",
        "conv3": "gather",
        "conv4": "stays",
        "conv5": "stays",
        "fc6": "scatter_sum",
        "fc7": "gather",
        "fc8": "leave_sum",
    }
    others = {way for name, way in ways(plan).items() if name not in with_weights}
    assert others == {"stays"}
    assert list(plan.crossings) == ["conv3", "fc6", "fc7", "fc8"]
    assert list(plan.layers) == [name for name, _ in alexnet().named_children()]
    assert (plan.lane_devices, plan.dtype) == (2, "float32")


def test_alexnet_parameters_are_halved() -> None:
    total = sum(p.numel() for p in alexnet().parameters())
    assert total == 60_965_224
    assert plan_alexnet().parameters == (total - 1000) // 2 + 1000  # each device holds fc8's bias
    assert plan_alexnet(1).parameters == total


def test_alexnet_bytes() -> None:
    plan = plan_alexnet()
    sent = {name: (layer.sent_forward_bytes, layer.sent_backward_bytes) for name, layer in plan.crossings.items()}
    maps = 256 * 13 * 13 * 4 / 2
    assert sent == {"conv3": (maps, maps), "fc6": (8192, 8192), "fc7": (8192, 8192), "fc8": (4000, 0)}
    assert plan.sent_bytes == 2 * (maps + 8192 + 8192) + 4000
    kept = {name: layer.kept_bytes for name, layer in plan.layers.items() if layer.kept_bytes}
    assert kept == {"conv3": 256 * 13 * 13 * 4, "fc7": 4096 * 4}
    half = plan_alexnet(dtype=torch.bfloat16)
    assert half.dtype == "bfloat16"
    assert half.sent_bytes == plan.sent_bytes / 2
    assert ways(half) == ways(plan)


def test_one_device_decides_the_same_and_sends_nothing() -> None:
    one = plan_alexnet(1)
    assert ways(one) == ways(plan_alexnet(2))
    assert one.sent_bytes == 0


def test_image_that_needs_a_gradient() -> None:
    image = torch.empty(2, 3, 224, 224, device="meta", requires_grad=True)
    plan = lanes.plan(alexnet(), image, lane_devices=2)
    assert plan.layers["conv1"].sent_backward_bytes == 2 * 3 * 224 * 224 * 4 / 2
    assert plan.layers["conv1"].sent_forward_bytes == 0
    assert "conv1" in plan.crossings


def test_a_plan_does_not_depend_on_the_batch() -> None:
    one, eight = (lanes.plan(alexnet(), torch.empty(n, 3, 224, 224, device="meta"), lane_devices=2) for n in (1, 8))
    assert one == eight


def test_frozen_layers_send_nothing_back() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Flatten(1), nn.Linear(288, 4))
    assert plan_of(net, override={"2": "gather"}).layers["2"].sent_backward_bytes > 0
    net[0].requires_grad_(False)
    plan = plan_of(net, override={"2": "gather"})
    assert plan.layers["2"].sent_backward_bytes == 0
    assert plan.layers["2"].sent_forward_bytes == 8 * 64 * 4 / 2


@pytest.mark.parametrize(
    ("stride", "padding", "inputs"), [(1, 0, 8 * 7 * 7), (2, 0, 8 * 4 * 4), (3, 0, 8 * 3 * 3), (2, 1, 8 * 7 * 7)]
)
def test_a_strided_1x1_is_priced_after_subsampling(stride: int, padding: int, inputs: int) -> None:
    conv = nn.Conv2d(8, 64, 1, stride=stride, padding=padding)
    net = nn.Sequential(nn.Conv2d(3, 8, 1), conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(64, 4))
    layer = plan_of(net, (2, 3, 7, 7)).layers["1"]
    assert layer.way == "gather"
    assert (layer.sent_forward_bytes, layer.sent_backward_bytes) == (inputs * 2, inputs * 2)
    assert layer.kept_bytes == inputs * 4


def test_a_dense_layer_crosses_at_its_narrow_end() -> None:
    def way(out_channels: int, stride: int = 1) -> str:
        conv = nn.Conv2d(8, out_channels, 3, padding=1, stride=stride)
        net = nn.Sequential(nn.Conv2d(3, 8, 1), conv, nn.Flatten(1), nn.LazyLinear(4))
        net(torch.zeros(IMAGE))
        return plan_of(net).layers["1"].way

    assert way(10) == "gather"
    assert way(8) == "gather"  # on a tie
    assert way(6) == "scatter_sum"
    assert way(16, stride=2) == "scatter_sum"  # 16 x 4 x 4 behind the stride is less than 8 x 8 x 8


def test_a_layer_called_twice_is_priced_twice() -> None:
    once, twice = (plan_of(Again(times)).layers["again"] for times in (1, 2))
    assert twice.way == once.way == "gather"
    assert twice.sent_forward_bytes == 2 * once.sent_forward_bytes == 2 * 8 * 64 * 4 / 2
    assert twice.parameters == once.parameters


class Again(nn.Module):
    """A dense layer that is called several times."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times
        self.conv = nn.Conv2d(3, 8, 1)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        for _ in range(self.times):
            x = torch.relu(self.again(x))
        return self.head(x.mean((2, 3)))


# ---- Printing, saving, overriding


def test_table() -> None:
    lines = str(plan_alexnet()).splitlines()
    assert lines[0] == "2 lane devices, crossings in float32; bytes are per image and lane device"
    assert lines[1].split("  ")[0] == "layer"
    rows = {line.split()[0]: line for line in lines[3:-2]}
    assert list(rows) == list(plan_alexnet().layers)
    assert re.search(r"Conv2d\s+crosses: gather\s+84\.5 KiB\s+84\.5 KiB\s+169\.0 KiB\s+442,560$", rows["conv3"])
    assert re.search(r"Conv2d\s+stays\s+-\s+-\s+-\s+153,728$", rows["conv2"])
    assert re.search(r"Linear\s+crosses: leave_sum\s+4,000 B\s+-\s+-\s+2,049,000$", rows["fc8"])
    assert re.search(r"^total\s+104\.4 KiB\s+100\.5 KiB\s+185\.0 KiB\s+30,483,112$", lines[-1])
    assert str(plan_alexnet(1)).startswith("1 lane device, ")
    assert not any(line != line.rstrip() for line in lines)


def test_save_and_load(tmp_path: Path) -> None:
    plan = plan_alexnet(dtype=torch.bfloat16)
    plan.save(tmp_path / "plan.yaml")
    loaded = Plan.load(tmp_path / "plan.yaml")
    assert loaded == plan
    assert list(loaded.layers) == list(plan.layers)
    assert str(loaded) == str(plan)
    assert Plan.load(str(tmp_path / "plan.yaml")) == plan


EDITS: dict[str, tuple[Callable[[dict], object], str]] = {
    "another format": (lambda d: d | {"format": "lanes-plan/9"}, "lanes-plan/9"),
    "no format": (lambda d: {k: v for k, v in d.items() if k != "format"}, "None"),
    "a list": (lambda d: [d], "list"),
    "empty": (lambda d: None, "NoneType"),
    "no layers": (lambda d: {k: v for k, v in d.items() if k != "layers"}, "layers"),
    "layers is a list": (lambda d: d | {"layers": list(d["layers"])}, "whole plan"),
    "a layer without a way": (lambda d: d | {"layers": {"conv1": {"type": "Conv2d"}}}, "way"),
    "a layer with too much": (
        lambda d: d | {"layers": {k: v | {"colour": "red"} for k, v in d["layers"].items()}},
        "colour",
    ),
    "a layer that is a word": (lambda d: d | {"layers": {"conv1": "gather"}}, "whole plan"),
    "lane_devices is a word": (lambda d: d | {"lane_devices": "two"}, "two"),
    "a mistyped way": (
        lambda d: d | {"layers": d["layers"] | {"conv3": d["layers"]["conv3"] | {"way": "gahter"}}},
        "gahter",
    ),
}


@pytest.mark.parametrize("edit", EDITS)
def test_edited_plans_are_refused_with_the_file(tmp_path: Path, edit: str) -> None:
    file = tmp_path / "plan.yaml"
    plan_alexnet().save(file)
    change, words = EDITS[edit]
    file.write_text(yaml.safe_dump(change(yaml.safe_load(file.read_text()))))
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        Plan.load(file)
    assert str(file) in str(error.value)


def test_what_is_no_yaml_is_refused_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("format: lanes-plan/1\nlayers: {conv1: [")
    with pytest.raises(ValueError, match="plan") as error:
        Plan.load(file)
    assert str(file) in str(error.value)


def test_override() -> None:
    plan = plan_alexnet(override={"conv3": "scatter_sum", "fc6": "gather", "fc8": "gather+leave"})
    assert [plan.layers[name].way for name in ("conv3", "fc6", "fc7", "fc8")] == [
        "scatter_sum",
        "gather",
        "gather",
        "gather+leave",
    ]
    assert plan.layers["conv3"].sent_forward_bytes == 384 * 13 * 13 * 4 / 2
    assert plan.layers["fc8"].sent_forward_bytes == (4096 + 1000) * 4 / 2
    assert plan.layers["fc8"].parameters == (4096 + 1) * 1000 // 2


def test_override_into_replicated_work() -> None:
    """A dense layer may leave early; what follows reads a whole tensor."""
    plan = plan_alexnet(override={"fc7": "leave_sum"})
    assert plan.layers["fc7"].output == "whole"
    assert plan.layers["relu7"].way == "whole"
    assert WAYS[plan.layers["fc8"].way].input == "whole"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ({"conv33": "gather"}, "'conv33', which the model does not run; did you mean 'conv3'?"),
        ({"zzz": "gather"}, "'zzz', which the model does not run"),
        ({"conv3": "gahter"}, "conv3: there is no way 'gahter'; did you mean 'gather'?"),
        ({"conv3": "qqq"}, "there is no way 'qqq'; ways are stays, "),
        ({"conv2": "gather"}, "conv2: cannot be placed as 'gather' here; it can be stays"),
        ({"conv3": "stays"}, "conv3: cannot be placed as 'stays' here; it can be gather or scatter_sum"),
        ({"conv1": "gather"}, "conv1: cannot be placed as 'gather' here; it can be enter"),
        ({"relu1": "gather"}, "relu1: cannot be placed as 'gather' here; it can be stays"),
        ({"fc8": "gather"}, "fc8: "),
    ],
)
def test_override_errors(override: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        plan_alexnet(override=override)


def test_lane_devices_must_be_a_number_of_devices() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0"):
        plan_alexnet(0)


# ---- What is refused: layers


def test_channels_that_do_not_divide() -> None:
    net = nn.Sequential(nn.Conv2d(3, 12, 1), nn.Conv2d(12, 6, 1), nn.Flatten(1), nn.Linear(384, 4))
    with pytest.raises(PlanError, match=r"^1: 6 channels do not divide over 4 lane devices; use 1, 2, 3 or 6 lane"):
        plan_of(net, lane_devices=4)


def test_groups_that_do_not_divide() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1, groups=2), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 4)
    )
    with pytest.raises(
        PlanError, match=r"^1: 8 channels in 2 groups do not divide over 4 lane devices; use 1 or 2 lane devices$"
    ):
        plan_of(net, lane_devices=4)


def test_lanes_that_do_not_divide() -> None:
    with pytest.raises(PlanError, match=r"2 lanes of 96 channels .* 4 lane devices; use 1 or 2 lane devices$"):
        plan_alexnet(4)
    assert plan_of(SmallAlexNet(lanes=4), (2, 3, 64, 64), 4).lane_devices == 4


def test_one_device_is_the_only_way_out() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 9, 1), nn.Conv2d(9, 8, 1, groups=1), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 4)
    )
    with pytest.raises(PlanError, match=r"^0: 9 channels do not divide over 2 lane devices; use 1 lane device$"):
        plan_of(net)


def test_a_head_of_any_size_is_placed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(1), nn.Linear(512, 7))
    assert plan_of(net).layers["2"].way == "leave_sum"
    with pytest.raises(PlanError, match="cannot be placed as 'gather\\+leave'"):
        plan_of(net, override={"2": "gather+leave"})


class Subclass(nn.Conv2d):
    """May do anything in its forward."""


class Shared(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.one = nn.Conv2d(8, 8, 1)
        self.two = nn.Conv2d(8, 8, 1)
        self.two.weight = self.one.weight
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.one(self.conv(x))).mean((2, 3)))


class Unused(nn.Module):
    """A layer that the forward never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.spare = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.conv(x).mean((2, 3)))


class TwoModes(nn.Module):
    """Reads the image in training and a laned tensor in evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 1)
        self.second = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return self.head((self.second(x) + self.conv(x)).mean((2, 3)))
        return self.head(self.second(self.conv(x)).mean((2, 3)))


class OwnWeight(nn.Module):
    """A parameter of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.scale = nn.Parameter(torch.ones(8, 1, 1))
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((self.conv(x) * self.scale).mean((2, 3)))


def weight_normed_the_old_way() -> nn.Module:
    with pytest.warns(FutureWarning, match="weight_norm"):
        return Layers(nn.utils.weight_norm(nn.Conv2d(8, 8, 1)))


REFUSED_LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "stock response norm": (
        lambda: Layers(nn.LocalResponseNorm(5)),
        ("layer: torch.nn.LocalResponseNorm", "8 channels", "lanes.models.LocalResponseNorm", "use 1 lane device"),
    ),
    "PReLU": (lambda: Layers(nn.PReLU()), ("layer: a PReLU", "'layer.weight' [1]")),
    "LayerNorm": (lambda: Layers(nn.LayerNorm([8, 8, 8])), ("layer: a LayerNorm", "'layer.weight' [8, 8, 8]")),
    "GroupNorm": (lambda: Layers(nn.GroupNorm(4, 8)), ("layer: a GroupNorm", "'layer.weight' [8]")),
    "GroupNorm without parameters": (lambda: Layers(nn.GroupNorm(4, 8, affine=False)), ("layer: does group_norm",)),
    "ConvTranspose": (lambda: Layers(nn.ConvTranspose2d(8, 8, 1)), ("layer: a ConvTranspose2d", "'layer.weight'")),
    "InstanceNorm": (
        lambda: Layers(nn.InstanceNorm2d(8, affine=True)),
        ("layer: a InstanceNorm2d", "'layer.weight' [8]"),
    ),
    "ChannelShuffle": (lambda: Layers(nn.ChannelShuffle(2)), ("layer: does ", "[2, 8, 8, 8]")),
    "Softmax": (lambda: Layers(nn.Softmax(1)), ("layer: does softmax", "[2, 8, 8, 8]")),
    "subclass": (lambda: Layers(Subclass(8, 8, 1)), ("layer: a Subclass", "'layer.weight' [8, 8, 1, 1]")),
    "shared weight": (Shared, ("two: ", "'two.weight' is shared with one")),
    "parametrized": (
        lambda: Layers(nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))),
        ("layer: a ParametrizedConv2d", "cannot be placed"),
    ),
    "weight norm, old": (weight_normed_the_old_way, ("layer: a Conv2d with 'layer.weight_g'", "cannot be placed")),
    "pruned": (
        lambda: Layers(prune.l1_unstructured(nn.Conv2d(8, 8, 1), "weight", 0.5)),
        ("layer: a Conv2d with 'layer.weight_", "cannot be placed"),
    ),
    "never run": (Unused, ("spare: ", "never runs")),
    "parameter of the model": (OwnWeight, ("the model: a OwnWeight", "'scale' [8, 1, 1]")),
    "Linear on maps": (lambda: Layers(nn.Linear(8, 8)), ("layer: a Linear", "2 dimensions", "[2, 8, 8, 8]")),
    "Flatten from 0": (lambda: Layers(nn.Flatten(0), nn.Unflatten(0, (2, 512))), ("layer.0: Flatten", "[2, 8, 8, 8]")),
    "Dropout of other dimensions": (
        lambda: Layers(nn.Flatten(1), nn.Dropout1d()),
        ("layer.1: a Dropout1d", "[2, 512]"),
    ),
}


@pytest.mark.parametrize("title", REFUSED_LAYERS)
def test_refused_layers(title: str) -> None:
    build, words = REFUSED_LAYERS[title]
    net = build()
    with pytest.raises(PlanError) as error:
        plan_of(net)
    for word in words:
        assert word in str(error.value)


def test_linear_on_sequences_is_refused() -> None:
    net = nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU(), nn.Linear(6, 6), nn.Flatten(1), nn.Linear(48, 4))
    with pytest.raises(PlanError, match=r"^2: a Linear is placed on batches of 2 dimensions .* \[2, 8, 6\]"):
        plan_of(net, (2, 3, 6))


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 2, 8, 8)])
def test_unbatched_images_are_refused(shape: tuple[int, ...]) -> None:
    net = nn.Sequential({3: nn.Conv2d, 4: nn.Conv3d}[len(shape)](3, 8, 1), nn.ReLU())
    with pytest.raises(PlanError, match=rf"^0: .*batches of {len(shape) + 1} dimensions.*reads \[3, "):
        plan_of(net, shape)


def test_training_and_evaluation_that_differ_are_refused() -> None:
    with pytest.raises(PlanError, match=r"^second: runs as 'enter' on a whole tensor in training and as '\w+' on a la"):
        plan_of(TwoModes(), (2, 8, 4, 4))


def test_a_grouped_layer_on_the_image_alone_cannot_be_made_whole() -> None:
    with pytest.raises(PlanError, match="end in a dense layer"):
        plan_of(nn.Conv2d(4, 8, 1, groups=4), (2, 4, 8, 8))


def test_a_layer_called_by_keyword_is_refused() -> None:
    class ByKeyword(Again):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.again(input=self.conv(x)).mean((2, 3)))

    with pytest.raises(PlanError, match=r"^again: .* positional"):
        plan_of(ByKeyword(1))


# ---- What is refused: operations between layers


def divide_by_count_of_channels(net: nn.Module, x: Tensor) -> Tensor:
    return x / x.shape[1]


def branch_on_count(net: nn.Module, x: Tensor) -> Tensor:
    return x * 2 if x.shape[1] == 8 else x


def branch_on_truth(net: nn.Module, x: Tensor) -> Tensor:
    return x * 2 if x.size(1) else x


REFUSED_GLUE: dict[str, tuple[Callable[[nn.Module, Tensor], Tensor], str]] = {
    "softmax": (lambda net, x: F.softmax(x, 1), "softmax"),
    "softmax method": (lambda net, x: x.softmax(1), "softmax"),
    "log_softmax": (lambda net, x: torch.log_softmax(x, 1), "log_softmax"),
    "cat": (lambda net, x: torch.cat([x, x], 1), "cat"),
    "chunk": (lambda net, x: x.chunk(2, 1)[0], "chunk"),
    "slice of channels": (lambda net, x: x[:, :4], "getitem"),
    "permute": (lambda net, x: x.permute(0, 2, 1, 3), "permute"),
    "transpose": (lambda net, x: x.transpose(1, 2), "transpose"),
    "view, literal": (lambda net, x: x.view(2, 512), "view"),
    "view, batch free": (lambda net, x: x.view(-1, 512), "view"),
    "view into groups": (lambda net, x: x.view(x.size(0), 2, 4, 8, 8).flatten(1), "view"),
    "reshape, literal": (lambda net, x: torch.reshape(x, (2, 512)), "reshape"),
    "flatten all": (lambda net, x: torch.flatten(x).view(2, -1), "flatten"),
    "mean over channels": (lambda net, x: x - x.mean(1, keepdim=True), "mean"),
    "mean over all": (lambda net, x: x - x.mean(), "mean"),
    "sum over the batch": (lambda net, x: x + x.sum(0, keepdim=True), "sum"),
    "mean over (1, 2, 3)": (lambda net, x: x / x.mean((1, 2, 3), keepdim=True), "mean"),
    "mean by negative dim": (lambda net, x: x - x.mean(-3, keepdim=True), "mean"),
    "max over channels": (lambda net, x: x - x.amax(1, keepdim=True), "amax"),
    "normalize": (lambda net, x: F.normalize(x), "normalize"),
    "local_response_norm": (lambda net, x: F.local_response_norm(x, 3), "lanes.models.LocalResponseNorm"),
    "layer_norm": (lambda net, x: F.layer_norm(x, (8, 8, 8)), "layer_norm"),
    "layer_norm over its own shape": (lambda net, x: F.layer_norm(x, x.shape[1:]), "channel count"),
    "group_norm": (lambda net, x: F.group_norm(x, 4), "group_norm"),
    "pixel_shuffle": (lambda net, x: F.pixel_shuffle(x, 2), "pixel_shuffle"),
    "matrix product": (lambda net, x: x @ x, "matmul"),
    "with a constant per channel": (lambda net, x: x + torch.ones(8, 1, 1), "add"),
    "with a constant map": (lambda net, x: x * torch.ones(2, 8, 8, 8), "mul"),
    "dropout while training": (lambda net, x: F.dropout(x, 0.5, net.training), "nn.Dropout"),
    "dropout by default": (lambda net, x: F.dropout(x), "nn.Dropout"),
    "channel dropout while training": (lambda net, x: F.dropout2d(x, 0.5, net.training), "dropout2d"),
    "noise": (lambda net, x: x + torch.randn_like(x), "randn_like"),
    "count of channels divides": (divide_by_count_of_channels, "channel count"),
    "count of channels multiplies": (lambda net, x: x.size(1) * x, "channel count"),
    "count of channels by method": (lambda net, x: x.mul(x.size(1)), "channel count"),
    "count of channels as a factor": (lambda net, x: torch.mul(x, x.shape[1]), "channel count"),
    "count of channels as a power": (lambda net, x: x * x.shape[1] ** -0.5, "channel count"),
    "count of channels as alpha": (lambda net, x: torch.add(x, x, alpha=x.shape[1]), "channel count"),
    "count of channels as a bound": (lambda net, x: x.clamp(max=x.shape[1]), "channel count"),
    "count of all elements": (lambda net, x: x / (x.numel() / 64), "channel count"),
    "count of channels in if": (branch_on_count, "channel count"),
    "count of channels as truth": (branch_on_truth, "channel count"),
    "count of channels in a view": (lambda net, x: x.view(x.size(0), x.size(1) * 64), "channel count"),
    "count of channels by negative dim": (lambda net, x: x * (x.size(-3) + 1), "channel count"),
    "product of the shape": (lambda net, x: x.view(x.shape[0], x.shape[1:].numel()), "channel count"),
}


@pytest.mark.filterwarnings("ignore:dropout2d")
@pytest.mark.parametrize("title", REFUSED_GLUE)
def test_refused_glue(title: str) -> None:
    glue, words = REFUSED_GLUE[title]
    net = Glued(glue)
    with pytest.raises(PlanError, match=re.escape(words)) as error:
        plan_of(net)
    assert str(error.value).startswith("the model's forward: ")
    assert "[2, 8" in str(error.value)
    assert str(error.value).endswith(", or use 1 lane device")
    assert plan_of(net, lane_devices=1).layers["conv"].way == "enter"  # one device accepts any glue


def test_refused_glue_inside_a_module_names_the_module() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), Inner(), nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 4))
    with pytest.raises(PlanError, match=r"^1: does softmax on \[2, 8, 8, 8\]"):
        plan_of(net)


class Inner(nn.Module):
    """Glue in a module of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return x.softmax(1)


POOLS_OVER_CHANNELS: dict[str, tuple[nn.Module | Callable[[Tensor], Tensor], bool]] = {
    "max_pool1d of vectors": (partial(F.max_pool1d, kernel_size=3, stride=1), True),
    "avg_pool1d of vectors": (partial(F.avg_pool1d, kernel_size=3, stride=1), True),
    "adaptive_avg_pool1d of vectors": (partial(F.adaptive_avg_pool1d, output_size=3), True),
    "max_pool3d of maps": (partial(F.max_pool3d, kernel_size=3, stride=1, padding=1), False),
    "MaxPool1d of vectors": (nn.MaxPool1d(3, 1), True),
    "AdaptiveMaxPool1d of vectors": (nn.AdaptiveMaxPool1d(3), True),
    "AvgPool3d of maps": (nn.AvgPool3d(3, 1, 1), False),
    "AdaptiveAvgPool3d of maps": (nn.AdaptiveAvgPool3d((4, 8, 8)), False),
}


@pytest.mark.parametrize("title", POOLS_OVER_CHANNELS)
def test_pooling_that_takes_channels_for_a_spatial_dimension_is_refused(title: str) -> None:
    """PyTorch reads [N, C] in a 1-D pooling as one unbatched image: it pools over channels, across lanes."""
    pool, vectors = POOLS_OVER_CHANNELS[title]
    net = Glued(lambda net, x: pool(x), vectors)
    if isinstance(pool, nn.Module):
        net.inner = pool
    with pytest.raises(PlanError, match=r"\[2, 8"):
        plan_of(net)


# ---- What is accepted

ACCEPTED_GLUE: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "residual add": lambda net, x: x + torch.relu(x),
    "residual add in place": lambda net, x: torch.relu(x).add_(x),
    "augmented add": lambda net, x: added_in_place(x),
    "view by batch size": lambda net, x: x.view(x.size(0), -1),
    "view by shape": lambda net, x: x.view(x.shape[0], -1),
    "view by len": lambda net, x: x.view(len(x), -1),
    "view of a tuple": lambda net, x: x.view((x.size(0), -1)),
    "reshape": lambda net, x: torch.reshape(x, (x.size(0), -1)),
    "reshape method": lambda net, x: x.reshape(x.size(0), -1),
    "reshape by keyword": lambda net, x: x.reshape(shape=(x.size(0), -1)),
    "batch size by keyword": lambda net, x: x.view(x.size(dim=0), -1),
    "flatten": lambda net, x: torch.flatten(x, 1),
    "flatten by keyword": lambda net, x: torch.flatten(x, start_dim=1),
    "flatten by keywords only": lambda net, x: torch.flatten(input=x, start_dim=1),
    "flatten method": lambda net, x: x.flatten(1),
    "flatten from the end": lambda net, x: x.flatten(-3),
    "flatten maps": lambda net, x: x.flatten(2).mean(2),
    "relu in place": lambda net, x: F.relu(x, inplace=True),
    "relu_": lambda net, x: torch.relu_(x.clone()),
    "leaky_relu": lambda net, x: F.leaky_relu(x, 0.1),
    "mean of maps": lambda net, x: x.mean((2, 3)),
    "mean of maps by keyword": lambda net, x: x.mean(dim=(-2, -1), keepdim=True),
    "mean of maps, torch.": lambda net, x: torch.mean(x, [2, 3]),
    "mean by keywords only": lambda net, x: torch.mean(input=x, dim=(2, 3)),
    "max of columns": lambda net, x: x.amax(3).amax(-1),
    "functional max_pool": lambda net, x: F.max_pool2d(x, 2),
    "functional max_pool, torch.": lambda net, x: torch.max_pool2d(x, 2),
    "functional avg_pool": lambda net, x: F.avg_pool2d(x, 2),
    "functional adaptive pool": lambda net, x: F.adaptive_avg_pool2d(x, 1),
    "pool over the image": lambda net, x: F.avg_pool2d(x, x.shape[2:]),
    "gating": lambda net, x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    "arithmetic with numbers": lambda net, x: (2 * x - 1) / 3 + 0.5,
    "arithmetic with spatial sizes": lambda net, x: x / (x.shape[2] * x.size(3)),
    "if on spatial sizes": lambda net, x: F.max_pool2d(x, 2) if x.shape[2] > 4 and x.dim() == 4 else x,
    "dropout in evaluation only": lambda net, x: F.dropout(x, 0.5, training=False),
    "contiguous, clone, float": lambda net, x: x.contiguous().clone().float(),
    "to a data type": lambda net, x: x.to(torch.float64).to(torch.float32),
}


def added_in_place(x: Tensor) -> Tensor:
    y = torch.relu(x)
    y += x
    return y


@pytest.mark.parametrize("title", ACCEPTED_GLUE)
def test_accepted_glue(title: str) -> None:
    plan = plan_of(Glued(ACCEPTED_GLUE[title]))
    assert plan.layers["conv"].way == "enter"
    assert plan.layers["head"].way == "leave_sum"
    assert plan.layers["head"].input == "laned"


ACCEPTED_LAYERS: dict[str, Callable[[], nn.Module]] = {
    "batch norm": lambda: nn.BatchNorm2d(8),
    "batch norm without statistics": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "batch norm with a cumulative average": lambda: nn.BatchNorm2d(8, momentum=None),
    "response norm in lanes": lambda: LocalResponseNorm(5, lanes=4),
    "dropout": lambda: nn.Dropout(0.5),
    "channel dropout": lambda: nn.Dropout2d(0.5),
    "grouped": lambda: nn.Conv2d(8, 16, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(8, 8, 3, groups=8, padding="same"),
    "reflecting": lambda: nn.Conv2d(8, 8, 3, groups=2, padding=1, padding_mode="reflect"),
    "pooled vectors": lambda: nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), GroupedLinear(8, 8, 2)),
    "activation": lambda: nn.Sequential(nn.Hardswish(), nn.LeakyReLU(0.1, inplace=True), nn.GELU()),
}


@pytest.mark.parametrize("title", ACCEPTED_LAYERS)
def test_accepted_layers(title: str) -> None:
    plan = plan_of(Layers(ACCEPTED_LAYERS[title]()))
    assert {layer.way for name, layer in plan.layers.items() if name.startswith("layer")} == {"stays"}
    assert plan.layers["head"].way == "leave_sum"


class TwoNames(nn.Module):
    """One module registered under two names, and run once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.body = nn.Sequential(nn.Conv2d(8, 8, 1), nn.ReLU())
        self.alias = self.body[0]
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.conv(x)).mean((2, 3)))


def test_a_module_under_two_names_is_one_layer() -> None:
    plan = plan_of(TwoNames())
    assert list(plan.layers) == ["conv", "body.0", "body.1", "head"]
    assert plan.parameters == (3 * 8 + 8 + 8 * 8 + 8 + 8 * 4) // 2 + 4


class TwoHeads(nn.Module):
    """Two outputs, one of them laned maps."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)
        self.mid = nn.Conv2d(8, 8, 1, groups=4)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.mid(self.conv(x))
        return {"maps": x, "logits": self.head(x.mean((2, 3)))}


def test_laned_outputs_leave() -> None:
    plan = plan_of(TwoHeads())
    assert plan.layers["mid"].way == "stays+leave"
    assert plan.layers["mid"].output == "whole"
    assert plan.layers["head"].input == "whole"
    assert plan.layers["head"].output == "whole"


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_every_kind_of_layer_in_1_2_and_3_dimensions(dims: int) -> None:
    net = networks.Mixed(dims)
    plan = plan_of(net, (2, 3, *[8] * dims), 4)
    total, bias = sum(p.numel() for p in net.parameters()), net.head.bias.numel()
    assert plan.parameters == (total - bias) // 4 + bias
    assert ways(plan) | {"wide": "scatter_sum", "skip": "gather", "head": "leave_sum", "conv4": "stays"} == ways(plan)


# ---- The model is left as it was


def test_planning_leaves_the_model_as_it_was() -> None:
    torch.manual_seed(0)
    net = networks.Mixed()
    net(torch.randn(4, 3, 16, 16)).sum().backward()
    net.bn1.eval()
    net.drop5.eval()
    net.conv2.weight.requires_grad_(False)
    before = copy.deepcopy(net)
    grads = [p.grad.clone() for p in net.parameters()]
    kept = {name: (id(p), id(p.grad), p.data_ptr()) for name, p in net.named_parameters()}
    image = torch.randn(4, 3, 16, 16, requires_grad=True)
    read, stream = image.detach().clone(), torch.get_rng_state()
    handles = len(torch.nn.modules.module._global_forward_hooks), len(torch.nn.modules.module._global_forward_pre_hooks)
    lanes.plan(net, image, lane_devices=2)
    with pytest.raises(PlanError):
        lanes.plan(net, image, lane_devices=3)
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(image, read)
    assert image.grad is None
    assert {name: (id(p), id(p.grad), p.data_ptr()) for name, p in net.named_parameters()} == kept
    for (name, ours), theirs in zip(net.state_dict().items(), before.state_dict().values(), strict=True):
        assert torch.equal(ours, theirs), name
        assert ours.device.type == "cpu"
    for (name, ours), theirs, grad in zip(net.named_parameters(), before.parameters(), grads, strict=True):
        assert ours.requires_grad == theirs.requires_grad, name
        assert torch.equal(ours.grad, grad), name
    for (name, ours), theirs in zip(net.named_modules(), before.modules(), strict=True):
        assert type(ours) is type(theirs)
        assert ours.training == theirs.training, name
    assert net.training
    assert not net.bn1.training
    assert handles == (
        len(torch.nn.modules.module._global_forward_hooks),
        len(torch.nn.modules.module._global_forward_pre_hooks),
    )


def test_planning_leaves_the_model_as_it_was_when_its_forward_raises() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(0.5), nn.Conv2d(9, 8, 1)).eval()
    hooks = len(torch.nn.modules.module._global_forward_hooks)
    with pytest.raises(PlanError, match=r"^2: the forward fails on an example of .*channel.*check the image size"):
        plan_of(net)
    assert not any(module.training for module in net.modules())
    assert not any(p.is_meta for p in net.parameters())
    assert len(torch.nn.modules.module._global_forward_hooks) == hooks
    assert torch.zeros(1).device.type == "cpu"


def test_meta_and_real_models_have_the_same_plan() -> None:
    real = lanes.plan(SmallAlexNet(lanes=4), torch.randn(2, 3, 64, 64), lane_devices=2)
    with torch.device("meta"):
        net = SmallAlexNet(lanes=4)
    assert lanes.plan(net, torch.empty(2, 3, 64, 64, device="meta"), lane_devices=2) == real
    assert dataclasses.asdict(real)["lane_devices"] == 2
