"""Layers inside a network: who reads whom, in numbers and as pictures, for made weights with known answers."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from lanes.analysis.lane_weights import by_lanes, kernel_norms, own_lane_share
from lanes.pictures.kernels import GAP, kernel_sheets, weight_square
from lanes.pictures.sheets import BLUE_WHITE_RED, LIGHT_TO_DARK, TEXT, grid_columns

GENERATOR = torch.Generator().manual_seed(0)
DENSE = torch.randn(8, 12, 3, 3, generator=GENERATOR)


# Numbers


def test_norms_are_of_the_dense_layer_that_a_grouped_one_is() -> None:
    grouped = nn.Conv2d(12, 8, 3, groups=4, bias=False)
    norms = kernel_norms(grouped.weight, groups=4)
    # The answer to an impulse in one channel is the kernel that reads it, mirrored.
    for column in range(12):
        impulse = torch.zeros(1, 12, 5, 5)
        impulse[0, column, 2, 2] = 1
        answer = grouped(impulse)[0].flatten(1).norm(dim=1)
        assert torch.allclose(norms[:, column].nan_to_num(), answer, atol=1e-6)
        assert norms[:, column].isnan().tolist() == [row // 2 != column // 3 for row in range(8)]


def test_equal_weights_are_at_chance_and_lanes_apart_listen_to_themselves() -> None:
    equal = own_lane_share(torch.full((8, 12, 3, 3), -0.3), 4)
    assert [(found.lane, found.chance) for found in equal] == [(lane, 0.25) for lane in range(4)]
    assert [found.share for found in equal] == pytest.approx([0.25] * 4)
    for found in own_lane_share(torch.randn(8, 3, 3, 3, generator=GENERATOR), 2, groups=4):
        assert (found.share, found.chance) == (1, 1)


def test_shares_of_known_weights() -> None:
    weight = torch.zeros(4, 4)  # a linear layer
    weight[0, 1], weight[1, 2] = 2, -1  # lane 0 reads itself with 4, lane 1 with 1
    weight[2, 3] = 1e-3
    first, second = own_lane_share(weight, 2)
    assert (first.share, second.share, first.chance) == (pytest.approx(0.8), 1, 0.5)
    assert by_lanes(kernel_norms(weight).square(), 2).flatten().tolist() == pytest.approx([4, 1, 0, 1e-6])
    assert math.isnan(own_lane_share(torch.zeros(4, 4), 2)[0].share)


def test_groups_that_do_not_fit_the_lanes_are_counted_weight_by_weight() -> None:
    """Of six channels in three groups and two lanes, the middle group is in both."""
    shares = own_lane_share(torch.ones(6, 2, 1, 1), 2, groups=3)
    assert [found.chance for found in shares] == pytest.approx([5 / 6, 5 / 6])
    assert [found.share for found in shares] == pytest.approx([5 / 6, 5 / 6])


@pytest.mark.parametrize(
    ("weight", "lanes", "groups", "message"),
    [
        (torch.zeros(8, 3, 3, 3), 2, 1, "8 output and 3 input channels do not both divide over lanes=2"),
        (torch.zeros(8, 4), 0, 1, "lanes=0"),
        (torch.zeros(8, 4), 2, 3, "8 output channels do not divide over groups=3"),
        (torch.zeros(8), 2, 1, r"\(8,\) is no layer's weight"),
        (torch.zeros(8, 4, dtype=torch.int64), 2, 1, "int64"),
        (torch.full((2, 2), math.inf), 2, 1, "4 of 4 weights are not finite"),
    ],
)
def test_what_has_no_lanes_is_refused(weight: torch.Tensor, lanes: int, groups: int, message: str) -> None:
    for function in (own_lane_share, weight_square):
        with pytest.raises(ValueError, match=message):
            function(weight, lanes, groups=groups)


# The square


def blocks_of(picture: Image.Image, lanes: int, rows: int, columns: int) -> list[list[np.ndarray]]:
    """What is inside the lines of each pair of lanes [to][from], found by the dark lines."""
    pixels = np.asarray(picture).astype(int)
    dark = (pixels == TEXT).all(-1)
    tops = _stretches(dark.sum(1) > 0.9 * dark.sum(1).max(), lanes)
    lefts = _stretches(dark.sum(0) > 0.9 * dark.sum(0).max(), lanes)
    return [[pixels[top:foot, left:right] for left, right in lefts] for top, foot in tops]


def _stretches(line: np.ndarray, count: int) -> list[tuple[int, int]]:
    """The stretches between lines."""
    places = np.flatnonzero(line)
    found = [(int(a) + 1, int(b)) for a, b in pairwise(places) if b - a > 1]
    assert len(found) == count
    return found


def test_lanes_that_stay_apart_are_blocks_and_no_weight_looks_unlike_zero() -> None:
    weight = torch.randn(8, 6, 3, 3, generator=GENERATOR)
    weight[:4, 0] = 0.0
    apart = blocks_of(weight_square(weight, 2, groups=2), 2, 8, 12)
    zero, darkest = np.array(LIGHT_TO_DARK[0]), np.array(LIGHT_TO_DARK[-1])
    for to in (0, 1):
        across = apart[to][1 - to]
        assert (across.min(-1) == across.max(-1)).all(), "grey lines on white"
        assert {int(grey) for grey in np.unique(across)} == {205, 255}
        assert not (across == zero).all(-1).any()
    assert (apart[0][0][:, :16] == zero).all(), "the first column of lane 0 is zero"
    assert not (apart[1][1] == zero).all(-1).any()
    assert any((apart[lane][lane] == darkest).all(-1).any() for lane in (0, 1))


def test_rows_write_and_columns_are_read() -> None:
    weight = torch.zeros(8, 12)
    weight[1, 11] = -3.0  # of lane 0, from lane 1: the sign does not matter
    square = blocks_of(weight_square(weight, 2), 2, 8, 12)
    marked = [[(block != LIGHT_TO_DARK[0]).any(-1) for block in row] for row in square]
    assert [[bool(block.any()) for block in row] for row in marked] == [[False, True], [False, False]]
    where = np.argwhere(marked[0][1])
    assert where.min(0).tolist() == [16, 5 * 16]
    assert where.max(0).tolist() == [31, 6 * 16 - 1]


def test_large_layers_are_averaged_inside_their_lanes() -> None:
    weight = torch.zeros(2048, 1500)
    weight[:1024, 750:] = 1.0
    picture = weight_square(weight, 2, name="fc")
    assert picture.width <= 1000 >= picture.height
    square = blocks_of(picture, 2, 0, 0)
    for to, row in enumerate(square):
        for lane, block in enumerate(row):
            expected = LIGHT_TO_DARK[-1] if (to, lane) == (0, 1) else LIGHT_TO_DARK[0]
            assert (block == expected).all(), "no block reaches over a border"


@pytest.mark.parametrize(
    ("module", "lanes"),
    [
        (nn.Conv2d(96, 256, 5, groups=2), 2),
        (nn.Conv2d(256, 384, 3), 2),
        (nn.Linear(4096, 10), 2),
        (nn.Conv2d(1024, 1024, 3, groups=1024), 32),
        (nn.Conv1d(4, 4, 3), 1),
        (nn.Conv3d(254, 2 * 733, 1), 2),  # a prime number of channels in a lane
    ],
)
def test_squares_are_of_a_size_to_look_at(module: nn.Conv2d, lanes: int) -> None:
    picture = weight_square(module.weight, lanes, groups=getattr(module, "groups", 1))
    assert picture.mode == "RGB"
    assert 120 <= picture.width <= 1000
    assert 120 <= picture.height <= 1000


# The strongest kernels


def kernels_of(sheet: Image.Image, count: int, size: int) -> np.ndarray:
    """The kernels of a sheet, one pixel a weight, [count, size, size, 3]."""
    upscale = round(48 / size)
    pitch = size * upscale + GAP
    columns = grid_columns(count)
    pixels = np.asarray(sheet)
    # The first line of the grid is the first that is as grey as wide.
    line = (pixels[:, : columns * pitch + GAP] == 205).all((1, 2))
    top = int(np.flatnonzero(line)[0])
    found = []
    for index in range(count):
        row, column = divmod(index, columns)
        y, x = top + GAP + row * pitch + upscale // 2, GAP + column * pitch + upscale // 2
        found.append(pixels[y::upscale, x::upscale][:size, :size])
    return np.stack(found)


def test_strongest_kernels_own_and_across_lanes() -> None:
    weight = torch.zeros(4, 4, 3, 3)
    weight[0, 1], weight[0, 2], weight[1, 0] = 1.0, -1.0, 0.5  # lane 0: own, other, own
    weight[3, 0] = 0.25  # lane 1: other
    first, second = kernel_sheets(weight, 2, strongest=2)
    assert all(sheet is not None for sheet in (*first, *second))
    negative, zero, positive = (np.array(BLUE_WHITE_RED[stop]) for stop in (0, 2, 4))
    own = kernels_of(first.own, 2, 3)
    assert (own[0] == positive).all()
    assert (own[1] == BLUE_WHITE_RED[3]).all(), "half of it, on the scale of all"
    cross = kernels_of(first.cross, 2, 3)
    assert (cross[0] == negative).all()
    assert (cross[1] == zero).all()
    assert (kernels_of(second.own, 2, 3) == zero).all()
    faint = kernels_of(second.cross, 2, 3)[0]
    assert (faint[..., 0] > faint[..., 2]).all()
    assert faint.min() > 100


def test_kernels_keep_their_shape_also_in_groups() -> None:
    weight = torch.zeros(8, 3, 3, 3)
    weight[7, 2, 0, 2], weight[7, 2, 2, 0] = 1.0, -1.0  # lane 1, group 3, its last channel
    sheets = kernel_sheets(weight, 2, groups=4, strongest=1)
    assert [(sheet.own is None, sheet.cross is None) for sheet in sheets] == [(False, True)] * 2
    (kernel,) = kernels_of(sheets[1].own, 1, 3)
    assert (kernel[0, 2] == BLUE_WHITE_RED[4]).all()
    assert (kernel[2, 0] == BLUE_WHITE_RED[0]).all()
    assert (kernel[1, 1] == 255).all()


def test_one_lane_has_no_others_and_lines_and_cubes_are_drawn() -> None:
    for shape in ((4, 4, 5), (4, 4, 3, 3, 3)):
        (sheet,) = kernel_sheets(torch.randn(shape, generator=GENERATOR), 1)
        assert sheet.cross is None
        assert sheet.own is not None
        assert sheet.own.width <= 1000


@pytest.mark.parametrize(
    ("weight", "strongest", "message"),
    [
        (DENSE[..., :1, :1], 64, r"fc has weights \[8, 12, 1, 1\], whose kernels have no shape"),
        (DENSE[..., 0, 0], 64, r"fc has weights \[8, 12\], whose kernels have no shape"),
        (DENSE, 0, "strongest=0 must be 1 or more"),
        (DENSE[:, :5], 64, "8 output and 5 input channels"),
    ],
)
def test_what_has_no_kernels_is_refused(weight: torch.Tensor, strongest: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        kernel_sheets(weight, 2, strongest=strongest, name="fc")
