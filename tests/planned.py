"""Small networks around one layer or operation, and their plans."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

import lanes
from lanes import Plan
from lanes.models import AlexNet

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
