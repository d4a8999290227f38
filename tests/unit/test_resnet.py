"""Residual networks: published sizes, torchvision's names, initial weights, errors that name the way out."""

import pytest
import torch
from torch import nn

import lanes
from lanes.models import CifarResNeXt, ResNet
from lanes.models.resnet import EQUAL_COST_WIDTHS
from tests.building import check_deferred_building, on_meta


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def multiply_adds(model: nn.Module) -> int:
    return lanes.grouping_report(model).multiply_adds


def part_of(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(num_parameters(layer) for layer in model.modules() if isinstance(layer, kind))


@pytest.mark.parametrize(
    ("arguments", "parameters", "giga_multiply_adds"),
    [
        ({}, 25_557_032, 4.09),
        ({"depth": 101}, 44_549_160, 7.80),
        ({"depth": 152}, 60_192_808, 11.51),
        ({"cardinality": 32, "base_width": 4}, 25_028_904, 4.23),
        ({"depth": 101, "cardinality": 32, "base_width": 8}, 88_791_336, 16.41),
        ({"depth": 101, "cardinality": 64, "base_width": 4}, 83_455_272, 15.46),
    ],
)
def test_networks_have_the_published_sizes(arguments: dict, parameters: int, giga_multiply_adds: float) -> None:
    """As torchvision's documentation of its models tells them."""
    net = on_meta(ResNet, **arguments)
    assert num_parameters(net) == parameters
    assert round(multiply_adds(net) / 1e9, 2) == giga_multiply_adds


def test_resnext_101_32x4d_has_the_published_size() -> None:
    """It is not among torchvision's; the authors' notes say about 7.8 G."""
    net = on_meta(ResNet, depth=101, cardinality=32, base_width=4)
    assert num_parameters(net) == 44_177_704
    assert multiply_adds(net) == pytest.approx(7.8e9, rel=0.03)


@pytest.mark.parametrize(
    ("root", "groups", "counted_parameters", "counted_multiply_adds"),
    [
        (1, (1, 1, 1, 1), 25_503_976, 3_857_974_312),
        (2, (2, 1, 1, 1), 25_448_680, 3_684_566_056),
        (4, (4, 2, 1, 1), 25_126_120, 3_366_650_920),
        (8, (8, 4, 2, 1), 23_195_368, 2_860_876_840),
        (16, (16, 8, 4, 2), 18_691_048, 2_434_581_544),
        (32, (32, 16, 8, 4), 16_438_888, 2_221_433_896),
        (64, (64, 32, 16, 8), 15_312_808, 2_114_860_072),
    ],
)
def test_roots_have_the_published_sizes(
    root: int, groups: tuple[int, ...], counted_parameters: int, counted_multiply_adds: int
) -> None:
    """To the last digit, from the tables of Ioannou's thesis (github.com/yanii/phd-thesis, rootdata/resnet50ma*.csv).

    They count no batch norms, but 64 biases of conv1, which Caffe's ResNet-50 has; and the biases of conv1 and of the
    linear layer as one multiply-add each.
    """
    net = on_meta(ResNet, root=root, strided="conv1")
    found = [{block.conv2.groups for block in stage} for stage in (net.layer1, net.layer2, net.layer3, net.layer4)]
    assert found == [{count} for count in groups]
    assert num_parameters(net) - part_of(net, nn.BatchNorm2d) + 64 == counted_parameters
    assert multiply_adds(net) + 64 + 1000 == counted_multiply_adds


def test_root_16_saves_what_it_is_known_for() -> None:
    net, plain = on_meta(ResNet, root=16, strided="conv1"), on_meta(ResNet, strided="conv1")
    assert num_parameters(net) / num_parameters(plain) - 1 == pytest.approx(-0.27, abs=0.01)
    assert multiply_adds(net) / multiply_adds(plain) - 1 == pytest.approx(-0.37, abs=0.01)
    assert multiply_adds(plain) == pytest.approx(3.86e9, rel=0.001)


def test_cardinalities_of_the_papers_table_cost_the_same() -> None:
    nets = [on_meta(ResNet, cardinality=g, base_width=width) for g, width in EQUAL_COST_WIDTHS.items()]
    widths = [net.layer1[0].conv2.out_channels for net in nets]
    assert widths == [64, 80, 96, 112, 128]
    costs = [multiply_adds(net) for net in nets]
    assert max(costs) / min(costs) < 1.05
    assert all(25.0e6 < num_parameters(net) < 25.7e6 for net in nets)


@pytest.mark.parametrize(
    ("depth", "stem", "base_widths", "mega_multiply_adds", "widths"),
    [
        (11, 12, (12, 7.5, 4.5, 2.625), 11.5, ((12, 24, 48), (14, 30, 60), (16, 36, 72), (16, 40, 80))),
        (20, 16, (16, 10, 6, 3.5), 34.1, ((16, 32, 64), (20, 40, 80), (24, 48, 96), (24, 56, 112))),
    ],
)
def test_small_cardinalities_cost_the_same(
    depth: int, stem: int, base_widths: tuple, mega_multiply_adds: float, widths: tuple
) -> None:
    """The paper's table, scaled with the stem."""
    costs = []
    for (g, papers_width), base_width, expected in zip(EQUAL_COST_WIDTHS.items(), base_widths, widths, strict=False):
        assert papers_width * stem / 64 == base_width
        net = on_meta(CifarResNeXt, depth=depth, stem_channels=stem, cardinality=g, base_width=base_width)
        layers = [stage[0].conv2 for stage in (net.layer1, net.layer2, net.layer3)]
        assert tuple(layer.out_channels for layer in layers) == expected
        assert {layer.groups for layer in layers} == {g}
        costs.append(multiply_adds(net))
    assert len(costs) == 4
    assert max(costs) / min(costs) < 1.03
    assert sum(costs) / 4 == pytest.approx(1e6 * mega_multiply_adds, rel=0.01)


@pytest.mark.parametrize(("cardinality", "parameters", "table_7"), [(8, 34_426_698, 34.4e6), (16, 68_155_210, 68.1e6)])
def test_cifar_networks_have_the_published_sizes(cardinality: int, parameters: int, table_7: float) -> None:
    """Table 7 cuts 68.16 M to 68.1 M; its pre-activated blocks would have some thousand parameters less."""
    net = on_meta(CifarResNeXt, cardinality=cardinality)
    assert num_parameters(net) == parameters
    assert 0 <= parameters - table_7 < 0.1e6
    assert [len(stage) for stage in (net.layer1, net.layer2, net.layer3)] == [3, 3, 3]


def test_the_small_network_divides_over_eight_devices() -> None:
    net = on_meta(CifarResNeXt, depth=11, stem_channels=16, cardinality=8, base_width=4)
    assert 15e6 < multiply_adds(net) < 40e6
    channels = {layer.out_channels for layer in net.modules() if isinstance(layer, nn.Conv2d)}
    assert all(count % 8 == 0 for count in channels)


def test_resnet_has_torchvisions_names_and_shapes() -> None:
    state = {name: tuple(tensor.shape) for name, tensor in on_meta(ResNet).state_dict().items()}
    assert len(state) == 320
    assert list(state)[:8] == [
        "conv1.weight",
        "bn1.weight",
        "bn1.bias",
        "bn1.running_mean",
        "bn1.running_var",
        "bn1.num_batches_tracked",
        "layer1.0.conv1.weight",
        "layer1.0.bn1.weight",
    ]
    expected = {
        "conv1.weight": (64, 3, 7, 7),
        "layer1.0.conv1.weight": (64, 64, 1, 1),
        "layer1.0.bn1.running_mean": (64,),
        "layer1.0.conv2.weight": (64, 64, 3, 3),
        "layer1.0.conv3.weight": (256, 64, 1, 1),
        "layer1.0.bn3.num_batches_tracked": (),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1),
        "layer1.0.downsample.1.running_var": (256,),
        "layer1.2.conv1.weight": (64, 256, 1, 1),
        "layer2.0.downsample.0.weight": (512, 256, 1, 1),
        "layer2.3.bn2.bias": (128,),
        "layer3.5.conv3.weight": (1024, 256, 1, 1),
        "layer4.0.conv1.weight": (512, 1024, 1, 1),
        "layer4.2.conv2.weight": (512, 512, 3, 3),
        "fc.weight": (1000, 2048),
        "fc.bias": (1000,),
    }
    assert {name: state.get(name) for name in expected} == expected
    owners = {name.rpartition(".")[0] for name in state if name.startswith("layer")}
    assert {owner.split(".", 2)[2] for owner in owners} == {
        *("conv1", "bn1", "conv2", "bn2", "conv3", "bn3", "downsample.0", "downsample.1")
    }
    assert {owner[:8] for owner in owners if "downsample" in owner} == {f"layer{stage}.0" for stage in (1, 2, 3, 4)}
    resnext = on_meta(ResNet, cardinality=32, base_width=4).state_dict()
    assert list(resnext) == list(state)
    assert resnext["layer1.0.conv2.weight"].shape == (128, 4, 3, 3)


def test_maps_halve_as_in_the_paper() -> None:
    net = on_meta(ResNet)
    sides = {}
    for name, layer in net.named_children():
        layer.register_forward_hook(lambda layer, args, y, name=name: sides.update({name: y.shape[-1]}))
    assert net(torch.empty(2, *net.image_shape, device="meta")).shape == (2, 1000)
    assert sides == {
        **{"conv1": 112, "bn1": 112, "relu": 112, "maxpool": 56, "avgpool": 1, "fc": 1000},
        **{"layer1": 56, "layer2": 28, "layer3": 14, "layer4": 7},
    }


@pytest.mark.parametrize(
    ("arguments", "groups"),
    [
        ({"cardinality": 32, "base_width": 4}, (32, 32, 32, 32)),
        ({"root": 16, "strided": "conv1"}, (16, 8, 4, 2)),
    ],
)
def test_the_report_shows_what_every_grouped_layer_saves(arguments: dict, groups: tuple[int, ...]) -> None:
    net = on_meta(ResNet, **arguments)
    report = lanes.grouping_report(net)
    dense = lanes.grouping_report(
        on_meta(
            ResNet,
            base_width=arguments.get("cardinality", 1) * arguments.get("base_width", 64),
            strided=arguments.get("strided", "conv2"),
        )
    )
    for name, layer in report.layers.items():
        expected = groups[int(name[5]) - 1] if name.endswith("conv2") else 1
        assert layer.groups == expected
        assert layer.dense_multiply_adds == expected * layer.multiply_adds == dense.layers[name].multiply_adds
        assert layer.dense_parameters - layer.biases == expected * layer.weights == dense.layers[name].weights
    assert (report.dense_parameters, report.dense_multiply_adds) == (dense.parameters, dense.multiply_adds)
    assert sum(layer.groups > 1 for layer in report.layers.values()) == 16
    assert all(f" {count} x\n" in str(report) for count in groups)


@pytest.mark.parametrize(
    ("model", "arguments"),
    [
        (CifarResNeXt, {"depth": 11, "stem_channels": 8, "cardinality": 4, "base_width": 2}),
        (CifarResNeXt, {"depth": 11, "stem_channels": 8, "cardinality": 2, "base_width": 2, "form": "sum"}),
        (ResNet, {"root": 16, "num_classes": 3, "in_channels": 1}),
    ],
)
def test_meta_then_init_layer_equals_building_at_once(model: type[nn.Module], arguments: dict) -> None:
    check_deferred_building(model, **arguments)


def test_a_seed_gives_the_weights_that_it_always_gave() -> None:
    """Golden sums: whoever moves them makes published runs unrepeatable."""
    torch.manual_seed(7)
    net = CifarResNeXt(depth=11, stem_channels=16, cardinality=8, base_width=4)
    assert net.layer3[0].conv2.weight.double().sum().item() == pytest.approx(-6.6368075, rel=1e-5)
    assert net.fc.weight.double().sum().item() == pytest.approx(-0.8674548, rel=1e-5)


def test_weights_start_from_hes_normal_by_fan_out() -> None:
    torch.manual_seed(0)
    net = CifarResNeXt(depth=11, cardinality=4, base_width=16, stem_channels=32)
    assert net.layer3[0].conv2.weight.std().item() == pytest.approx((2 / (9 * 256)) ** 0.5, rel=0.02)
    assert net.layer3[0].conv3.weight.std().item() == pytest.approx((2 / 512) ** 0.5, rel=0.02)
    assert net.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not net.fc.bias.any()


@pytest.mark.parametrize("form", ["grouped", "concat", "sum"])
def test_a_small_network_learns(form: str) -> None:
    torch.manual_seed(0)
    net = CifarResNeXt(num_classes=4, depth=11, stem_channels=4, cardinality=2, base_width=2, form=form)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8) % 4
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for _ in range(30):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1  # measured 0.005 or less; chance is ln 4 = 1.39


@pytest.mark.parametrize("model", [ResNet, CifarResNeXt])
def test_grey_images_and_other_numbers_of_classes(model: type[nn.Module]) -> None:
    net = on_meta(model, in_channels=1, num_classes=7)
    assert net.image_shape[0] == net.conv1.in_channels == 1
    assert net(torch.empty(2, *net.image_shape, device="meta")).shape == (2, 7)
    assert net(torch.empty(2, 1, 48, 40, device="meta")).shape == (2, 7)


@pytest.mark.parametrize(
    ("model", "arguments", "message"),
    [
        (ResNet, {"depth": 18}, "depth must be one of 50, 101, 152, got 18"),
        (ResNet, {"cardinality": 2, "root": 4}, "cardinality 2 and root 4 both set the groups; leave one of them at 1"),
        (ResNet, {"root": 128}, "a 3x3 of 64 channels does not divide into 128 groups; use a number of groups that"),
        (ResNet, {"root": 0}, "root must be a whole number of at least 1, got 0"),
        (ResNet, {"strided": "conv3"}, "strided must be one of 'conv2', 'conv1', got 'conv3'"),
        (CifarResNeXt, {"depth": 12}, r"depth must be 9n \+ 2 .*, got 12; use 11, 20, 29 or more"),
        (CifarResNeXt, {"depth": 2}, r"depth must be 9n \+ 2 .*, got 2"),
        (CifarResNeXt, {"stem_channels": 0}, "stem_channels must be a whole number of at least 1, got 0"),
        *(
            (model, arguments, message)
            for model in (ResNet, CifarResNeXt)
            for arguments, message in (
                ({"form": "added"}, "form must be one of 'grouped', 'concat', 'sum', got 'added'"),
                ({"cardinality": 0}, "cardinality must be a whole number of at least 1, got 0"),
                ({"cardinality": 2.0}, "cardinality must be a whole number of at least 1, got 2.0"),
                ({"base_width": 0.5}, "base_width must be a number of at least 1, got 0.5"),
                ({"base_width": float("nan")}, "base_width must be a number of at least 1, got nan"),
                ({"num_classes": 0}, "num_classes must be a whole number of at least 1, got 0"),
                ({"in_channels": 0}, "in_channels must be a whole number of at least 1, got 0"),
            )
        ),
    ],
)
def test_networks_refuse_bad_arguments(model: type[nn.Module], arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        on_meta(model, **arguments)
