"""Lanes of made filters: what is found in each, whether they differ, and how that is said."""

import math

import pytest
import torch
from torch import Tensor

from lanes.analysis.specialisation import in_words, specialisation


def gratings(count: int, *, coloured: bool) -> Tensor:
    """[count, 3, 9, 9]: upright gratings of several frequencies and phases, grey or red-green."""
    x = torch.arange(9.0).expand(9, 9)
    axis = torch.tensor([1.0, -1.0, 0.0] if coloured else [1.0, 1.0, 1.0])
    waves = [torch.cos(2 * math.pi * (0.1 + 0.02 * (k % 8)) * x + k) for k in range(count)]
    return torch.stack([axis[:, None, None] * wave for wave in waves])


def test_two_lanes_of_which_one_is_coloured() -> None:
    found = specialisation(torch.cat([gratings(12, coloured=False), gratings(12, coloured=True)]), 2)
    assert (found["lane0/colour_selectivity"], found["lane1/colour_selectivity"]) == pytest.approx((0, 1), abs=1e-12)
    assert found["effect/colour_selectivity"] == -1  # lane 0 has less
    assert found["p/colour_selectivity"] < 0.001
    assert found["p/orientation_selectivity"] > 0.05
    assert found["lane0/orientation_selectivity"] > 0.7
    words = in_words(found, "conv1")
    told = "means 0.00, 1.00; effect -1.00, corrected p = 0.0003"
    assert words.startswith(f"conv1: lanes differ in colour selectivity ({told})")
    assert "; not, by more than chance, in " in words


def test_lanes_of_noise_do_not_differ() -> None:
    torch.manual_seed(1)
    found = specialisation(torch.randn(32, 3, 7, 7), 4)
    assert all(found[f"p/{name}"] > 0.05 / 3 for name in ("colour_selectivity", "orientation_selectivity", "frequency"))
    assert in_words(found, "conv1").startswith("conv1: lanes do not differ by more than chance: ")


def test_p_values_are_corrected_in_words() -> None:
    tests = {"colour_selectivity": 0.02, "orientation_selectivity": 0.02, "frequency": 0.04}
    numbers = {f"p/{name}": p for name, p in tests.items()} | {f"effect/{name}": 0.5 for name in tests}
    numbers |= {f"lane{lane}/{name}": float(lane) for name in tests for lane in (0, 1, 10, 2)}
    words = in_words(numbers, "conv1")
    assert words.startswith("conv1: lanes do not differ by more than chance: ")
    assert words.count("p = 0.06") == 3  # 3 x 0.02, and never less for a larger p
    assert "means 0.00, 1.00, 2.00, 10.00" in words


def test_one_lane_and_dead_ones() -> None:
    weight = gratings(8, coloured=True)
    assert not [key for key in specialisation(weight, 1) if key.startswith(("p/", "effect/"))]
    weight[4:] = 0
    found = specialisation(weight, 2)
    assert (found["lane0/dead"], found["lane1/dead"]) == (0, 1)
    assert "lane1/frequency" not in found
    assert "fewer than two lanes" in in_words(found, "conv1")
    with pytest.raises(ValueError, match="8 filters do not divide over lanes=3"):
        specialisation(weight, 3)
