"""Correctness is parity: a placed model equals the plain model on one device, on every mesh."""

from collections.abc import Callable

import pytest
from torch import nn

from tests import networks
from tests.crossing_networks import NETWORKS, GateWithoutGradient, InPlaceBehindShuffle
from tests.parity import Recipe, compare, compare_synchronised
from tests.ranks import Ranks

BOUND = 1e-10
MESHES = {"1x1": (1, 1), "1x2": (2, 2), "1x4": (4, 4), "2x1": (2, 1), "2x2": (4, 2)}  # data x lane: ranks, lane devices
SHAPES = {1: (8, 3, 32), 2: (8, 3, 16, 16), 3: (8, 3, 8, 8, 8)}


def check(errors: dict[str, float], noise: dict[str, float], name: str, measured: Callable[[str], None]) -> None:
    for group, error in errors.items():
        measured(f"{name:34} {group:16} error {error:.1e}   one-ulp noise of the plain model {noise[group]:.1e}")
        assert error <= BOUND, f"{name}: {group} differ by {error:.2e}"


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("dims", SHAPES)
def test_every_layer(ranks: Ranks, measured: Callable[[str], None], mesh: str, dims: int) -> None:
    world, lane_devices = MESHES[mesh]
    build = {1: networks.mixed_1d, 2: networks.mixed_2d, 3: networks.mixed_3d}[dims]
    errors, noise = ranks(compare, world, build, SHAPES[dims], lane_devices)[0]
    assert set(errors) == {"outputs", "input gradients", "gradients", "parameters", "statistics"}
    check(errors, noise, f"every layer, {dims}-D, {mesh}", measured)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("net", ["small_alexnet", "small_alexnet_talking", "small_alexnet_apart"])
def test_small_alexnet(ranks: Ranks, measured: Callable[[str], None], mesh: str, net: str) -> None:
    world, lane_devices = MESHES[mesh]
    errors, noise = ranks(compare, world, getattr(networks, net), (4, 3, 64, 64), lane_devices)[0]
    check(errors, noise, f"{net}, {mesh}", measured)


@pytest.mark.parametrize("ways", [("gather", "scatter_sum"), ("scatter_sum", "gather")])
@pytest.mark.parametrize("head", ["leave_sum", "gather+leave"])
def test_both_ends_of_a_dense_layer(
    ranks: Ranks, measured: Callable[[str], None], ways: tuple[str, str], head: str
) -> None:
    override = {"wide": ways[0], "skip": ways[1], "fc5": ways[0], "fc7": ways[1], "head": head}
    errors, noise = ranks(compare, 2, networks.mixed_2d, SHAPES[2], 2, Recipe(steps=3), override)[0]
    check(errors, noise, f"{'/'.join(ways)}, {head}", measured)


@pytest.mark.parametrize("mesh", ["1x2", "1x4"])
def test_channels_last(ranks: Ranks, measured: Callable[[str], None], mesh: str) -> None:
    world, lane_devices = MESHES[mesh]
    arguments = (networks.small_alexnet, (4, 3, 64, 64), lane_devices, Recipe(steps=3), None, True)
    errors, noise = ranks(compare, world, *arguments)[0]
    check(errors, noise, f"small_alexnet, channels last, {mesh}", measured)


def test_alexnet(ranks: Ranks, measured: Callable[[str], None]) -> None:
    """The network of 2012 itself, two lanes on two devices, 224 pixels."""
    errors, noise = ranks(compare, 2, networks.alexnet, (2, 3, 224, 224), 2, Recipe(steps=1), timeout_s=240)[0]
    check(errors, noise, "AlexNet, 1x2", measured)


@pytest.mark.parametrize("mesh", ["2x1", "2x2"])
def test_synchronised_batch_norm(ranks: Ranks, measured: Callable[[str], None], mesh: str) -> None:
    """Replicas that share statistics equal the plain model on the whole batch."""
    world, lane_devices = MESHES[mesh]
    errors, noise = ranks(compare_synchronised, world, networks.normed, SHAPES[2], lane_devices)[0]
    assert set(errors) == {"outputs", "gradients", "parameters", "statistics"}
    check(errors, noise, f"synchronised batch norm, {mesh}", measured)


@pytest.mark.parametrize("mesh", MESHES)
@pytest.mark.parametrize("net", NETWORKS)
def test_crossings_of_deep_networks(ranks: Ranks, measured: Callable[[str], None], mesh: str, net: str) -> None:
    world, lane_devices = MESHES[mesh]
    errors, noise = ranks(compare, world, NETWORKS[net], SHAPES[2], lane_devices, Recipe(steps=4))[0]
    check(errors, noise, f"{net}, {mesh}", measured)


def in_place_behind_no_shuffle() -> InPlaceBehindShuffle:
    """In one group nothing is shuffled, but plain PyTorch returns a copy all the same."""
    return InPlaceBehindShuffle(groups=1)


@pytest.mark.parametrize("mesh", ["1x1", "1x2", "1x4"])
@pytest.mark.parametrize("net", [GateWithoutGradient, InPlaceBehindShuffle, in_place_behind_no_shuffle])
def test_what_others_do_to_a_shared_tensor(
    ranks: Ranks, measured: Callable[[str], None], mesh: str, net: Callable[[], nn.Module]
) -> None:
    world, lane_devices = MESHES[mesh]
    errors, noise = ranks(compare, world, net, SHAPES[2], lane_devices, Recipe(steps=2))[0]
    check(errors, noise, f"{net.__name__}, {mesh}", measured)


def normed_images() -> nn.Module:
    """Layer norm of a whole image returns channels outermost, whatever it reads: the mask behind it shows that."""
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(1), nn.Linear(8, 10))
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.LayerNorm([8, 16, 16]), nn.Dropout(0.5), *head)


def test_masks_behind_a_layer_norm_of_channels_last(ranks: Ranks, measured: Callable[[str], None]) -> None:
    errors, noise = ranks(compare, 2, normed_images, SHAPES[2], 2, Recipe(steps=2), None, True)[0]
    check(errors, noise, "layer norm, channels last", measured)
