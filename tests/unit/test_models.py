"""The models: published numbers of parameters, shapes, initial weights, and errors that name the way out."""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lanes.models import AlexNet, GroupedLinear, LocalResponseNorm, SmallAlexNet
from tests.building import on_meta

UNCROSSED = {"conv2", "conv3", "conv4", "conv5", "fc6", "fc7"}


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "published"),
    [
        ({}, 60_965_224),
        ({"lanes": 1}, 62_378_344),
        ({"lanes": 2, "cross": tuple(UNCROSSED)}, 62_378_344),
    ],
)
def test_alexnet_has_the_published_number_of_parameters(arguments: dict, published: int) -> None:
    assert num_parameters(on_meta(AlexNet, **arguments)) == published


def test_half_the_kernels_leaves_the_last_convolution_and_fully_connected_layers_whole() -> None:
    net = on_meta(AlexNet, lanes=1, width=0.5)
    outputs = [net.get_submodule(f"conv{i}").out_channels for i in range(1, 6)]
    assert outputs == [48, 128, 192, 192, 256]
    assert (net.fc6.in_features, net.fc6.out_features) == (9216, 4096)


def test_alexnet_shapes() -> None:
    net = on_meta(AlexNet)
    shapes = {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda layer, args, y, name=name: shapes.update({name: tuple(y.shape[1:])}))
    assert net(torch.empty(2, 3, 224, 224, device="meta")).shape == (2, 1000)
    assert list(shapes) == [name for name, _ in net.named_children()]  # attributes stand in the order of the paper
    assert shapes["conv1"] == shapes["norm1"] == (96, 55, 55)
    assert shapes["pool1"] == (96, 27, 27)
    assert shapes["conv2"] == shapes["norm2"] == (256, 27, 27)
    assert shapes["pool2"] == (256, 13, 13)
    assert shapes["conv3"] == shapes["conv4"] == (384, 13, 13)
    assert shapes["conv5"] == (256, 13, 13)
    assert shapes["flatten"] == (256 * 6 * 6,)
    assert shapes["drop6"] == shapes["drop7"] == (4096,)


def test_layers_are_grouped_unless_they_cross() -> None:
    net = on_meta(AlexNet)
    assert [net.get_submodule(f"conv{i}").groups for i in range(1, 6)] == [1, 2, 1, 2, 2]
    assert all(type(net.get_submodule(name)) is nn.Linear for name in ("fc6", "fc7", "fc8"))
    assert net.lanes == net.norm1.lanes == net.norm2.lanes == 2


@pytest.mark.parametrize("model", [AlexNet, SmallAlexNet])
def test_lanes_without_crossings_meet_only_in_the_logits(model: type[nn.Module]) -> None:
    net = on_meta(model, lanes=4, cross=())
    for name, layer in net.named_children():
        if name in UNCROSSED:
            assert layer.groups == 4
            assert isinstance(layer, nn.Conv2d if name.startswith("conv") else GroupedLinear)
        if isinstance(layer, LocalResponseNorm):
            assert layer.lanes == 4
    assert type(net.fc8) is nn.Linear


def test_without_crossings_a_lane_ignores_the_other_lanes() -> None:
    net = SmallAlexNet(lanes=4, cross=(), image_size=32).eval()
    images = torch.randn(2, 3, 32, 32)
    features = {}
    net.drop7.register_forward_hook(lambda layer, args, y: features.update(y=y.detach()))
    net(images)
    before = features["y"]
    with torch.no_grad():
        net.conv1.weight[12:24].mul_(-2)  # the second lane's kernels
    net(images)
    changed = (features["y"] != before).any(0).unflatten(0, (4, -1)).any(1)
    assert changed.tolist() == [False, True, False, False]


def test_alexnet_starts_as_in_the_paper() -> None:
    net = AlexNet(num_classes=10)
    for name in ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"):
        layer = net.get_submodule(name)
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert abs(layer.weight.mean().item()) < 2e-4
        assert layer.bias.unique().tolist() == [float(name in ("conv2", "conv4", "conv5", "fc6", "fc7"))]


@pytest.mark.parametrize("image_size", range(28, 65))
def test_small_alexnet_takes_images_of_28_to_64_pixels(image_size: int) -> None:
    net = on_meta(SmallAlexNet, image_size=image_size, lanes=4, num_classes=7)
    assert net.image_shape == (3, image_size, image_size)
    assert net(torch.empty(2, *net.image_shape, device="meta")).shape == (2, 7)


@pytest.mark.parametrize("model", [AlexNet, SmallAlexNet])
def test_grey_images_have_one_channel(model: type[nn.Module]) -> None:
    net = on_meta(model, in_channels=1, num_classes=7)
    assert net.image_shape[0] == net.conv1.in_channels == 1
    assert net(torch.empty(2, *net.image_shape, device="meta")).shape == (2, 7)


def test_a_seed_gives_the_weights_that_it_always_gave() -> None:
    """Golden sums of the first and the last layer: whoever moves them makes published runs unrepeatable."""
    torch.manual_seed(7)
    net = SmallAlexNet()
    assert net.conv1.weight.double().sum().item() == pytest.approx(1.3416505, rel=1e-5)
    assert net.fc8.weight.double().sum().item() == pytest.approx(-0.3977207, rel=1e-5)


@pytest.mark.parametrize("lanes", [1, 2, 4, 8])
def test_small_alexnet_learns(lanes: int) -> None:
    torch.manual_seed(0)
    net = SmallAlexNet(num_classes=4, lanes=lanes, image_size=32, dropout=0.0)
    images, labels = torch.randn(8, 3, 32, 32), torch.arange(8) % 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.003, momentum=0.9)
    for _ in range(50):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5  # measured 0.05 or less; chance is ln 4 = 1.39


def test_meta_then_init_layer_equals_building_at_once() -> None:
    torch.manual_seed(3)
    at_once = SmallAlexNet(lanes=4)
    torch.manual_seed(3)
    again = SmallAlexNet(lanes=4)
    deferred = on_meta(SmallAlexNet, lanes=4)
    assert all(parameter.is_meta for parameter in deferred.parameters())
    torch.manual_seed(3)
    for name, layer in deferred.named_children():
        layer.to_empty(device="cpu")
        deferred.init_layer(name, layer)
    for other in (again, deferred):
        torch.testing.assert_close(other.state_dict(), at_once.state_dict(), rtol=0, atol=0)


def test_constructor_draws_the_numbers_of_init_layer_only() -> None:
    torch.manual_seed(5)
    net = SmallAlexNet(image_size=32)
    after_building = torch.get_rng_state()
    torch.manual_seed(5)
    for name, layer in net.named_children():
        net.init_layer(name, layer)
    assert torch.equal(after_building, torch.get_rng_state())
    on_meta(SmallAlexNet)
    assert torch.equal(after_building, torch.get_rng_state())


def test_builds_and_runs_without_memory_for_a_dry_run() -> None:
    with FakeTensorMode():
        net = AlexNet(lanes=2)
        assert net(torch.empty(2, 3, 224, 224)).shape == (2, 1000)


def test_grouped_linear_is_a_block_diagonal_linear() -> None:
    layer = GroupedLinear(12, 8, groups=4).double()
    x = torch.randn(5, 12, dtype=torch.float64)
    dense = torch.block_diag(*layer.weight.squeeze(-1).chunk(4))
    assert layer.weight.shape == (8, 3, 1)
    torch.testing.assert_close(layer(x), nn.functional.linear(x, dense, layer.bias), rtol=1e-14, atol=1e-15)
    assert GroupedLinear(12, 8, groups=4, bias=False).bias is None


def test_grouped_linear_refuses() -> None:
    with pytest.raises(ValueError, match="12 -> 8 features do not divide over 3 groups"):
        GroupedLinear(12, 8, groups=3)
    with pytest.raises(ValueError, match=r"expected \[N, 12\], got shape \[12\]"):
        GroupedLinear(12, 8, groups=4)(torch.zeros(12))


@pytest.mark.parametrize("model", [AlexNet, SmallAlexNet])
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lanes": 5}, r"conv1: (96|48) channels do not divide over 5 lanes; use one of \[1, 2, 4, 8, 16"),
        ({"lanes": 0}, "lanes must be a whole number of at least 1, got 0"),
        ({"cross": ("conv33",)}, r"'conv33'.*did you mean 'conv3'\? \(allowed: conv2, conv3, conv4, conv5, fc6, fc7\)"),
        ({"cross": ("fc8",)}, "no layer 'fc8' that may cross"),
        ({"cross": "conv3"}, "single string"),
        ({"width": 0.3}, r"conv1: width 0.3 of (96|48) kernels is .*use a multiple of 1/"),
        ({"width": 1e-12}, "not a positive whole number"),
        ({"width": float("nan")}, "width must be a positive number"),
        ({"num_classes": 0}, "num_classes must be a whole number of at least 1"),
        ({"in_channels": 0}, "in_channels must be a whole number of at least 1, got 0"),
        ({"dropout": 1.5}, "dropout probability"),
    ],
)
def test_models_refuse_bad_arguments(model: type[nn.Module], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(model, **arguments)


def test_small_alexnet_refuses_other_image_sizes() -> None:
    with pytest.raises(ValueError, match="image_size must be from 28 to 64 pixels, got 224"):
        SmallAlexNet(image_size=224)
