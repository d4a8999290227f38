"""Filter pictures: the pixel of every weight, one scale for all lanes, and readable refusals."""

import numpy as np
import pytest
import torch
from PIL import Image

from lanes.pictures.filters import ZERO, filter_grids, filter_scale, separator_width
from lanes.pictures.sheets import GROUND, grid_columns


def _pixel(picture: Image.Image, grid_shape: tuple[int, int], place: tuple[int, int, int, int], size: int, scale: int):
    """Return the pixels of weight (y, x) of the filter at (row, column) of a grid of (rows, columns)."""
    pitch, gap = size * scale + separator_width(scale), separator_width(scale)
    row, column, y, x = place
    top = picture.height - (grid_shape[0] * pitch + gap)  # the grid is at the bottom, under the title
    y, x = top + gap + row * pitch + y * scale, gap + column * pitch + x * scale
    return np.asarray(picture)[y : y + scale, x : x + scale]


def test_every_weight_is_at_its_place():
    lanes, upscale, size = 2, 6, 5
    weight = torch.randint(-127, 128, (24, 3, size, size), generator=torch.Generator().manual_seed(0)).float()
    weight[7, 1, 2, 2] = weight[0, 0, 0, 0] = 127
    weight[:1, :, 0, :] = 127  # enough of them for the percentile to be 127: a pixel is then 128 + weight
    pictures = filter_grids(weight, lanes, upscale)
    assert len(pictures) == lanes
    assert grid_columns(12) == 4
    for index, filter_ in enumerate(weight):
        lane, inside = divmod(index, 12)
        for y in range(size):
            for x in range(size):
                got = _pixel(pictures[lane], (3, 4), (*divmod(inside, 4), y, x), size, upscale)
                expected = (ZERO + filter_[:, y, x]).round().numpy()
                assert (got == expected).all(), (index, y, x)


def test_lines_between_filters_are_neutral():
    picture = np.asarray(filter_grids(torch.zeros(4, 3, 3, 3), 1, 10)[0])
    grid = picture[-(2 * 34 + 4) :, : 2 * 34 + 4]
    for start in (0, 34, 68):
        assert (grid[start : start + 4] == GROUND).all()
        assert (grid[:, start : start + 4] == GROUND).all()
    assert (grid[4:34, 4:34] == ZERO).all()  # zero weights are mid-grey, not a division by zero


def test_all_lanes_share_one_symmetric_scale():
    weight = torch.zeros(4, 3, 3, 3)
    weight[:2], weight[2], weight[3] = 0.1, 1.0, -1.0
    weak, strong = filter_grids(weight, 2, 10)
    assert (_pixel(weak, (1, 2), (0, 0, 1, 1), 3, 10) == round(128 + 12.7)).all()
    assert (_pixel(strong, (1, 2), (0, 0, 1, 1), 3, 10) == 255).all()
    assert (_pixel(strong, (1, 2), (0, 1, 1, 1), 3, 10) == 1).all()
    assert weak.size == strong.size


def test_one_extreme_weight_does_not_grey_out_the_rest():
    weight = torch.full((16, 3, 5, 5), 0.5)
    weight[3, 1, 2, 2] = -50.0
    assert filter_scale(weight) == 0.5
    assert filter_scale(torch.zeros(2, 3, 3, 3)) == 1.0


def test_grey_filters_are_drawn_grey():
    weight = torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    pixels = np.asarray(filter_grids(weight, 1)[0])
    assert (pixels.min(-1) == pixels.max(-1)).all()


@pytest.mark.parametrize(("count", "columns"), [(1, 1), (2, 2), (4, 2), (12, 4), (24, 6), (48, 8), (96, 12), (7, 4)])
def test_grids_are_near_square_with_few_blanks(count, columns):
    assert grid_columns(count) == columns


@pytest.mark.parametrize(("size", "lanes"), [(3, 32), (5, 4), (7, 2), (11, 2)])
def test_filters_are_large_enough_to_see_and_lanes_alike(size, lanes):
    pictures = filter_grids(torch.randn(64, 3, size, size), lanes)
    assert {picture.mode for picture in pictures} == {"RGB"}
    assert len({picture.size for picture in pictures}) == 1
    columns = grid_columns(64 // lanes)
    assert pictures[0].width >= 48 * columns
    if columns > 3:
        assert pictures[0].width <= 64 * columns


def test_titles_name_the_lane():
    first, second = filter_grids(torch.zeros(2, 3, 11, 11), 2, name="stem")
    title = first.height - 63  # one filter of 55 pixels between two lines of 4
    assert not np.array_equal(np.asarray(first)[:title], np.asarray(second)[:title])
    assert np.array_equal(np.asarray(first)[title:], np.asarray(second)[title:])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_training_parameters_are_accepted(dtype):
    weight = torch.nn.Parameter(torch.randn(4, 3, 3, 3, dtype=dtype).contiguous(memory_format=torch.channels_last))
    assert len(filter_grids(weight, 2)) == 2


@pytest.mark.parametrize(
    ("weight", "lanes", "upscale", "message"),
    [
        (torch.zeros(4, 3, 3), 2, None, r"\(4, 3, 3\) are no pictures"),
        (torch.zeros(4, 2, 3, 3), 2, None, "read 2 channels, which have no colour"),
        (torch.zeros(4, 3, 3, 3), 3, None, "4 filters do not divide over lanes=3"),
        (torch.zeros(4, 3, 3, 3), 0, None, "lanes=0"),
        (torch.zeros(4, 3, 3, 3), 2, 0, "upscale=0 must be 1 or more"),
        (torch.full((4, 3, 1, 1), float("nan")), 2, None, "12 of 12 weights are not finite"),
    ],
)
def test_what_cannot_be_drawn_is_refused(weight, lanes, upscale, message):
    with pytest.raises(ValueError, match=message):
        filter_grids(weight, lanes, upscale)
