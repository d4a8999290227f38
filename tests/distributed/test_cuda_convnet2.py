"""cuda-convnet2's network placed equals the plain one: the order of its layers and its same-map norm in lanes."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from lanes.models import CudaConvnet2AlexNet, MapResponseNorm
from tests.parity import Recipe, compare
from tests.ranks import Ranks

BOUND = 1e-10


def narrow() -> nn.Module:
    """The network with narrow fully connected layers, which are AlexNet's too and would take most of the time."""
    with torch.device("meta"):
        net = CudaConvnet2AlexNet(num_classes=10)
        net.fc6, net.fc7, net.fc8 = nn.Linear(256 * 6 * 6, 64), nn.Linear(64, 64), nn.Linear(64, 10)
    for name, layer in net.named_children():
        net.init_layer(name, layer.to_empty(device="cpu"))
    return net


class Small(nn.Module):
    """The head of the network around its same-map norm, small enough for every mesh."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 5, stride=2)
        self.pool1 = nn.MaxPool2d(3, stride=2)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, groups=4)
        self.cnorm2 = MapResponseNorm(5, alpha=2.0)
        self.conv3 = nn.Conv2d(32, 16, 3)
        self.head = nn.Linear(16 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool1(self.conv1(x)).relu()
        x = self.cnorm2(self.conv2(x).relu())
        return self.head(self.conv3(x).relu().flatten(1))


def check(errors: dict[str, float], noise: dict[str, float], name: str, measured: Callable[[str], None]) -> None:
    for group, error in errors.items():
        measured(f"{name:34} {group:16} error {error:.1e}   one-ulp noise of the plain model {noise[group]:.1e}")
        assert error <= BOUND, f"{name}: {group} differ by {error:.2e}"


@pytest.mark.parametrize("lane_devices", [1, 2])
def test_cuda_convnet2(ranks: Ranks, measured: Callable[[str], None], lane_devices: int) -> None:
    shape, recipe = (2, 3, 224, 224), Recipe(steps=1)
    errors, noise = ranks(compare, lane_devices, narrow, shape, lane_devices, recipe, timeout_s=240)[0]
    assert set(errors) == {"outputs", "input gradients", "gradients", "parameters"}
    check(errors, noise, f"cuda-convnet2's AlexNet, 1x{lane_devices}", measured)


@pytest.mark.parametrize(("world", "lane_devices"), [(4, 4), (4, 2)])
def test_same_map_norm(ranks: Ranks, measured: Callable[[str], None], world: int, lane_devices: int) -> None:
    errors, noise = ranks(compare, world, Small, (8, 3, 23, 23), lane_devices)[0]
    check(errors, noise, f"same-map norm, {world // lane_devices}x{lane_devices}", measured)
