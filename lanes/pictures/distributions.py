"""Pictures of how a measure of filters is distributed in each lane: a dot for every filter, on one axis for all lanes.

Dots are stacked where they would lie on one another, without chance: the same numbers give the same picture.

Kept out: the measures and the tests.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from lanes.analysis.lane_statistics import LaneSummary, lane_labels, lane_summaries
from lanes.analysis.selectivity import filter_measures
from lanes.analysis.specialisation import MEASURES
from lanes.pictures.palette import Colour, lane_colour, lighter
from lanes.pictures.sheets import GROUND, TEXT, font, stacked, titled

WIDTH, LEFT, RIGHT = 640, 96, 16  # pixels: of a picture, of the lanes' names, of what is right of the axis
ROW, LEAST_ROW, HIGHEST = 48, 16, 400  # pixels of a lane; of many lanes less, so that all take no more than the last
HEAD, FOOT, DOT, TEXT_SIZE = 24, 40, 6, 12  # pixels
GRID: Colour = (228, 231, 235)


@dataclass(frozen=True)
class Axis:
    """What the common axis of all lanes says.

    Attributes:
        name: of the measure.
        unit: of its numbers.
        limits: lowest and highest number; fixed, so that pictures of several steps and runs can be compared.
    """

    name: str
    unit: str
    limits: tuple[float, float]


AXES = {  # of the measures of lanes.analysis.specialisation
    "colour_selectivity": Axis(MEASURES["colour_selectivity"], "chromatic share of squared weights", (0, 1)),
    "orientation_selectivity": Axis(MEASURES["orientation_selectivity"], "0: none, 1: one orientation only", (0, 1)),
    "frequency": Axis(MEASURES["frequency"], "cycles per pixel", (0, 0.5)),
}


def specialisation_picture(weight: Tensor, lanes: int, numbers: Mapping[str, float], *, layer: str) -> Image.Image:
    """All measures of a first layer's filters, lane by lane.

    Args:
        weight: [K, 3 or 1, h, w], of all lanes.
        lanes: how many there are; lane i owns the i-th block of K / lanes filters.
        numbers: what `lanes.analysis.specialisation.specialisation` found in it: effects and p-values are told.
        layer: its name, for the title.

    Raises:
        ValueError: these are no finite filters of RGB or grey images, or they do not divide over the lanes.
    """
    labels = lane_labels(len(weight), lanes)
    measured = filter_measures(weight)
    dead = measured.dead().cpu().numpy()
    alive = measured.without_dead()
    panels = [
        distribution_picture(
            getattr(alive, name).cpu().numpy(), labels, axis=axis, said=in_words(numbers, name), dead=dead
        )
        for name, axis in AXES.items()
    ]
    facts = [layer, f"{len(weight)} filters {weight.shape[2]}x{weight.shape[3]} in {lanes} lane{'s'[: lanes > 1]}"]
    facts += [f"{int(dead.sum())} dead, left out", "box: quartiles, line: median"]
    tested = any(key.startswith("p/") for key in numbers)
    return titled(stacked(panels), [*facts, *["p: of each measure alone"][:tested]])


def distribution_picture(
    values: ArrayLike, labels: ArrayLike, *, axis: Axis, said: str = "", dead: ArrayLike | None = None
) -> Image.Image:
    """One measure, a row for each lane: every filter a dot, a box from the lower to the upper quartile, the median.

    Args:
        values: [filters], NaN where a filter cannot be measured; what lies beyond the axis is drawn at its end.
        labels: [filters], the lane of each.
        axis: what the numbers are.
        said: a few words on how lanes differ, right of the measure's name.
        dead: [filters], which are left out because they are dead; counted beside each lane.
    """
    numbers, where = np.asarray(values, np.float64), np.asarray(labels)
    summaries = lane_summaries(numbers, where)
    gone = np.zeros(len(where), bool) if dead is None else np.asarray(dead, bool)
    row = max(LEAST_ROW, min(ROW, HIGHEST // len(summaries)))
    bottom = HEAD + row * len(summaries)
    sheet = Image.new("RGB", (WIDTH, bottom + FOOT), (GROUND,) * 3)
    pen = ImageDraw.Draw(sheet)
    _draw_axis(pen, axis, bottom)
    pen.text((4, HEAD / 2), axis.name, fill=TEXT, font=font(), anchor="lm")
    pen.text((WIDTH - RIGHT, HEAD / 2), said, fill=TEXT, font=font(TEXT_SIZE), anchor="rm")
    for place, summary in enumerate(summaries):
        own = where == summary.lane
        top = HEAD + place * row
        _draw_lane(sheet, numbers[own & ~np.isnan(numbers)], summary, axis, (top, row))
        _name(pen, summary, int(gone[own].sum()), (top, row))
    return sheet


def in_words(numbers: Mapping[str, float], name: str) -> str:
    """How lanes differ in a measure, from the numbers of `lanes.analysis.specialisation.specialisation`.

    Of two lanes Cliff's delta is told as the share of pairs, one filter of each, in which that of one lane has more;
    ties count half. p is the one that is logged: of this measure alone.
    """
    if f"p/{name}" not in numbers:
        return ""
    effect, p_value = numbers[f"effect/{name}"], numbers[f"p/{name}"]
    lanes = [key for key in numbers if key.startswith("lane") and key.endswith(f"/{name}")]
    if len(lanes) == 2:
        lane = lanes[0 if effect >= 0 else 1].partition("/")[0].replace("lane", "lane ")
        share = f"{(1 + abs(effect)) / 2:.0%}"
        words = "neither lane has more" if share == "50%" else f"{lane} has more in {share} of pairs"
        words += f" (Cliff's delta {effect:+.2f})"
    else:
        words = f"{effect:.0%} of the ranks' variance is between lanes"
    return f"{words}, p = {p_value:.2g}"


def _x(values: ArrayLike, axis: Axis) -> NDArray[np.float64]:
    """Where numbers lie, in pixels from the left."""
    low, high = axis.limits
    share = np.clip((np.asarray(values, np.float64) - low) / (high - low), 0, 1)
    return LEFT + share * (WIDTH - LEFT - RIGHT)


def _draw_axis(pen: ImageDraw.ImageDraw, axis: Axis, bottom: int) -> None:
    for tick in np.linspace(*axis.limits, 6):
        x = round(float(_x(tick, axis)))
        pen.line((x, HEAD, x, bottom + 3), fill=GRID)
        pen.text((x, bottom + 5), f"{tick:.2g}", fill=TEXT, font=font(TEXT_SIZE), anchor="ma")
    pen.text(((LEFT + WIDTH - RIGHT) / 2, bottom + 20), axis.unit, fill=TEXT, font=font(TEXT_SIZE), anchor="ma")


def _draw_lane(
    sheet: Image.Image, values: NDArray[np.float64], summary: LaneSummary, axis: Axis, place: tuple[int, int]
) -> None:
    (top, row), colour, pen = place, lane_colour(summary.lane), ImageDraw.Draw(sheet)
    pen.line((LEFT, top + row - 1, WIDTH - RIGHT, top + row - 1), fill=GRID)
    if not summary.count:
        return
    left, right = _x(summary.quartiles, axis).round()
    pen.rectangle((left, top + 3, right, top + row - 5), fill=lighter(colour, 0.78), outline=lighter(colour, 0.4))
    stamp = _dot(colour)
    for x, y in _stacked(_x(values, axis), row - 8):
        sheet.paste(stamp, (x - DOT // 2, top + 4 + y - DOT // 2), stamp)
    median = round(float(_x(summary.median, axis)))
    pen.rectangle((median - 1, top + 1, median, top + row - 3), fill=TEXT)


def _stacked(places: NDArray[np.float64], height: int) -> Iterable[tuple[int, int]]:
    """Where the middles of dots are drawn: those of about one place on one another, around the middle of the height."""
    columns = np.round(places / DOT).astype(int)
    for column in np.unique(columns):
        here = np.sort(places[columns == column])
        apart = min(DOT, (height - DOT) / max(1, len(here) - 1))
        for number, x in enumerate(here):
            yield round(float(x)), round(height / 2 + (number - (len(here) - 1) / 2) * apart)


def _dot(colour: Colour) -> Image.Image:
    """A small disc with smooth edges and a thin light rim, so that neighbours can be told apart."""
    large = Image.new("RGBA", (8 * (DOT + 1),) * 2)
    pen = ImageDraw.Draw(large)
    pen.ellipse((0, 0, *(side - 1 for side in large.size)), fill=(GROUND,) * 3 + (255,))
    pen.ellipse((6, 6, *(side - 7 for side in large.size)), fill=(*colour, 255))
    return large.reduce(8)


def _name(pen: ImageDraw.ImageDraw, summary: LaneSummary, dead: int, place: tuple[int, int]) -> None:
    top, row = place
    lines: Sequence[str] = [f"lane {summary.lane}", f"n = {summary.count}", f"{dead} dead"][: 3 if dead else 2]
    if row < len(lines) * (TEXT_SIZE + 2):
        lines = [f"{summary.lane}: n {summary.count}" + (f", {dead} dead" if dead else "")]
    first = top + row / 2 - (len(lines) - 1) * (TEXT_SIZE + 1) / 2
    pen.rectangle((4, top + 3, 8, top + row - 5), fill=lane_colour(summary.lane))
    for number, line in enumerate(lines):
        pen.text((13, first + number * (TEXT_SIZE + 1)), line, fill=TEXT, font=font(TEXT_SIZE), anchor="lm")
