"""What the scripts of scripts/studies/ make of rows with known answers; that their runs work is tests/integration's."""

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image

from lanes.analysis.covariance import block_ratio
from lanes.grouping import grouping_report
from lanes.studies.runs import Row
from lanes.training import Photographs
from tests.unit.test_scripts import load


@pytest.fixture(scope="module")
def specialisation() -> ModuleType:
    return load("studies/specialisation")


@pytest.fixture(scope="module")
def correlation() -> ModuleType:
    return load("studies/correlation")


def run_of(module: ModuleType, arm: str, seed: int, *, colour_lane: int, p: float = 0.001, since: int = 64) -> Row:
    """A run whose lanes differ in colour from a step on, and are alike in frequency."""
    parts = module.PARTS[arm]
    row: Row = {"arm": arm, "seed": seed, "steps": 768, "data": "photographs"}
    sign = 1 if colour_lane == 0 else -1
    for name, effect, chance in (
        ("colour_selectivity", 0.6 * sign, p),
        ("orientation_selectivity", -0.4 * sign, 0.9),
        ("frequency", 0.0, 0.9),
    ):
        row |= {f"effect/{name}": effect, f"p/{name}": chance}
        for lane in range(parts):
            row[f"lane{lane}/{name}"] = 0.5 + 0.1 * (effect if lane == colour_lane else 0) * sign
    for step in module.LOOKS:
        for name in module.WATCHED:
            row[f"effect/{name}@{step}"] = 0.0
            row[f"p/{name}@{step}"] = 0.01 if name == module.COLOUR and step >= since else 0.7
    row |= {"whole/colour": 0.9, "whole/grey": 0.5}
    for lane in range(parts):
        lost = (0.6, 0.2) if lane == colour_lane else (0.3, 0.3)
        row |= {f"without{lane}/colour": 0.9 - lost[0], f"without{lane}/grey": 0.5 - lost[1]}
    return row


def test_when_lanes_come_to_differ(specialisation: ModuleType) -> None:
    row = run_of(specialisation, "two lanes", 0, colour_lane=1, since=96)
    assert specialisation.arises(row, specialisation.COLOUR) == 96
    assert specialisation.arises(row, specialisation.ORIENTATION) == float("inf")
    row["p/colour_selectivity@192"] = 0.06
    assert specialisation.arises(row, specialisation.COLOUR) == 256, "for good"
    assert list(specialisation.moments(row, specialisation.COLOUR))[-1] == 768
    row["p/colour_selectivity"] = 0.03
    assert specialisation.arises(row, specialisation.COLOUR) == float("inf"), "corrected for three it does not count"


def test_which_lane_is_the_colour_lane_and_what_it_is_for(specialisation: ModuleType) -> None:
    for lane in (0, 1):
        row = run_of(specialisation, "two lanes", 0, colour_lane=lane)
        assert specialisation.colour_lane(row) == lane
        assert specialisation.split(row, specialisation.COLOUR)
        assert not specialisation.split(row, specialisation.ORIENTATION)
        assert specialisation.interaction(row) == pytest.approx((0.6 - 0.2) - (0.3 - 0.3))
    assert not specialisation.split(run_of(specialisation, "two lanes", 0, colour_lane=0, p=0.02), "colour_selectivity")


def test_tables_of_specialisation(specialisation: ModuleType, tmp_path: Path) -> None:
    rows = [run_of(specialisation, "two lanes", seed, colour_lane=seed % 2) for seed in range(10)]
    rows += [run_of(specialisation, "no lanes", seed, colour_lane=0, p=0.5, since=999) for seed in range(4)]
    rows += [run_of(specialisation, "four lanes", seed, colour_lane=2) for seed in range(2)]
    text = specialisation.tables(rows)
    assert "| two lanes | 10 | 10 of 10 (100 % [69, 100]) | 0 of 10 (0 % [0, 31]) | 0.60 [0.60, 0.60] |" in text
    assert "| no lanes | 4 | 0 of 4 (0 % [0, 60]) |" in text
    assert "| lane 0 is the colour lane | 5 of 10 | 50 % [19, 81] | 1/2 | 1 |" in text
    assert "orientation | 10 of 10 | 100 % [69, 100] | 4 of 4; two lanes 4 of 4 | 1 |" in text
    assert "| two lanes | 64; 10 of 10: 64 - 64 |" in text
    assert "+40.0 [+40.0, +40.0] |" in text
    # McNemar: on all of 4 common seeds the one and not the other, 2 / 2^4 = 0.125, corrected for five
    assert "| no lanes | colour selectivity differs: runs | 4 of 4 | 0 of 4 |  | 0.62 |" in text
    specialisation.draw(rows, tmp_path / "figure.png")
    with Image.open(tmp_path / "figure.png") as picture:
        assert len(picture.convert("RGB").reduce(4).getcolors(10**6)) > 50, "an empty sheet"
    assert specialisation.tables(rows[:1]), "of a single run, too"
    specialisation.draw(rows[:1], tmp_path / "figure.png")


def test_halves_of_filters_dealt_at_random_do_not_differ(specialisation: ModuleType) -> None:
    """The control without lanes: of networks whose filters are noise a share of 5 % at most counts as different."""
    counted = 0
    for seed in range(60):
        torch.manual_seed(seed)
        net = torch.nn.Module()
        net.conv1 = torch.nn.Conv2d(3, 48, 7)
        counted += specialisation.split(specialisation.measured(net, "no lanes"), specialisation.COLOUR)
    assert counted <= 8, (
        "8 of 60 or more happen by chance once in hundred times at 5 %, and each is corrected for three"
    )


def test_squares_are_kept(correlation: ModuleType, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    square = torch.from_numpy(generator.random((48, 48)) * 0.1)
    for block in range(8):
        square[6 * block : 6 * block + 6, 6 * block : 6 * block + 6] += 0.2
    scale = correlation.square_scale((48, 48), "whitened")
    read = correlation.unpacked(correlation.packed(square))
    assert np.abs(read * scale - square.numpy()).max() <= scale / 510 + 1e-12
    rows: list[Row] = [
        {
            **{"arm": arm, "seed": seed, "top1": 0.5, "square": correlation.packed(square)},
            **{"whitened/before": 1.5, "whitened/after": block_ratio(square, 8), "correlation/after": 1.1},
        }
        for arm in ("8 groups", "no groups")
        for seed in range(2)
    ]
    rows[0]["whitened/after"] = 6.0
    text = correlation.tables(rows)
    assert "| 8 groups | 2 | 1.50 [1.50, 1.50] |" in text
    assert "| 8 groups - no groups, after training |" in text
    correlation.draw(rows, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("width", [16, 32])
def test_grouped_networks_of_equal_size(width: int) -> None:
    fashion = load("studies/fashion_mnist")
    sizes = {}
    for arm in (arm.name for arm in fashion.ARMS):
        channels, groups = fashion.form(arm, width)
        net = fashion.network(channels, groups, 10)
        sizes[arm] = sum(weight.numel() for weight in net.parameters())
        assert sizes[arm] == fashion.parameters(channels, groups)
        assert {layer.groups for layer in (net.conv2, net.conv3)} == {groups}
        assert grouping_report(net, torch.empty(1, 1, 28, 28)).multiply_adds
    assert sizes["4 groups, same parameters"] == pytest.approx(sizes["ungrouped"], rel=0.005)
    assert sizes["4 groups, same width"] < 0.3 * sizes["ungrouped"]


def test_never_more_than_0_3_points() -> None:
    fashion = load("studies/fashion_mnist")
    rows: list[Row] = [
        {"arm": arm, "seed": seed, "top1": 0.9 + add, "train_top1": 0.95}
        for arm, adds in (("ungrouped", (0, 0, 0)), ("4 groups, same width", (-0.004, -0.001, 0.001)))
        for seed, add in enumerate(adds)
    ]
    assert "| 4 groups, same width - ungrouped | 1 of 3 | -0.13 [-0.56, +0.29] |" in fashion.within(rows)
    assert "| ungrouped, one seed - another | 0 of 3 |" in fashion.within(rows)
    assert fashion.within(rows[:1]) == ""


def test_less_capacity_is_no_regularisation() -> None:
    """Both kinds of networks narrow the gap by a point; one by doing worse on all images."""
    fashion, noise = load("studies/fashion_mnist"), (0.0, 0.0004, -0.0004, 0.0002)
    rows: list[Row] = [
        {"arm": arm, "seed": seed, "top1": 0.87 + val + add, "train_top1": 0.90 + training}
        for arm, val, training in (
            ("ungrouped", 0.0, 0.0),
            ("4 groups, same width", -0.01, -0.02),
            ("4 groups, same parameters", 0.0, -0.01),
        )
        for seed, add in enumerate(noise if val or training else (0.0,) * 4)
    ]
    worse, regular = (line.split(" | ") for line in fashion.regularises(rows).splitlines()[2:4])
    assert worse[1:] == ["< 0.0001", "1", "1 |"]
    assert regular[1] == "< 0.0001"
    assert float(regular[3].removesuffix(" |").removeprefix("< ")) < 0.001


def test_before_training_batch_norm_has_the_images_statistics(correlation: ModuleType) -> None:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    data = Photographs(image_size=16, num_train=300, num_val=40)
    data.setup("fit")
    before, state = {name: value.clone() for name, value in net.state_dict().items()}, torch.get_rng_state()
    found = correlation.with_statistics(net, data, 256)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items()), "the network itself stays"
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.cat([images for images, _ in correlation.images_of(data.train_set, torch.device("cpu"), 256)])
    mean, std = correlation.normal(data, torch.device("cpu"))
    with torch.no_grad():
        seen = found(correlation.normalize(images, mean, std))
    assert seen.mean((0, 2, 3)).abs().max() < 1e-5
    assert (seen.var((0, 2, 3)) - 1).abs().max() < 1e-3


def test_the_one_lane_has_half_the_kernels() -> None:
    """Of conv1 to conv4, as in the paper's footnote 2: of one of the two lanes."""
    script = load("studies/two_lanes_or_one")
    two, one, none = (script.network(arm.name, script.Settings()) for arm in script.ARMS)
    for name in ("conv1", "conv2", "conv3", "conv4"):
        assert two.get_submodule(name).out_channels == 2 * one.get_submodule(name).out_channels, name
        assert two.get_submodule(name).out_channels == none.get_submodule(name).out_channels, name
    assert (two.conv2.groups, one.conv2.groups, none.conv2.groups) == (2, 1, 1)
    assert two.conv5.out_channels == one.conv5.out_channels == none.conv5.out_channels
