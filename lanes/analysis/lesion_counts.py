"""Accuracy with lanes silenced at several layers, batch by batch: `lesion.lesion_table` in one pass over the images.

Kept out: silencing (lesion.py), which images.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lanes.analysis.lane_statistics import wilson_interval
from lanes.analysis.lesion import grey, silenced
from lanes.analysis.recording import evaluating, merging, replicas
from lanes.mesh import Axis, DeviceMesh
from lanes.plans import Plan

Case = tuple[str, int | None, str]  # layer ("" of the whole network), lane, "colour" or "grey"


@dataclass(frozen=True)
class LesionCount:
    """How many images were classified right.

    Attributes:
        layer: at which a lane was silenced; "" of the whole network.
        lane: which; None of the whole network.
        images: how they looked, "colour" or "grey".
        count: how many there were.
        right: how many of them were classified right.
    """

    layer: str
    lane: int | None
    images: str
    count: int
    right: int

    @property
    def accuracy(self) -> float:
        """The share, 0 to 1."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of the share (Wilson)."""
        return wilson_interval(self.right, self.count)


class LesionCounter:
    """Counts, case by case.

    Args:
        net: plain, or placed.
        forward: images [N, C, H, W] as the network reads them -> logits [N, classes]; it runs ``net``.
        layers: at which lanes are silenced, one by one; may be none.
        lanes: how many there are.
        normal: (mean, std) by which images of three channels are normalised; None: images have no colour, and all that
            is counted is "grey".
        plan: of a placed network.
        mesh: of a placed network.
    """

    def __init__(
        self,
        net: nn.Module,
        forward: Callable[[Tensor], Tensor],
        layers: Sequence[str],
        *,
        lanes: int,
        normal: tuple[Sequence[float], Sequence[float]] | None,
        plan: Plan | None = None,
        mesh: DeviceMesh | None = None,
    ) -> None:
        self.net, self.forward, self.normal, self.plan, self.mesh = net, forward, normal, plan, mesh
        self.lanes, self.looks = lanes, ("grey",) if normal is None else ("colour", "grey")
        places = [("", None), *((layer, lane) for layer in layers for lane in range(lanes))]
        self._cases: list[Case] = [(*place, look) for place in places for look in self.looks]
        self._right = _Counts(1 + len(self._cases), replicas(mesh))

    def update(self, images: Tensor, labels: Tensor) -> None:
        """Count a batch: images [N, C, H, W] as the network reads them, and labels [N]."""
        looks = {"grey": images} if self.normal is None else {"colour": images, "grey": self._in_grey(images)}
        counts = [len(labels)]
        with evaluating(self.net), torch.no_grad():
            for layer, lane, look in self._cases:
                with self._without(layer, lane):
                    counts.append(int((self.forward(looks[look]).argmax(1) == labels).sum()))
        self._right.to(images.device).update(counts)

    def compute(self) -> list[LesionCount]:
        """Of all replicas' images; all processes must call it."""
        count, *right = self._right.compute().tolist()
        return [LesionCount(*case, count, number) for case, number in zip(self._cases, right, strict=True)]

    def _without(self, layer: str, lane: int | None) -> AbstractContextManager[None]:
        if not layer:
            return nullcontext()
        return silenced(self.net, layer, lane, lanes=self.lanes, plan=self.plan, mesh=self.mesh)

    def _in_grey(self, images: Tensor) -> Tensor:
        assert self.normal is not None
        mean, std = (images.new_tensor(list(numbers)).view(-1, 1, 1) for numbers in self.normal)
        light: Tensor = (grey(images * std + mean) - mean) / std
        return light


class _Counts(Metric):
    """Numbers that replicas add up."""

    is_differentiable = False
    full_state_update = False
    counts: Tensor

    def __init__(self, size: int, data: Axis | None) -> None:
        super().__init__(**merging(data))
        self.add_state("counts", torch.zeros(size, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, counts: list[int]) -> None:
        self.counts = self.counts + self.counts.new_tensor(counts)

    def compute(self) -> Tensor:
        return self.counts
