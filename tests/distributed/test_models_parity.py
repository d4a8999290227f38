"""Every network with a name, placed, equals itself on one device; where it does not divide, the refusal is the test.

Outputs, all gradients, three small steps and batch-norm statistics, in float64, on images of 64 pixels where the
network reads more (AlexNet apart, which has a size of its own). ``LANES_PARITY=all`` runs every network on every mesh,
in about an hour on two cores; otherwise the quick ones run on all meshes and one of the large ones on one.
"""

import functools
import os
from collections.abc import Callable

import pytest
import torch

import lanes
from lanes import PlanError
from lanes.models import build, names
from tests.parity import Outcome, Recipe, drawn, run_placed, run_plain_twice
from tests.ranks import Ranks

MESHES = {"1x1": (1, 1), "1x2": (2, 2), "1x4": (4, 4), "2x2": (4, 2)}  # data x lane: ranks, lane devices
RECIPE = Recipe(steps=3, lr=1e-3)
QUICK = """small_alexnet_cifar nin_root8_cifar resnext11_8x4d_cifar mobilenet_v1_cifar mobilenet_v2 shufflenet_v1_g2
    shufflenet_v1_g3_cifar shufflenet_v1_g4_cifar shufflenet_v1_g8 signal_net volume_net""".split()
EVERY = os.environ.get("LANES_PARITY") == "all"
CASES = [(name, mesh) for name in (names() if EVERY else QUICK) for mesh in MESHES]
CASES += [] if EVERY else [("resnext50_32x4d", "1x2")]


def build_small(name: str) -> torch.nn.Module:
    """For ten classes; layer scale and the like start as they do."""
    return build(name, num_classes=10)


def shape_of(name: str) -> tuple[int, ...]:
    with torch.device("meta"):
        channels, *sides = build_small(name).image_shape
    fixed = "alexnet" in name
    return 8, channels, *(side if fixed else min(side, 64) for side in sides)


@functools.lru_cache(maxsize=1)  # kept in the first rank's process from one mesh to the next
def plain(name: str, replicas: int) -> tuple[Outcome, Outcome]:
    return run_plain_twice(functools.partial(build_small, name), *drawn(shape_of(name)), replicas, RECIPE)


def compare_named(name: str, lane_devices: int) -> tuple[dict[str, float], dict[str, float]]:
    images, labels = drawn(shape_of(name))
    placed = run_placed(functools.partial(build_small, name), images, labels, lane_devices, RECIPE)
    if torch.distributed.get_rank() != 0:
        return {}, {}
    specification, nudged = plain(name, torch.distributed.get_world_size() // lane_devices)
    return placed.errors_against(specification), nudged.errors_against(specification)


def refusal(name: str, lane_devices: int) -> str:
    """Why a network cannot be placed on so many lane devices; "" if it can."""
    with torch.device("meta"):
        net = build_small(name)
        try:
            lanes.plan(net, torch.empty(2, *shape_of(name)[1:]), lane_devices=lane_devices)
        except PlanError as error:
            return str(error)
    return ""


@pytest.mark.parametrize(("name", "mesh"), CASES)
def test_a_named_network_equals_itself_on_one_device(
    ranks: Ranks, measured: Callable[[str], None], name: str, mesh: str
) -> None:
    world, lane_devices = MESHES[mesh]
    if refused := refusal(name, lane_devices):
        assert "do not divide" in refused or "does not divide" in refused
        assert f"{lane_devices} lane devices; use 1" in refused
        measured(f"{name:22} {mesh}  refused: {refused}")
        return
    errors, noise = ranks(compare_named, world, name, lane_devices, timeout_s=900)[0]
    assert {"outputs", "input gradients", "gradients", "parameters"} <= set(errors)
    for group, error in errors.items():
        measured(
            f"{name:22} {mesh}  {group:15} error {error:.1e}   one-ulp noise of the plain model {noise[group]:.1e}"
        )
        assert error <= max(1e-9, 10 * noise[group]), f"{group} differ by {error:.2e}, noise is {noise[group]:.2e}"
