"""Filter pictures: the pixel of every weight, views and scales with known answers, and readable refusals."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from lanes.analysis.selectivity import opponent_axes
from lanes.pictures.filters import OPPONENT_PANELS, PANEL_GAP, ZERO, filter_grids, filter_scale, separator_width
from lanes.pictures.sheets import GROUND, colour_bar, coloured, grid_columns
from lanes.training import FilterPictures


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


SIGNS = torch.tensor([[1.0, -1.0, 1.0], [-1.0, 1.0, -1.0], [1.0, 1.0, 0.0]])


def _panels(picture: Image.Image, columns: int = 1) -> list[np.ndarray]:
    """The panels of an opponent picture of one row of 3x3 filters at 10 pixels a weight: [3, 3 columns, 3] each."""
    gap = separator_width(10)
    height = 30 + 2 * gap
    pitch = height + PANEL_GAP + colour_bar(OPPONENT_PANELS[0][1], ("", "")).height
    panels = []
    for place in (2, 1, 0):
        grid = np.asarray(picture)[picture.height - height - place * pitch :][gap : gap + 30]
        filters = [grid[5::10, gap + column * (30 + gap) :][:, 5:35:10] for column in range(columns)]
        panels.append(np.concatenate(filters, axis=1))
    return panels


@pytest.mark.parametrize("axis", range(3))
def test_a_pure_colour_appears_on_its_opponent_axis_only(axis):
    weight = opponent_axes()[axis][None, :, None, None] * SIGNS
    (picture,) = filter_grids(weight, 1, 10, view="opponent")
    for place, (panel, (name, colours)) in enumerate(zip(_panels(picture), OPPONENT_PANELS, strict=True)):
        if place == axis:
            assert (panel == coloured((SIGNS.numpy() + 1) / 2, colours)).all(), name
        else:
            assert (panel == ZERO).all(), name


def test_red_white_and_yellow_point_to_their_ends():
    weight = torch.zeros(3, 3, 3, 3)
    weight[0, 0] = weight[1] = weight[2, :2] = 1.0  # red, white, yellow
    panels = _panels(filter_grids(weight, 1, 10, view="opponent")[0], columns=3)
    scale = 3**0.5  # white's length along the first axis
    along = opponent_axes() @ torch.tensor([[1, 1, 1], [0, 1, 1], [0, 1, 0]], dtype=torch.float64)  # [axes, filters]
    for panel, values, (name, colours) in zip(panels, along.numpy(), OPPONENT_PANELS, strict=True):
        expected = coloured((values / scale + 1) / 2, colours)
        for column in range(3):
            assert (panel[:, 3 * column : 3 * column + 3] == expected[column]).all(), name
    red, yellow = panels[1][0, 0].astype(int), panels[2][0, 6].astype(int)
    assert red[0] > red[1]
    assert yellow[:2].min() > yellow[2]


def test_grey_filters_have_no_colour_on_opponent_axes():
    weight = torch.randn(1, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    intensity, *colours = _panels(filter_grids(weight, 1, 10, view="opponent")[0])
    assert intensity.std() > 10
    assert all((panel == ZERO).all() for panel in colours)


def test_signs_on_opponent_axes_can_be_told_without_hues():
    for name, colours in OPPONENT_PANELS:
        first, middle, last = (np.dot((0.2126, 0.7152, 0.0722), (np.array(c) / 255) ** 2.2) for c in colours)
        contrasts = [(max(pair) + 0.05) / (min(pair) + 0.05) for pair in ((first, middle), (middle, last))]
        assert min(contrasts) > 1.9, name
        assert (first < middle) == (middle < last), name


def test_the_grey_view_keeps_what_is_grey_and_nothing_else():
    weight = torch.zeros(3, 3, 3, 3)
    weight[0] = SIGNS  # grey
    weight[1, 0], weight[1, 1] = SIGNS, -SIGNS  # red against green
    weight[2, 2] = SIGNS  # blue: a third of it is grey
    (picture,) = filter_grids(weight, 1, 10, view="grey")
    for column, share in enumerate((1, 0, 1 / 3)):
        for y, x in ((0, 0), (0, 1), (2, 2)):
            expected = round(ZERO + 127 * share * float(SIGNS[y, x]))
            assert (_pixel(picture, (1, 3), (0, column, y, x), 3, 10) == expected).all()


@pytest.mark.parametrize("view", ["rgb", "grey", "opponent"])
def test_on_scales_of_their_own_filters_of_any_strength_look_alike(view):
    weight = torch.randn(1, 3, 3, 3, generator=torch.Generator().manual_seed(0)).repeat(2, 1, 1, 1)
    weight[0] *= 1e-4
    common, own = (filter_grids(weight, 2, 10, view=view, scale=scale) for scale in ("layer", "filter"))
    below = own[0].height - 34  # the last grid: the titles above name the lanes
    assert np.array_equal(np.asarray(own[0])[below:], np.asarray(own[1])[below:])
    assert not np.array_equal(np.asarray(common[0])[-34:], np.asarray(common[1])[-34:])


def test_on_a_scale_of_its_own_the_largest_weight_is_at_the_end():
    weight = torch.full((2, 3, 3, 3), 0.1)
    weight[0, 1, 1, 1], weight[1] = -0.4, 0.0
    (picture,) = filter_grids(weight, 1, 10, scale="filter")
    assert (_pixel(picture, (1, 2), (0, 0, 1, 1), 3, 10) == [round(128 + 127 / 4), 1, round(128 + 127 / 4)]).all()
    assert (_pixel(picture, (1, 2), (0, 1, 1, 1), 3, 10) == ZERO).all()  # a filter of zeros


def test_the_default_is_colour_on_one_scale():
    weight = torch.randn(8, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    default, asked = filter_grids(weight, 2), filter_grids(weight, 2, view="rgb", scale="layer")
    assert all(np.array_equal(np.asarray(one), np.asarray(two)) for one, two in zip(default, asked, strict=True))
    others = [{"view": "grey"}, {"view": "opponent"}, {"scale": "filter"}]
    assert all(filter_grids(weight, 2, **other)[0].tobytes() != default[0].tobytes() for other in others)


@pytest.mark.parametrize(
    ("look", "message"),
    [
        ({"view": "gray"}, "view='gray' is not one of 'rgb', 'grey', 'opponent'; did you mean 'grey'?"),
        ({"view": None}, "view=None is not one of 'rgb', 'grey', 'opponent'"),
        ({"scale": "global"}, "scale='global' is not one of 'layer', 'filter'"),
    ],
)
def test_unknown_views_and_scales_are_refused(look, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        filter_grids(torch.zeros(4, 3, 3, 3), 2, **look)
    with pytest.raises(ValueError, match="FilterPictures: " + re.escape(message)):
        FilterPictures(**look)
