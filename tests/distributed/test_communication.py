"""What each layer sends is counted as it runs: among real processes, and in a dry run of eight devices in one."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import lanes
from lanes.analysis.communication import Sent, busiest, counted, planned
from lanes.mesh import LANE_AXIS, axis
from tests.crossing_networks import NETWORKS
from tests.ranks import Ranks

ROOT = Path(__file__).parents[2]


def placed(title: str) -> tuple[nn.Module, lanes.Plan, torch.Tensor]:
    mesh = lanes.init_mesh()
    torch.manual_seed(0)
    net, image = NETWORKS[title](), torch.randn(1, 3, 16, 16)
    plan = lanes.plan(net, image, lane_devices=mesh[LANE_AXIS].size())
    return lanes.place(net, plan, mesh), plan, image


def count(title: str) -> tuple[dict[str, Sent], dict[str, Sent]]:
    """Of each layer: what this process sent in one step, and what the plan says."""
    net, plan, image = placed(title)
    hooks = [len(module._forward_hooks) for module in net.modules()]
    lane = axis(lanes.init_mesh(), LANE_AXIS)
    found = counted(net, image, lane, plan.layers)
    assert [len(module._forward_hooks) for module in net.modules()] == hooks
    return found, planned(plan)


@pytest.mark.parametrize("title", ["gather once", "re-ordered"])
def test_layers_of_deep_networks(ranks: Ranks, title: str) -> None:
    results = ranks(count, 2, title)
    assert busiest([found for found, _ in results]) == results[0][1]
    assert sum(sent.backward > 0 for sent in results[0][1].values()) >= 3


def count_some() -> str:
    net, plan, image = placed("gather once")
    crossing = next(name for name, layer in plan.layers.items() if layer.sent_forward_bytes)
    with pytest.raises(ValueError, match="name every layer") as error:
        counted(net, image, axis(lanes.init_mesh(), LANE_AXIS), [n for n in plan.layers if n != crossing])
    return str(error.value)


def test_what_no_layer_answers_for_is_told(ranks: Ranks) -> None:
    for message in ranks(count_some, 2):
        sent, total = (int(n.replace(",", "")) for n in re.findall(r"[\d,]+\d", message)[:2])
        assert 0 < sent < total


def test_eight_devices_in_one_process() -> None:
    """ShuffleNet with 8 groups and AlexNet in 8 lanes, at their sizes: the busiest device sends what the plan says."""
    nets = "shufflenet_v1_g8,alexnet_8_lanes,nin_root2"
    answer = subprocess.run(
        [sys.executable, "scripts/communication", "--nets", nets, "--devices", "8"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=240,
    )
    assert answer.returncode == 0, answer.stderr[-2000:]
    rows = {
        cells[0].strip(" `"): [cell.strip() for cell in cells[1:]]
        for cells in (line.strip("|").split("|") for line in answer.stdout.splitlines() if line.startswith("| `"))
    }
    # 7/8 of the 256 maps of 13 x 13 that conv3 gathers and of twice 4096 features; the logits are all-reduced.
    alexnet = 4 * 7 / 8 * (256 * 13 * 13 + 2 * 4096 + 2 * 1000) / 1024
    assert rows["alexnet_8_lanes"][:2] == ["8", f"{alexnet:,.1f}"]
    assert rows["alexnet_8_lanes"][-1] == "equal, 2 of 8"
    assert rows["shufflenet_v1_g8"][0] == "8"
    assert rows["shufflenet_v1_g8"][-1] == "equal, 8 of 8"
    assert "- `nin_root2` on 8: conv2a: 192 channels in 2 groups do not divide over 8 lane devices" in answer.stdout
