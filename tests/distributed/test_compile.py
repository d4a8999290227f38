"""Placed networks compile whole, without a break in the graph, and compute what they do uncompiled."""

import pytest
import torch

import lanes
from lanes.layers import local
from lanes.mesh import LANE_AXIS, axis
from tests.crossing_networks import NETWORKS
from tests.ranks import Ranks


def difference(title: str) -> float:
    """The largest difference of outputs and gradients of a compiled step, in float64; evaluates once, too."""
    mesh = lanes.init_mesh()
    torch.manual_seed(0)
    net = NETWORKS[title]().double()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    lanes.place(net, lanes.plan(net, images, lane_devices=axis(mesh, LANE_AXIS).size), mesh)
    found = []
    for run in (net, torch.compile(net, backend="aot_eager", fullgraph=True)):
        net.zero_grad()
        torch.manual_seed(1)  # the same masks
        outputs = run(images)
        outputs.square().mean().backward()
        found.append([outputs.detach(), *(local(p.grad).clone() for p in net.parameters())])
    with torch.inference_mode():
        assert run(images).isfinite().all()
    return max((a - b).abs().max().item() for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("title", ["gather once", "re-ordered"])
def test_a_compiled_step(ranks: Ranks, title: str) -> None:
    assert max(ranks(difference, 2, title, timeout_s=240)) <= 1e-12
