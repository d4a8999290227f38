"""What the planner refuses, and in which words."""

import re
from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import prune

from lanes import PlanError, place
from lanes.models import SmallAlexNet
from tests.planned import Again, Glued, Layers, plan_alexnet, plan_of

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
    "LayerNorm over columns": (
        lambda: Layers(nn.LayerNorm(8)),
        ("layer: LayerNorm over [8] of [2, 8, 8, 8]", "lanes.models.ChannelLayerNorm"),
    ),
    "ConvTranspose": (lambda: Layers(nn.ConvTranspose2d(8, 8, 1)), ("layer: a ConvTranspose2d", "'layer.weight'")),
    "InstanceNorm": (
        lambda: Layers(nn.InstanceNorm2d(8, affine=True)),
        ("layer: InstanceNorm2d", "nn.GroupNorm(8, 8, affine=True)"),
    ),
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


def test_a_shuffle_by_hand_is_told_of_the_module() -> None:
    class ByHand(Again):
        def __init__(self, by_hand: Callable[[Tensor], Tensor]) -> None:
            super().__init__(1)
            self.by_hand = by_hand

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.by_hand(self.again(self.conv(x))).mean((2, 3)))

    with pytest.raises(PlanError, match=r"does channel_shuffle on .* use the module nn.ChannelShuffle"):
        plan_of(ByHand(lambda x: F.channel_shuffle(x, 2)))
    with pytest.raises(PlanError, match=r"does reshape on .* the module nn.ChannelShuffle for a shuffle"):
        plan_of(ByHand(lambda x: x.reshape(x.shape[0], 2, -1, 8, 8).transpose(1, 2).flatten(1, 2)))


@pytest.mark.parametrize("affine", [False, True])
def test_instance_norm_is_told_of_group_norm(affine: bool) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.InstanceNorm2d(8, affine=affine), nn.Flatten(1), nn.Linear(512, 4))
    with pytest.raises(PlanError, match=rf"^1: InstanceNorm2d .* nn.GroupNorm\(8, 8, affine={affine}\) computes"):
        plan_of(net)
    if not affine:
        assert plan_of(net, lane_devices=1).lane_devices == 1


def test_names_and_plans_in_the_wrong_place() -> None:
    with pytest.raises(ValueError, match=r"model must be a module, got 'resnet50'; lanes.models.build"):
        plan_of("resnet50")  # type: ignore[arg-type]
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(1), nn.Linear(512, 4))
    with pytest.raises(ValueError, match="place takes a model, its plan and a mesh, got int, Plan"):
        place(net, 2, plan_of(net))  # type: ignore[arg-type]


def test_a_sum_of_laned_tensors_cannot_be_made_whole() -> None:
    class Backbone(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.branch = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, groups=4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            return torch.relu(x + self.branch(x))

    with pytest.raises(PlanError, match=r"output \[2, 8, 8, 8\] is made by add of 2 tensors, .*; end in a dense layer"):
        plan_of(Backbone())
    assert plan_of(Backbone(), lane_devices=1).lane_devices == 1


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
    "cat of rows": (lambda net, x: torch.cat([x, x], 2), "cat"),
    "cat of images": (lambda net, x: torch.cat([x, x]), "cat"),
    "unsqueeze of channels": (lambda net, x: x.unsqueeze(1).squeeze(1), "unsqueeze"),
    "squeeze of whatever is 1": (lambda net, x: x.squeeze(), "squeeze"),
    "channels by list": (lambda net, x: x[:, [0, 1]], "getitem"),
    "some images": (lambda net, x: x[:1], "getitem"),
    "images by ellipsis": (lambda net, x: x[:, ..., :4, :, :], "getitem"),
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
