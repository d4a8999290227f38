"""Pictures of layers inside a network: who reads whom, a square with lane borders, and the strongest kernels by lane.

A layer is a matrix of kernels, one for each output channel (row) and input channel that it reads (column); see
`lanes.analysis.lane_weights`. Give the whole weight (of a placed model: the full tensor). First layers, whose kernels
have colours, are drawn in filters.py.

Legend: K output channels, C input channels, of all lanes; R rows and Q columns of the square as drawn.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from lanes.analysis.lane_weights import by_lanes, kernel_norms, own_lane
from lanes.pictures.sheets import (
    BLUE_WHITE_RED,
    GROUND,
    LIGHT_TO_DARK,
    TEXT,
    TITLE_MARGIN,
    TITLE_SIZE,
    beside,
    colour_bar,
    coloured,
    font,
    grid,
    stacked,
    titled,
)

SQUARE_SIDE = 720  # pixels, at most, without its borders
CELL_SIDE = 16  # pixels, at most
PERCENTILE = 99.5
KERNEL_SIDE = 48  # pixels, about
GAP, LINES = 6, 205  # pixels between kernels and their grey, from which white, zero, can be told
SLICE_GAP = 2  # pixels
HATCH_EVERY, HATCH = 6, 205  # pixels from line to line, and their grey

Numbers = NDArray[np.floating]


class KernelSheets(NamedTuple):
    """The strongest kernels of one lane's output channels; None where there are none."""

    own: Image.Image | None
    cross: Image.Image | None


def weight_square(weight: Tensor, lanes: int, *, groups: int = 1, name: str = "conv2") -> Image.Image:
    """Draw how strongly each output channel (row) reads each input channel (column): the 2-norm of its kernel.

    Lanes are told apart by lines and numbers. Where groups leave no weight it is hatched; a weight of zero is the
    lightest blue. A large layer is averaged into blocks that do not reach over lane borders; its title says so.

    Args:
        weight: [K, C / groups, ...] of a convolution or [K, C] of a linear layer, floating point, any device.
        lanes: how many; lane i owns the i-th block of the rows and of the columns.
        groups: of the layer.
        name: of the layer, for the title.

    Returns:
        A titled RGB picture with its scale, less than 1000 pixels wide and high: from 0 to the 99.5th percentile of
        what is drawn, beyond which the colour does not change.

    Raises:
        ValueError: the weight is not finite, or groups or lanes do not divide its channels.
    """
    norms = kernel_norms(weight, groups=groups)
    squares, counts = by_lanes(norms.square(), lanes), by_lanes(norms.isnan().logical_not(), lanes)
    inside, chance = (float(sums.trace() / sums.sum()) for sums in (squares, counts))
    blocks = [_block(size // lanes, SQUARE_SIDE // lanes) for size in norms.shape]
    cells = _averaged(norms, lanes, blocks)
    drawn = np.abs(cells[~np.isnan(cells)])
    top = float(np.percentile(drawn, PERCENTILE, method="higher")) or 1.0
    sheet = _with_lanes(_square(cells, top, lanes), lanes)
    kernel = "x".join(map(str, weight.shape[2:]))
    facts = [
        name,
        f"norms of {norms.shape[0]} x {norms.shape[1]} {f'kernels {kernel}' if kernel else 'weights'}",
        *([f"each dot the mean of {blocks[0]} x {blocks[1]}"] if max(blocks) > 1 else []),
        "rows: to, columns: from",
        f"own lane {inside:.1%} of squared weight, chance {chance:.1%}",
    ]
    top_label = f"{top:.2g}{' or more' if (drawn > top).any() else ''}"
    bar = colour_bar(LIGHT_TO_DARK, ("0", f"{top / 2:.2g}", top_label))
    legend = beside([bar, _hatched_key()], gap=12) if np.isnan(cells).any() else bar
    return titled(stacked([sheet, legend], gap=TITLE_MARGIN), facts)


def kernel_sheets(
    weight: Tensor, lanes: int, *, groups: int = 1, name: str = "conv2", strongest: int = 64
) -> list[KernelSheets]:
    """Draw the strongest kernels of every lane, those that read the lane's own channels and those that read others'.

    Strongest first, row by row. Zero is white, positive red, negative blue; one scale for all sheets: the 99.5th
    percentile of the weights drawn. Kernels of three dimensions are drawn slice beside slice, of one as a line.

    Args:
        weight: [K, C / groups, ...] of a convolution with kernels of more than one weight, any device.
        lanes: how many; lane i owns the i-th block of the output channels and of the input channels.
        groups: of the layer.
        name: of the layer, for the title.
        strongest: how many kernels a sheet shows, at most.

    Returns:
        For each lane two titled RGB pictures with the scale; None instead of one for which there are no weights.

    Raises:
        ValueError: the weight is not finite, groups or lanes do not divide its channels, or kernels have no shape.
    """
    if strongest < 1:
        raise ValueError(f"strongest={strongest} must be 1 or more kernels")
    norms = kernel_norms(weight, groups=groups)
    own = own_lane(norms, lanes).cpu().numpy()
    if weight[0, 0].numel() == 1 or weight.dim() > 5:
        raise ValueError(
            f"{name} has weights {list(weight.shape)}, whose kernels have no shape to show: draw its weight_square"
        )
    strength = norms.cpu().numpy()
    kernels = weight.detach().float().cpu().numpy()
    kernels = kernels.reshape(*kernels.shape[:2], *(1,) * (5 - kernels.ndim), *kernels.shape[2:])  # [K, C, d, h, w]
    chosen: list[tuple[int, str, Numbers, int]] = []
    for lane, rows in enumerate(np.split(np.arange(len(own)), lanes)):
        for which, mask in (("own lane", own), ("other lanes", ~own)):
            row, column = np.nonzero(mask[rows] & ~np.isnan(strength[rows]))
            order = np.argsort(-strength[rows][row, column], kind="stable")[:strongest]
            picked = kernels[rows[row[order]], column[order] % kernels.shape[1]]  # stored by column inside the group
            chosen.append((lane, which, picked, len(row)))
    drawn = np.concatenate([np.abs(picked).ravel() for _, _, picked, _ in chosen])
    scale = float(np.percentile(drawn, PERCENTILE, method="higher")) or 1.0
    longest = f"lane {lanes - 1} · {name} · other lanes"
    sheets = [
        _sheet(
            picked, scale, [f"lane {lane} · {name} · {which}", f"{len(picked)} strongest of {total} kernels"], longest
        )
        for lane, which, picked, total in chosen
    ]
    return [KernelSheets(*pair) for pair in zip(sheets[::2], sheets[1::2], strict=True)]


def _sheet(kernels: Numbers, scale: float, facts: list[str], longest: str) -> Image.Image | None:
    """The kernels [n, d, h, w] on a grid with title and scale; None of no kernels."""
    if not len(kernels):
        return None
    upscale = max(1, round(KERNEL_SIDE / max(kernels.shape[2:])))
    pixels = coloured((kernels / scale + 1) / 2, BLUE_WHITE_RED).repeat(upscale, axis=2).repeat(upscale, axis=3)
    slices = [
        np.pad(part, ((0, 0), (0, 0), (0, SLICE_GAP), (0, 0)), constant_values=LINES) for part in pixels.swapaxes(0, 1)
    ]
    sheet = Image.fromarray(grid(np.concatenate(slices, axis=2)[:, :, :-SLICE_GAP], GAP, ground=LINES))
    bar = colour_bar(BLUE_WHITE_RED, (f"-{scale:.2g}", "0", f"+{scale:.2g}"))
    size = "x".join(str(side) for side in kernels.shape[1:] if side > 1)
    return titled(stacked([sheet, bar], gap=TITLE_MARGIN), [*facts[:-1], f"{facts[-1]} {size}"], longest=longest)


def _block(length: int, room: int) -> int:
    """How many channels of a lane's `length` make one dot, so that `room` dots suffice: a divisor, if one is near."""
    least = -(-length // max(1, room))
    return next((block for block in range(least, 2 * least + 1) if length % block == 0), least)


def _averaged(norms: Tensor, lanes: int, blocks: list[int]) -> Numbers:
    """Means over blocks of the weights that there are, [R, Q]; NaN where there are none."""
    parts = norms.float().cpu().unflatten(1, (lanes, -1)).unflatten(0, (lanes, -1)).movedim(2, 1).flatten(0, 1)[:, None]

    def pooled(values: Tensor) -> Tensor:
        return F.avg_pool2d(values, blocks, ceil_mode=True)  # at a border, of what is left

    means = pooled(parts.nan_to_num()) / pooled(parts.isnan().logical_not().float())
    return means[:, 0].unflatten(0, (lanes, lanes)).movedim(1, 2).flatten(2).flatten(0, 1).numpy()


def _square(cells: Numbers, top: float, lanes: int) -> NDArray[np.uint8]:
    """The dots [R, Q] as pixels, with lines between and around lanes."""
    sides = [_cell_side(size) for size in cells.shape]
    pixels = coloured(np.nan_to_num(cells) / top, LIGHT_TO_DARK)
    pixels = pixels.repeat(sides[0], axis=0).repeat(sides[1], axis=1)
    missing = np.isnan(cells).repeat(sides[0], axis=0).repeat(sides[1], axis=1)
    pixels[missing] = _hatched(missing.shape)[missing]
    line = _line(lanes)
    for axis in (0, 1):
        length = pixels.shape[axis] // lanes
        pixels = np.insert(pixels, np.repeat(np.arange(lanes + 1) * length, line), TEXT, axis=axis)
    return pixels


def _with_lanes(pixels: NDArray[np.uint8], lanes: int) -> Image.Image:
    """Numbers of lanes at the left and above; as many as there is room for."""
    lettering, line = font(TITLE_SIZE - 2), _line(lanes)
    steps = [(size - line) / lanes for size in pixels.shape[:2]]  # from lane to lane, in pixels
    left = round(lettering.getlength(f"to lane {lanes - 1}")) + 2 * TITLE_MARGIN
    above = TITLE_SIZE + TITLE_MARGIN
    sheet = Image.new("RGB", (left + pixels.shape[1] + TITLE_MARGIN, above + pixels.shape[0]), (GROUND,) * 3)
    sheet.paste(Image.fromarray(pixels), (left, above))
    pen = ImageDraw.Draw(sheet)
    longest = [f"from lane {lanes - 1}", f"{lanes - 1}"]
    words = "from lane " if lettering.getlength(longest[0]) + 3 * TITLE_MARGIN <= steps[1] else ""
    widest = lettering.getlength(words + longest[1]) + TITLE_MARGIN
    for lane in range(0, lanes, -(-TITLE_SIZE // max(1, int(steps[0])))):
        place = above + (lane + 0.5) * steps[0]
        pen.text((left - TITLE_MARGIN, place), f"to lane {lane}", fill=TEXT, font=lettering, anchor="rm")
    for lane in range(0, lanes, max(1, -int(-widest // steps[1]))):
        pen.text((left + (lane + 0.5) * steps[1], 2), f"{words}{lane}", fill=TEXT, font=lettering, anchor="ma")
    return sheet


def _hatched(shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Grey lines that rise to the right on white, [height, width, 3]."""
    rows, columns = np.indices(shape)
    line = (rows + columns) % HATCH_EVERY < 2
    return np.where(line, HATCH, GROUND).astype(np.uint8)[..., None].repeat(3, axis=2)


def _hatched_key() -> Image.Image:
    """What hatching means."""
    words, lettering = "no weight", font(TITLE_SIZE - 2)
    sheet = Image.new("RGB", (34 + round(lettering.getlength(words)), TITLE_SIZE + 2 * TITLE_MARGIN), (GROUND,) * 3)
    sheet.paste(Image.fromarray(_hatched((12, 24))), (0, TITLE_MARGIN))
    pen = ImageDraw.Draw(sheet)
    pen.rectangle((0, TITLE_MARGIN, 23, TITLE_MARGIN + 11), outline=(150, 150, 150))
    pen.text((30, TITLE_MARGIN - 1), words, fill=TEXT, font=lettering)
    return sheet


def _line(lanes: int) -> int:
    """Width of the lines between lanes, in pixels: many lines would hide what is between them."""
    return 2 if lanes <= 16 else 1


def _cell_side(cells: int) -> int:
    return min(CELL_SIDE, max(1, SQUARE_SIDE // cells))
