"""Distributions: dots where the numbers are, none hidden, quartiles and medians; what lanes differ in, in words."""

import numpy as np
import pytest
import torch
from PIL import Image

from lanes.analysis.specialisation import specialisation
from lanes.pictures.distributions import (
    AXES,
    HEAD,
    LEFT,
    RIGHT,
    ROW,
    WIDTH,
    Axis,
    _stacked,
    distribution_picture,
    in_words,
    specialisation_picture,
)
from lanes.pictures.palette import lane_colour
from lanes.pictures.sheets import TEXT

AXIS = Axis("share", "of all", (0, 2))
LABELS = np.repeat([0, 1], 5)


def has(picture: Image.Image, colour: tuple[int, int, int], x: float, lane: int) -> bool:
    """Whether a colour is found at a place of the axis, in a lane's row."""
    column = round(LEFT + x / 2 * (WIDTH - LEFT - RIGHT))
    rows = np.asarray(picture)[HEAD + lane * ROW : HEAD + (lane + 1) * ROW - 1, column - 1 : column + 2]
    return bool((rows == colour).all(-1).any())


def test_dots_and_medians_are_where_the_numbers_are() -> None:
    values = [0.1, 0.2, 0.5, 1.0, 1.9, 0.3, 0.3, 0.3, 5.0, np.nan]
    picture = distribution_picture(values, LABELS, axis=AXIS)
    for value in (0.1, 0.2, 1.0, 1.9):
        assert has(picture, lane_colour(0), value, 0), value
        assert not has(picture, lane_colour(1), value, 1), value
    assert has(picture, TEXT, 0.5, 0), "the median"
    assert has(picture, TEXT, 0.3, 1)
    assert has(picture, lane_colour(1), 2.0, 1), "what lies beyond is drawn at the end"
    assert not has(picture, lane_colour(0), 1.5, 0)


def test_dots_on_one_place_are_stacked_and_do_not_leave_the_row() -> None:
    at = np.array([100.0, 100.0, 101.0, 200.0])
    assert sorted(set(_stacked(at, 40))) == [(100, 14), (100, 20), (101, 26), (200, 20)]
    crowd = [y for _, y in _stacked(np.full(50, 100.0), 40)]
    assert len(set(crowd)) > 30
    assert (min(crowd), max(crowd)) == (3, 37)


def test_the_same_numbers_give_the_same_picture() -> None:
    values = np.random.default_rng(0).normal(1, 0.3, 200)
    first, second = (distribution_picture(values, np.arange(200) // 50, axis=AXIS) for _ in range(2))
    assert first.tobytes() == second.tobytes()


def test_the_dead_are_left_out_and_counted() -> None:
    torch.manual_seed(0)
    weight = torch.randn(12, 3, 5, 5)
    weight[7:9] = 0
    found = specialisation(weight, 2)
    whole = specialisation_picture(weight, 2, found, layer="conv1")
    assert whole.width == WIDTH
    dead = np.arange(12) // 7 * (np.arange(12) < 9)
    values = np.where(dead, np.nan, 0.5)
    with_dead = distribution_picture(values, np.arange(12) // 6, axis=AXIS, dead=dead)
    without = distribution_picture(values, np.arange(12) // 6, axis=AXIS)
    changed = (np.asarray(with_dead) != np.asarray(without)).any((1, 2))
    assert not changed[: HEAD + ROW].any(), "lane 0 has none"
    assert changed[HEAD + ROW : HEAD + 2 * ROW].any(), "beside lane 1 they are counted"
    distribution_picture(np.full(4, np.nan), [0, 0, 1, 1], axis=AXIS)  # nothing left at all


@pytest.mark.parametrize("lanes", [1, 8, 32])
def test_many_lanes_and_one(lanes: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(64, 1, 3, 3)
    picture = specialisation_picture(weight, lanes, specialisation(weight, lanes), layer="conv1")
    assert picture.width == WIDTH
    assert picture.height < len(AXES) * 600


def test_effects_in_words() -> None:
    two = {"lane0/frequency": 0.1, "lane1/frequency": 0.2, "effect/frequency": -0.5, "p/frequency": 0.0123}
    assert in_words(two, "frequency") == "lane 1 has more in 75% of pairs (Cliff's delta -0.50), p = 0.012"
    assert in_words(two | {"effect/frequency": 1.0}, "frequency").startswith("lane 0 has more in 100% of pairs")
    assert in_words(two | {"effect/frequency": 0.005}, "frequency").startswith("neither lane has more (")
    three = two | {"lane2/frequency": 0.3, "effect/frequency": 0.23}
    assert in_words(three, "frequency") == "23% of the ranks' variance is between lanes, p = 0.012"
    assert in_words({"lane0/frequency": 0.1}, "frequency") == ""
