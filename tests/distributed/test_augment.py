"""Every augmentation gives the same images on every lane device of a replica, and others on other replicas.

On real processes, through the replica's stream as training seeds it, several batches in a row, with a placed network in
between that draws dropout masks, and after another past on every process.
"""

import os
import random
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import Tensor, nn

import lanes
from lanes.mesh import LANE_AXIS, axis, check_alike
from tests import networks
from tests.ranks import RankError, Ranks
from tests.unit.test_augment import AUGMENTATIONS, augmented

BATCHES = (8, 8, 5)  # images; an epoch's last batch may be smaller
MESHES = {"1x2": (2, 2), "2x2": (4, 2)}  # data x lane: ranks, lane devices


def _images(count: int) -> Tensor:
    """The same on all processes of all replicas: what differs after augmentation comes from the streams."""
    return torch.rand(count, 3, 16, 16, generator=torch.Generator().manual_seed(count))


def _another_past(augmentation: Callable[..., object]) -> None:
    """Bring this process to where no other is: used before, on other batches, and other generators elsewhere."""
    rank = torch.distributed.get_rank()
    for count in range(1, rank + 2):
        augmented(augmentation, _images(count))
    random.seed(rank)
    numpy.random.seed(rank)


def train(
    lane_devices: int, names: list[str], table: dict[str, Callable[[], Callable[..., object]]]
) -> list[dict[str, list]]:
    """Augment as training does; returns by epoch what each augmentation gave, and raises where lane devices differ."""
    mesh = lanes.init_mesh(lane_devices)
    torch.manual_seed(0)
    net = networks.mixed_2d()
    plan = lanes.plan(net, torch.zeros(2, 3, 16, 16, requires_grad=True), lane_devices=lane_devices)
    lanes.place(net, plan, mesh)
    epochs: list[dict[str, list]] = [{}, {}]
    for name in names:
        augmentation = table[name]()
        _another_past(augmentation)
        for epoch, given in enumerate(epochs):
            lanes.seed_replica(mesh, 1, epoch)
            given[name] = []
            for count in BATCHES:
                batch = augmented(augmentation, _images(count))
                check_alike(axis(mesh, LANE_AXIS), batch, "batch")
                given[name].append([part.numpy() for part in batch])
                net(batch[0])  # dropout draws from the same stream
            check_alike(axis(mesh, LANE_AXIS), [torch.zeros(1)], "nothing")  # the stream after the last network
    return epochs


def train_with_ours(lane_devices: int) -> list[dict[str, list]]:
    return train(lane_devices, list(AUGMENTATIONS), AUGMENTATIONS)


def _equal(one: list[list[numpy.ndarray]], other: list[list[numpy.ndarray]]) -> list[bool]:
    """By batch: images (and targets) equal bit for bit."""
    return [
        all(numpy.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
        for ours, theirs in zip(one, other, strict=True)
    ]


@pytest.mark.parametrize("mesh", MESHES)
def test_alike_on_the_lane_devices_of_a_replica_and_different_on_replicas(ranks: Ranks, mesh: str) -> None:
    world, lane_devices = MESHES[mesh]
    results = ranks(train_with_ours, world, lane_devices)
    for name in AUGMENTATIONS:
        for epoch in range(2):
            streams = [result[epoch][name] for result in results]
            for first in range(0, world, lane_devices):  # the lane axis is innermost
                for other in range(first + 1, first + lane_devices):
                    assert _equal(streams[first], streams[other]) == [True] * 3, f"{name}, epoch {epoch}"
            for replica in range(lane_devices, world, lane_devices):
                assert _equal(streams[0], streams[replica]) == [False] * 3, f"{name}, epoch {epoch}"
        assert _equal(results[0][0][name], results[0][1][name]) == [False] * 3, f"{name}: epochs are alike"
        first, second = results[0][0][name][:2]
        assert not numpy.array_equal(first[0], second[0]), f"{name}: batches in a row are alike"


class NumpyNoise(nn.Module):
    """Draws from numpy's generator, which nobody seeds alike."""

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.from_numpy(numpy.random.rand(len(images), 1, 1, 1)).float()


class UnseededNoise(nn.Module):
    """Draws from a generator of its own, seeded by the process."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(os.getpid())

    def forward(self, images: Tensor) -> Tensor:
        return images + torch.rand(len(images), 1, 1, 1, generator=self.generator)


class RememberingNoise(nn.Module):
    """Depends on how often it was called: the same stream, another past."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return images * torch.rand(()) + self.calls


class UnevenDraws(nn.Module):
    """The same images, but one device draws more: the next batch would differ."""

    def forward(self, images: Tensor) -> Tensor:
        noisy = images + torch.rand(len(images), 1, 1, 1)
        torch.rand(torch.distributed.get_rank())
        return noisy


WRONG = {kind.__name__: kind for kind in (NumpyNoise, UnseededNoise, RememberingNoise, UnevenDraws)}


def train_wrongly(lane_devices: int, name: str) -> None:
    train(lane_devices, [name], WRONG)


@pytest.mark.parametrize("name", WRONG)
def test_the_check_catches_what_is_not_alike(ranks: Ranks, name: str) -> None:
    what = "random stream" if name == "UnevenDraws" else "batch"
    with pytest.raises(RankError, match=f"lane devices 0 and 1 of a replica differ in their {what}"):
        ranks(train_wrongly, 2, 2, name)
