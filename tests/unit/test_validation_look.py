"""What callbacks look at is found, or refused, before a weight is made: pairs of layers, enough images, which ones."""

from typing import Any

import pytest
import torch

import lanes
from lanes.models import AlexNet, SmallAlexNet
from lanes.training import Classifier, LayerSquares, Photographs, SamplePredictions
from lanes.training.layer_squares import adjacent_convolutions
from lanes.training.validation_look import drawn_images


def small(**options: Any) -> Classifier:
    return Classifier(lambda: SmallAlexNet(image_size=28, **options), image_shape=(3, 28, 28))


def prepared(
    callback: LayerSquares | SamplePredictions, module: Classifier, *, images: int = 64, replicas: int = 1
) -> Any:
    callback.prepare(module, module.plan(2), images=images, replicas=replicas)
    return callback


def pairs_of(name: str, lane_devices: int, number: int) -> list[tuple[str, str]]:
    with torch.device("meta"):
        net = lanes.models.build(name)
        plan = lanes.plan(net, torch.empty(2, *net.image_shape), lane_devices=lane_devices)  # type: ignore[misc]
    return adjacent_convolutions(net, plan, number)


def test_neighbours_are_found() -> None:
    assert pairs_of("alexnet", 2, 2) == [("conv2", "conv3"), ("conv3", "conv4"), ("conv4", "conv5")]
    assert pairs_of("alexnet", 1, 2) == pairs_of("alexnet", 2, 2)
    assert pairs_of("alexnet", 2, 3) == [("conv3", "conv4")], "3 lanes divide conv3 and conv4 alone"
    for name in ("resnext50_32x4d", "mobilenet_v2_cifar"):
        with torch.device("meta"):
            modules = dict(lanes.models.build(name).named_modules())
        found = pairs_of(name, 2, 2)
        assert 1 <= len(found) <= 3
        for first, second in found:
            made, read = modules[first].out_channels, modules[second].in_channels
            assert made == read
            assert made + modules[second].out_channels <= 1024


def test_alexnet_of_2012_has_images_enough() -> None:
    module = Classifier(lambda: AlexNet(num_classes=1000, lanes=2), image_shape=(3, 224, 224))
    prepared(LayerSquares(), module)
    prepared(SamplePredictions(), module, images=8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pairs": [("conv2", "conv")]}, "runs no layer 'conv'; did you mean 'conv5'.*it has conv1"),
        ({"pairs": [("conv2", "relu9")]}, "runs no layer 'relu9'"),
        ({"pairs": [("conv1", "fc8")], "lanes": 4}, "4 lanes do not divide the 10 channels of fc8"),
        ({"images": 7}, "7 images of 36 pixels .* for the 256 channels of conv3 and conv4; give more than 7"),
        ({"images": 3, "replicas": 4}, "3 images for 4 replicas"),
    ],
)
def test_squares_that_cannot_be_are_refused(arguments: dict[str, Any], message: str) -> None:
    numbers = {"images": arguments.get("images", 64), "replicas": arguments.get("replicas", 1)}
    with pytest.raises(ValueError, match=f"LayerSquares: .*{message}"):
        prepared(LayerSquares(arguments.get("pairs")), small(lanes=arguments.get("lanes", 2)), **numbers)


def test_networks_without_neighbours_are_refused() -> None:
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 10))
    with pytest.raises(ValueError, match=r"no two convolutions.*name pairs of its layers"):
        prepared(LayerSquares(), Classifier(lambda: net, image_shape=(3, 8, 8)))
    with pytest.raises(ValueError, match=r"SamplePredictions: the network reads \[2, 28, 28\]"):
        prepared(
            SamplePredictions(), Classifier(lambda: SmallAlexNet(in_channels=2, image_size=28), image_shape=(2, 28, 28))
        )


def test_data_of_ours_are_counted_before_processes_start() -> None:
    data = Photographs(image_size=28, batch_size=16, num_train=16, num_val=10)
    LayerSquares().check(small(), data, lane_devices=2, replicas=2)
    with pytest.raises(ValueError, match=r"10 images of 1 pixels .* for the 512 channels of fc6 and fc7"):
        LayerSquares([("fc6", "fc7")]).check(small(), data, lane_devices=2, replicas=1)


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (LayerSquares, {"images": 0}, "LayerSquares: images=0"),
        (LayerSquares, {"every_n_epochs": 0.5}, "LayerSquares: every_n_epochs=0.5"),
        (LayerSquares, {"pairs": []}, "must name two layers each"),
        (LayerSquares, {"pairs": ["ab"]}, "must name two layers each"),
        (SamplePredictions, {"images": -1}, "SamplePredictions: images=-1"),
    ],
)
def test_arguments_are_checked(kind: Any, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kind(**arguments)


def test_images_are_drawn_once_and_of_all_classes() -> None:
    state = torch.get_rng_state()
    assert drawn_images(5, 9) == [0, 1, 2, 3, 4]
    some = drawn_images(1000, 20)
    assert some == sorted(set(some)) == drawn_images(1000, 20)
    assert max(some) > 800
    assert set(some) <= set(drawn_images(1000, 40))
    for labels in (torch.arange(1000) % 10, torch.arange(1000) // 100, torch.arange(1000).remainder(7).clamp(0, 1)):
        chosen = labels[drawn_images(1000, 20, labels)].bincount()
        assert chosen.max() - chosen.min() <= 1
    assert torch.equal(torch.get_rng_state(), state)
