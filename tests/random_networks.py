"""Random small networks and meshes, each drawn from one integer: what a user could write of layers and operations.

Most of what is drawn can be placed; widths that do not divide, and operations that no device can do on its own
channels, are drawn too. A network prints the program that its forward runs.

Shapes: N batch, C channels, one, two or three spatial dimensions of 4 to 9 places, or none ("vectors").
"""

import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tests.random_author import BATCH_NORMS, Author
from tests.random_operations import OPERATIONS, Statement

BATCH = 8


@dataclass(frozen=True)
class Case:
    """A network and where it runs.

    Attributes:
        seed: of everything.
        world: processes.
        lane_devices: D, of each replica.
        shape: of the images.
    """

    seed: int
    world: int
    lane_devices: int
    shape: tuple[int, ...]

    def build(self) -> "RandomNetwork":
        """The network; its weights are drawn from torch's default generator."""
        return RandomNetwork(self)


MESHES = ((1, 1), (2, 2), (2, 2), (2, 2), (2, 1), (3, 3), (4, 4), (4, 4), (4, 4), (4, 2))  # processes, lane devices


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(f"mesh {seed}")
    world, lane_devices = MESHES[seed % len(MESHES)]
    dims, channels = rng.choice((1, 1, 2, 2, 3)), rng.choice((3, 3, 4, 6))
    sides = [rng.randint(6, 9) if dims < 3 else rng.randint(4, 6) for _ in range(dims)]
    return Case(seed, world, lane_devices, (BATCH, channels, *sides))


class RandomNetwork(nn.Module):
    """A network drawn at random."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.program: list[Statement] = []
        self.layers = nn.ModuleDict()
        author = Author(self, case.shape, case.lane_devices, random.Random(f"network {case.seed}"))
        self.output = author.write()
        for parameter in self.parameters():  # ones and zeros would hide channels that are out of order
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2 if parameter.dim() < 2 else 0.02)
        for module in self.modules():
            if isinstance(module, tuple(BATCH_NORMS.values())) and module.running_mean is not None:
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)

    def run(self, line: Statement, tensors: dict[str, Tensor]) -> Tensor:
        """One line of the forward."""
        sources = [tensors[name] for name in line.sources]
        layer = line.operation in self.layers
        return (self.layers[line.operation] if layer else OPERATIONS[line.operation])(*sources)

    def forward(self, image: Tensor) -> Tensor:
        tensors = {"image": image}
        for line in self.program:
            tensors[line.target] = self.run(line, tensors)
        return tensors[self.output]

    def __str__(self) -> str:
        layers = "\n".join(f"  {name}: {layer}" for name, layer in self.layers.items())
        return "\n".join([str(self.case), layers, *map(str, self.program), f"return {self.output}"])
