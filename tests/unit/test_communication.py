"""What is sent, layer by layer: small numbers by hand, and the figures that docs/communication.md shows."""

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import lanes
from lanes.analysis.communication import (
    Sent,
    block_of,
    busiest,
    by_block,
    counted,
    differing,
    gathering_everything,
    megatron_style,
    planned,
    summed,
)
from lanes.analysis.pages import rewritten
from tests.unit.test_scripts import load

DOCS = Path(__file__).parents[2] / "docs" / "communication.md"
CHANNEL = 4 * 6 * 6 / 2  # bytes that one device sends of one gathered channel: float32, 6 x 6, two devices


@pytest.fixture(scope="module")
def script() -> ModuleType:
    return load("communication")


class Residual(nn.Module):
    """A narrow block with a grouped layer, between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        unit = nn.Sequential(nn.Conv2d(8, 4, 1), nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.Conv2d(4, 8, 1))
        self.blocks = nn.Sequential(unit)
        self.head = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head((x + self.blocks(x)).mean((2, 3)))


def residual() -> tuple[nn.Module, Tensor]:
    with torch.device("meta"):
        return Residual(), torch.empty(1, 3, 6, 6)


def test_three_placements_by_hand() -> None:
    net, image = residual()
    plan = lanes.plan(net, image, lane_devices=2)
    nothing = Sent(0, 0)
    assert planned(plan) == {
        "stem": nothing,
        "blocks.0.0": Sent(4 * CHANNEL, 4 * CHANNEL),  # sums the 4 it makes
        "blocks.0.1": nothing,
        "blocks.0.2": Sent(4 * CHANNEL, 4 * CHANNEL),  # gathers the 4 it reads
        "head": Sent(40, 0),  # all-reduces 10 logits
    }
    assert {name: sent for name, sent in megatron_style(plan).items() if sent.total} == {
        "blocks.0.0": Sent(0, 2 * 8 * CHANNEL),
        "blocks.0.2": Sent(2 * 8 * CHANNEL, 0),
    }
    assert gathering_everything(net, image, 2) == {
        "blocks.0.0": Sent(8 * CHANNEL, 8 * CHANNEL),
        "blocks.0.1": Sent(4 * CHANNEL, 4 * CHANNEL),
        "blocks.0.2": Sent(4 * CHANNEL, 4 * CHANNEL),
        "head": Sent(16 + 20, 16),  # 8 means, and the logits
    }


def test_four_devices_send_three_quarters_where_two_send_half() -> None:
    net, image = residual()
    on_two, on_four = (summed(gathering_everything(net, image, devices)) for devices in (2, 4))
    assert (on_four.forward, on_four.backward) == (1.5 * on_two.forward, 1.5 * on_two.backward)


def test_gathering_everything_counts_what_a_strided_layer_reads_and_each_call() -> None:
    class Net(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            x = self[0](x)
            x = self[1](self[1](x))
            return self[3](self[2](x).mean((2, 3)))

    with torch.device("meta"):
        net = Net(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1, stride=2), nn.Linear(8, 2))
        found = gathering_everything(net, torch.empty(1, 3, 6, 6), 2)
        net[0].requires_grad_(False)
        frozen = gathering_everything(net, torch.empty(1, 3, 6, 6), 2)
    assert found["1"] == Sent(2 * 8 * CHANNEL, 2 * 8 * CHANNEL)
    assert found["2"] == Sent(8 * CHANNEL / 4, 8 * CHANNEL / 4)
    assert frozen["1"] == Sent(2 * 8 * CHANNEL, 8 * CHANNEL)  # nothing before its first call has a gradient


@pytest.mark.parametrize(
    ("layer", "block"),
    [
        ("layer1.0.conv2", "layer1.0"),
        ("features.3.conv.0.0", "features.3"),
        ("layer1.10.downsample.1", "layer1.10"),
        ("conv3", "conv3"),
        ("classifier.1", "classifier.1"),
        ("stage2.branch1x1.conv", "stage2.branch1x1.conv"),
    ],
)
def test_blocks_by_name(layer: str, block: str) -> None:
    assert block_of(layer) == block


def test_sums_over_blocks_and_the_busiest_device() -> None:
    one = {"stem": Sent(1, 2), "a.0.x": Sent(3, 4), "a.0.y": Sent(5, 6), "a.1.x": Sent(7, 8)}
    assert by_block(one) == {"stem": Sent(1, 2), "a.0": Sent(8, 10), "a.1": Sent(7, 8)}
    other = {**one, "stem": Sent(2, 1)}
    assert busiest([one, other])["stem"] == Sent(2, 2)
    assert summed(one).total == 36


def test_a_byte_makes_a_difference_and_a_third_does_not() -> None:
    plan = {"a": Sent(10 + 1 / 3, 5), "b": Sent(7, 7)}
    assert differing(plan, {"a": Sent(10, 5), "b": Sent(7, 7)}) == []
    assert differing(plan, {"a": Sent(10, 5), "b": Sent(7, 6)}) == ["b"]
    assert differing(plan, {"a": Sent(12, 5), "b": Sent(7, 7)}) == ["a"]


def test_what_is_counted_is_per_image() -> None:
    with pytest.raises(ValueError, match="a batch of 1, not 2"):
        counted(nn.Identity(), torch.zeros(2, 3), None, [])


def result(script: ModuleType, title: str, lane_devices: int) -> object:
    """As a dry run that counted what was planned."""
    name, arguments = script.CASES[title]
    with torch.device("meta"):
        net = lanes.models.build(name, **arguments)
        image = torch.empty(1, *net.image_shape)
    plan = lanes.plan(net, image, lane_devices=lane_devices)
    kept = sum(layer.kept_bytes for layer in plan.layers.values())
    three = planned(plan), planned(plan), megatron_style(plan), gathering_everything(net, image, lane_devices)
    return script.Result(title, lane_devices, tuple(net.image_shape), *three, kept, 2)


@pytest.mark.parametrize("title", ["alexnet_8_lanes", "resnet50", "mobilenet_v2"])
def test_the_docs_show_what_the_plan_says(script: ModuleType, title: str) -> None:
    docs = DOCS.read_text()
    found = result(script, title, 2)
    assert f"\n{script.row(found)}\n" in docs, "run scripts/communication --out docs/communication.md"
    for line in script.block_rows(found) if title in script.IN_BLOCKS else []:
        assert f"\n{line}\n" in docs, "run scripts/communication --out docs/communication.md"


def test_the_docs_show_every_network(script: ModuleType) -> None:
    docs = DOCS.read_text()
    assert [title for title in script.CASES if f"`{title}`" not in docs] == []
    assert "DIFFERS" not in docs


def test_a_difference_is_told(script: ModuleType) -> None:
    right = result(script, "signal_net", 2)
    wrong = script.Result(**{**vars(right), "counted": {**right.counted, "conv3": Sent(1, 1)}})
    assert script.differences(right) == []
    assert script.row(right).endswith("| equal, 2 of 2 |")
    (told,) = script.differences(wrong)
    assert told.startswith("signal_net on 2: conv3: planned Sent(forward=8192.0")
    assert script.row(wrong).endswith("| DIFFERS |")


def test_tables_are_put_between_markers() -> None:
    text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n"
    assert rewritten(text, {"x": "new"}) == "a\n<!-- x:begin -->\nnew\n<!-- x:end -->\nb\n"
    with pytest.raises(ValueError, match="y:begin"):
        rewritten(text, {"y": "new"})


def test_refusals_share_a_line(script: ModuleType) -> None:
    refused = {("a", 4): "does not divide over 4", ("a", 8): "does not divide over 8", ("b", 8): "no"}
    assert script.refused_lines(refused) == ["- `a` on 4, 8: does not divide over 4", "- `b` on 8: no"]


def test_the_bars_are_drawn(script: ModuleType, tmp_path: Path) -> None:
    script.draw([result(script, "signal_net", 2)], tmp_path / "bars.png")
    with Image.open(tmp_path / "bars.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(10**6)}
    assert {(0x2B, 0x6C, 0xB0), (0xE0, 0xA4, 0x58), (0xC9, 0xC9, 0xC9)} <= colours


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--nets", "resnet5"], "there is no resnet5"),
        (["--devices", "two"], "whole numbers"),
        (["--nets", "alexnet", "--out", "x.md"], "leave --nets away"),
    ],
)
def test_mistakes_in_arguments(
    script: ModuleType,
    arguments: list[str],
    words: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(sys, "argv", ["communication", *arguments])
    with pytest.raises(SystemExit) as error:
        script.main()
    assert error.value.code == 2
    assert words in capsys.readouterr().err
