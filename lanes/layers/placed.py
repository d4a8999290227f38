"""What all placed layers share: their way, their place on the mesh, and how they read parameters and laned tensors.

Shapes: N batch, C all channels, D lane devices, c = C/D own channels.
"""

from torch import Tensor
from torch.distributed.tensor import DTensor

from lanes import crossing
from lanes.mesh import Axis
from lanes.ways import WAYS, Way


def local(tensor: Tensor | None) -> Tensor | None:
    """This process's part of a parameter or buffer."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


class Placed:
    """What all placed layers know.

    Attributes:
        way_name: how the layer is placed.
        lane: this process's place among the lane devices.
        data: and among the replicas.
        source: puts the channels that it reads in plain order (`crossing.shuffle`); None if they are.
    """

    way_name: str
    lane: Axis
    data: Axis
    source: tuple[int, ...] | None

    def own(self, parameter: Tensor | None) -> Tensor | None:
        """This process's part of a parameter; its gradient is averaged over the replicas, if there are several."""
        part = local(parameter)
        return part if part is None or self.data.size == 1 else crossing.replicated(part, self.data)

    def in_plain_order(self, x: Tensor) -> Tensor:
        """[N, c, ...] -> [N, c, ...]: the layer's own channels of the plain model's order."""
        return x if self.source is None else crossing.shuffle(x, self.source, self.lane)

    @property
    def way(self) -> Way:
        """How the layer is placed."""
        return WAYS[self.way_name]

    @property
    def sums(self) -> bool:
        """Whether statistics are summed over several lane devices."""
        return "sum" in self.way.crossings and self.lane.size > 1

    def extra_repr(self) -> str:
        """The plain layer's, and how it is placed."""
        plain = super().extra_repr()  # type: ignore[misc]
        placed = f"{self.way_name} on {self.lane.size} lane device{'s' if self.lane.size > 1 else ''}"
        return f"{plain}, {placed}" if plain else placed


def per_channel(values: Tensor, like: Tensor) -> Tensor:
    """A vector [c] as it is added to, or multiplied with, ``like`` [N, c, ...]."""
    return values.view(-1, *[1] * (like.dim() - 2))
