"""Measures between layers and lesions of placed networks equal those of the plain one, on any layout."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import lanes
from lanes.analysis.covariance import block_ratio, layer_covariances
from lanes.analysis.lesion import lesion_table, silenced
from lanes.mesh import DATA_AXIS, LANE_AXIS, axis
from tests.ranks import Ranks

CLASSES, LANES = 4, 4
PAIRS = [("conv1", "conv2"), ("relu2", "wide"), ("wide", "conv4"), ("conv4", "pool"), ("pool", "head")]
PLACES = ["conv1", "relu1", "relu2", "wide", "flatten"]


class Tricky(nn.Module):
    """Layers in place, channels out of order (torch.cat), two dense layers that share one gathering, smaller maps."""

    lanes = LANES

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, groups=LANES)
        self.relu2 = nn.ReLU(inplace=True)
        self.wide = nn.Conv2d(32, 32, 3, padding=1)
        self.skip = nn.Conv2d(32, 32, 1)
        self.conv4 = nn.Conv2d(32, 16, 3, stride=2, groups=LANES)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(64, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.conv1(x))
        x = self.relu2(torch.cat([x, self.conv2(x)], 1))
        x = torch.relu(self.wide(x) + self.skip(x))
        return self.head(self.flatten(self.pool(self.conv4(x))))


def build() -> nn.Module:
    torch.manual_seed(0)
    return Tricky().double()


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    images = torch.rand(24, 3, 12, 12, dtype=torch.float64, generator=generator)
    labels = torch.randint(CLASSES, (24,), generator=generator)
    return list(zip(images.split(6), labels.split(6), strict=True))


def centred(images: Tensor) -> Tensor:
    return (images - 0.5) / 0.25


def measured(net: nn.Module, own: list[tuple[Tensor, Tensor]], **placed: Any) -> dict[str, Any]:
    """All measures, and the network's outputs with each lane silenced at each place."""
    found: dict[str, Any] = {"squares": layer_covariances(net, PAIRS, [centred(x) for x, _ in own], **placed)}
    found["tables"] = [
        lesion_table(net, own, place, num_classes=CLASSES, normalise=centred, **placed) for place in PLACES[::2]
    ]
    outputs = []
    for place in PLACES:
        for lane in range(LANES):
            with silenced(net, place, lane, lanes=LANES, **placed), torch.no_grad():
                outputs.append(net(centred(batches()[0][0])))
    return found | {"outputs": torch.stack(outputs)}


def on_a_mesh(lane_devices: int) -> dict[str, Any]:
    mesh = lanes.init_mesh(lane_devices)
    net = build()
    plan = lanes.plan(net, batches()[0][0], lane_devices=lane_devices)
    lanes.place(net, plan, mesh)
    data = axis(mesh, DATA_AXIS)
    found = measured(net, batches()[data.index :: data.size], plan=plan, mesh=mesh)
    sent = []
    for lane in (None, 1):
        with (
            silenced(net, "relu2", lane, lanes=LANES, plan=plan, mesh=mesh),
            lanes.Traffic(axis(mesh, LANE_AXIS)) as traffic,
        ):
            net(batches()[0][0])
        sent.append((traffic.calls, traffic.sent_bytes))
    shares = [layer.shares for layer in plan.layers.values() if layer.shares]
    return found | {"sent": sent, "shares": shares, "order": plan.layers["relu2"].output_order}


@pytest.mark.parametrize(("world", "lane_devices"), [(1, 1), (2, 2), (4, 4), (4, 2)])
def test_as_the_plain_network(ranks: Ranks, world: int, lane_devices: int) -> None:
    net = build()
    wanted = measured(net, batches())
    assert len(set(wanted["tables"][0].without)) > 1, "lanes matter"
    assert block_ratio(wanted["squares"]["conv1", "conv2"]["whitened"], LANES) > 1.5
    assert (wanted["outputs"] - net(centred(batches()[0][0]))).abs().amax((1, 2)).min() > 1e-3, (
        "silencing does something"
    )
    for found in ranks(on_a_mesh, world, lane_devices):
        assert found["tables"] == wanted["tables"]
        assert found["tables"][0].images == 24
        torch.testing.assert_close(found["outputs"], wanted["outputs"], rtol=1e-10, atol=1e-12)
        for pair, squares in wanted["squares"].items():
            # Whitening divides by the smallest standard deviations kept, about 1e-3 of the largest here.
            torch.testing.assert_close(found["squares"][pair], squares, rtol=1e-7, atol=1e-9)
        assert found["sent"][0] == found["sent"][1], "what is silenced is gathered as often"
        if lane_devices > 1:
            assert found["order"] == "16+16"
            assert found["shares"], "one gathering for two layers"


def plain_in_a_group(lane_devices: int) -> bool:
    """Only one process measures a plain network: nobody waits for the others."""
    mesh = lanes.init_mesh(lane_devices)
    if mesh.get_rank() != 0:
        return True
    found = measured(build(), batches())
    return found["tables"][0].images == 24


def test_a_plain_network_asks_nobody(ranks: Ranks) -> None:
    assert all(ranks(plain_in_a_group, 2, 2, timeout_s=30))
