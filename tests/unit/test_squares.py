"""Squares: the colour of every element, borders between lanes, one scale for all of a size, readable refusals."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from lanes.analysis.covariance import LayerCovariance
from lanes.pictures.sheets import LIGHT_TO_DARK, TEXT, colour_bar, coloured
from lanes.pictures.squares import LARGEST, MARGIN, WIDTH, ratio_in_words, square_picture, square_scale

BAR = colour_bar(LIGHT_TO_DARK, ["0", "1"]).height + 6  # pixels below the square


def drawn(square: Tensor, lanes: int, **options: object) -> Image.Image:
    return square_picture(square, ("one", "two"), lanes, images=8, samples=800, **options)  # type: ignore[arg-type]


def body(picture: Image.Image, height: int, width: int) -> np.ndarray:
    """Of a square drawn with so many pixels."""
    top = picture.height - BAR - height
    return np.asarray(picture)[top : top + height, MARGIN : MARGIN + width]


def test_every_element_is_at_its_place_and_borders_between() -> None:
    square = torch.rand(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times, gap = round(WIDTH / 6), 2
    pixels = body(drawn(square, 2, scale=1.0), 4 * times + gap, 6 * times + gap)
    for row in range(4):
        for column in range(6):
            y, x = row * times + gap * (row >= 2), column * times + gap * (column >= 3)
            wanted = coloured(square[row, column].numpy(), LIGHT_TO_DARK)
            assert (pixels[y : y + times, x : x + times] == wanted).all(), (row, column)
    assert (pixels[2 * times : 2 * times + gap] == TEXT).all()
    assert (pixels[:, 3 * times : 3 * times + gap] == TEXT).all()
    alone = body(drawn(square, 1, scale=1.0), 4 * times, 6 * times)
    assert not (alone == TEXT).all(-1).any(), "one lane has no borders"


def test_the_scale_is_that_of_the_square_or_as_given() -> None:
    square = torch.full((20, 20), 0.1, dtype=torch.float64)
    square[0, 0] = 0.9  # one extreme element does not make the others pale
    times = WIDTH // 20
    own = body(drawn(square, 1), 20 * times, 20 * times)
    assert (own[-1, -1] == LIGHT_TO_DARK[-1]).all()
    given = body(drawn(square, 1, scale=0.2), 20 * times, 20 * times)
    assert (given[-1, -1] == coloured(np.array(0.5), LIGHT_TO_DARK)).all()
    assert (given[0, 0] == LIGHT_TO_DARK[-1]).all(), "what is above the scale is the darkest"
    drawn(torch.zeros(4, 4), 2)  # no division by zero


def test_no_square_outgrows_the_scale_of_its_size() -> None:
    """The bound that the scale rests on, where it is reached: a layer and itself, and one and a mixture of it."""
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(600, 16, dtype=torch.float64, generator=generator)
    turned = first @ torch.linalg.qr(torch.randn(16, 16, dtype=torch.float64, generator=generator))[0]
    for second in (first, turned):
        metric = LayerCovariance((16, 16))
        metric.update(first, second)
        assert float(metric.compute()["whitened"].square().mean().sqrt()) == pytest.approx(1 / math.sqrt(16), rel=1e-9)
    assert square_scale((16, 16), "whitened") == pytest.approx(0.75)
    assert square_scale((96, 384), "whitened") == square_scale((384, 96), "whitened") < 0.16
    assert square_scale((4, 4), "whitened") == square_scale((384, 384), "correlation") == 1


@pytest.mark.parametrize(("channels", "times"), [(4, 100), (96, 4), (128, 3), (384, 1), (700, 1)])
def test_small_layers_are_enlarged_by_whole_numbers(channels: int, times: int) -> None:
    assert drawn(torch.rand(channels, channels), 1).width == MARGIN + 6 + channels * times


def test_large_layers_are_averaged_inside_lanes() -> None:
    square = torch.zeros(2048, 1024)
    for lane in range(32):
        square[64 * lane : 64 * lane + 64, 32 * lane : 32 * lane + 32] = 0.5
    picture = drawn(square, 32, scale=0.5)
    assert max(picture.size) < LARGEST + 200
    pixels = body(picture, 512 + 31, 256 + 31)  # four channels a pixel, a line between lanes
    assert {tuple(colour) for colour in pixels.reshape(-1, 3).tolist()} == {
        TEXT,
        LIGHT_TO_DARK[0],
        LIGHT_TO_DARK[-1],
    }


def test_titles_say_the_ratio() -> None:
    blocks = torch.block_diag(torch.ones(2, 2), torch.ones(2, 2))
    assert ratio_in_words(blocks + 1, 2) == "in-lane / cross-lane 2.00x"
    assert ratio_in_words(blocks, 2) == "nothing across lanes"
    assert ratio_in_words(0 * blocks, 2) == "nothing varies together"


@pytest.mark.parametrize(
    ("square", "lanes", "scale", "message"),
    [
        (torch.zeros(4, 6), 4, None, r"\(4, 6\) does not divide over lanes=4"),
        (torch.zeros(4), 1, None, r"\(4,\) does not divide"),
        (torch.zeros(4, 4), 0, None, "lanes=0"),
        (torch.full((4, 4), math.nan), 2, None, "not finite"),
        (torch.zeros(4, 4), 2, 0.0, "scale=0.0 must be a positive magnitude"),
    ],
)
def test_what_cannot_be_drawn_is_refused(square: Tensor, lanes: int, scale: float | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        drawn(square, lanes, scale=scale)
