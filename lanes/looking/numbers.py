"""A layer in numbers, as tables: filter by filter, lane by lane, whether lanes differ, how much each reads itself.

Units stand in the names of columns, and in those of measures. Kept out: the measures and the statistics; files.
"""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from lanes.analysis.lane_statistics import lane_labels
from lanes.analysis.lane_tests import lane_tests
from lanes.analysis.lane_weights import own_lane_share
from lanes.analysis.selectivity import filter_measures
from lanes.analysis.specialisation import MEASURES

UNITS = {"frequency": "frequency_cycles_per_pixel"}  # the name with its unit, where it has one
OF_FILTERS = ("norm", "colour_selectivity", "orientation_selectivity", "orientation_degrees", "frequency")

Row = list[Any]


@dataclass(frozen=True)
class Table:
    """A heading and rows of as many values."""

    heading: list[str]
    rows: list[Row]


def filter_tables(weight: Tensor, lanes: int, layer: str) -> dict[str, Table]:
    """Everything that is said in numbers of a first layer's filters.

    Args:
        weight: [K, 3 or 1, h, w], of all lanes.
        lanes: how many there are; lane i owns the i-th block of K / lanes filters.
        layer: its name.

    Returns:
        Tables "filters", "lanes" and "tests", the latter two without dead filters; of one lane there are no tests.

    Raises:
        ValueError: these are no finite filters of RGB or grey images, or they do not divide over the lanes.
    """
    labels = lane_labels(len(weight), lanes).tolist()
    measured = filter_measures(weight)
    alive = measured.without_dead()
    names = [UNITS.get(name, name) for name in OF_FILTERS]
    columns = [getattr(measured, name).tolist() for name in OF_FILTERS]
    dead = map(int, measured.dead().tolist())
    filters = [list(row) for row in zip(range(len(weight)), labels, *columns, dead, strict=True)]
    by_lane: list[Row] = []
    tested: list[Row] = []
    for found in lane_tests({layer: {name: getattr(alive, name).cpu().numpy() for name in MEASURES}}, lanes):
        name, test = UNITS.get(found.measure, found.measure), found.test
        by_lane += [[name, s.lane, s.count, s.mean, s.median, s.sd, *s.quartiles] for s in found.lanes]
        if test is not None:
            effect, chance = test.effect, [test.p_value, *test.interval, test.draws, int(test.exact)]
            tested.append([name, effect.name, effect.value, *chance, found.corrected])
    return {
        "filters": Table(["filter", "lane", *names, "dead"], filters),
        "lanes": Table(["measure", "lane", "filters", "mean", "median", "sd", "quartile_25", "quartile_75"], by_lane),
        "tests": Table(
            ["measure", "statistic", "effect_size", "p", "p_low", "p_high", "draws", "exact", "p_holm"], tested
        ),
    }


def share_table(weight: Tensor, lanes: int, layer: str, *, groups: int) -> tuple[Table, str]:
    """How much of each lane's squared weight reads the lane's own channels, and the same in one sentence.

    Args:
        weight: [K, C / groups, h, w], of all lanes.
        lanes: how many there are.
        layer: its name.
        groups: of the layer.

    Raises:
        ValueError: the weight is not finite, or lanes or groups do not divide its channels.
    """
    shares = own_lane_share(weight, lanes, groups=groups)
    told = ", ".join(f"lane {s.lane} {s.share:.1%} (by chance {s.chance:.1%})" for s in shares)
    table = Table(["lane", "own_share", "chance_share"], [[s.lane, s.share, s.chance] for s in shares])
    return table, f"{layer}: share of a lane's squared weights that reads its own channels: {told}"
