"""The planner: what it decides for the published network, what it accepts, and that it leaves the model alone."""

import copy
import dataclasses
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import lanes
from lanes import PlanError
from lanes.models import GroupedLinear, LocalResponseNorm, SmallAlexNet
from lanes.ways import WAYS
from tests import networks
from tests.planned import IMAGE, Again, Glued, Layers, alexnet, plan_alexnet, plan_of, ways

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


# ---- Overriding


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
    "spatial slices": lambda net, x: x[:, :, 1:-1, ::2][..., 1:, :],
    "new places": lambda net, x: x * x.mean((2, 3))[:, :, None, None],
    "unsqueeze and squeeze": lambda net, x: x * x.mean((2, 3)).unsqueeze(-1).unsqueeze(dim=2).squeeze(3).unsqueeze(3),
    "cat": lambda net, x: torch.cat([x, torch.relu(x), x], 1),
    "cat by keyword": lambda net, x: torch.concat(tensors=(x, torch.cat([x, x], -3)), dim=1),
    "sum of equal orders": lambda net, x: torch.cat([x, x], 1) + torch.relu(torch.cat([x, x], 1)),
    "flattened cat": lambda net, x: torch.cat([x, x], 1).flatten(1),
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


def test_a_forward_may_begin_with_a_constant() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            shift = torch.full((1, 1, 1, 1), 0.5)
            return self.head(self.conv(x - shift).mean((2, 3)))

    assert ways(plan_of(Shifted())) == {"conv": "enter", "head": "leave_sum"}


def test_one_device_meets_nobody_and_what_is_owed_is_named() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Conv2d(3, 16, 1), nn.Conv2d(3, 16, 1)
            self.grouped, self.head = nn.Conv2d(32, 32, 3, groups=4), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.grouped(torch.cat([self.left(x), self.right(x)], 1)).mean((2, 3)))

    assert "crosses" not in str(plan_of(Joined(), lane_devices=1)).replace("stays | crosses", "")
    assert "crosses: shuffle (16+16), stays" in str(plan_of(Joined()))
