"""What a run of scripts/studies/specialisation says of its lanes, from its row.

Columns: those of `analysis.specialisation.specialisation`; "effect/MEASURE@STEP" and "p/MEASURE@STEP" while training;
accuracies "whole/LOOK" and "withoutLANE/LOOK" on images of the looks "colour" and "grey"; "steps", of all training.

Kept out: making runs, tables over runs, figures.
"""

import math

from lanes.analysis.lane_tests import LEVEL, holm
from lanes.analysis.specialisation import MEASURES
from lanes.studies.runs import Row

WATCHED = COLOUR, ORIENTATION = "colour_selectivity", "orientation_selectivity"  # also while training


def lanes_of(row: Row) -> int:
    """How many lanes, or parts of a net without lanes, a run compared."""
    return sum(key.startswith("without") and key.endswith("/colour") for key in row)


def colour_lane(row: Row) -> int:
    """The lane whose filters are, on average, the most selective for colour."""
    return max(range(lanes_of(row)), key=lambda lane: float(row.get(f"lane{lane}/{COLOUR}", 0.0)))


def is_less(row: Row, measure: str) -> bool:
    """Whether the colour lane, of two, has less of a measure than the other."""
    lane = colour_lane(row)
    return float(row[f"lane{lane}/{measure}"]) < float(row[f"lane{1 - lane}/{measure}"])


def split(row: Row, measure: str) -> bool:
    """Whether the lanes of a run differ in a measure, corrected for all that are measured."""
    corrected = dict(zip(MEASURES, holm([float(row[f"p/{name}"]) for name in MEASURES]), strict=True))
    return corrected[measure] <= LEVEL


def moments(row: Row, measure: str) -> dict[int, float]:
    """Step -> p-value of a measure alone, the last one that of the end."""
    before = f"p/{measure}@"
    earlier = {int(key.removeprefix(before)): float(p) for key, p in row.items() if key.startswith(before)}
    return earlier | {int(row["steps"]): float(row[f"p/{measure}"])}


def arises(row: Row, measure: str) -> float:
    """The first look from which on lanes differ (p <= 0.05) at all looks; infinite if the run does not `split`."""
    step = math.inf
    if not split(row, measure):
        return step
    for moment, p in sorted(moments(row, measure).items(), reverse=True):
        if p > LEVEL:
            break
        step = moment
    return step


def interaction(row: Row) -> float:
    """How much more colour images lose than grey ones without the colour lane, beyond the same without the other."""
    lane = colour_lane(row)
    lost = {
        (which, look): float(row[f"whole/{look}"]) - float(row[f"without{which}/{look}"])
        for which in (0, 1)
        for look in ("colour", "grey")
    }
    return (lost[lane, "colour"] - lost[lane, "grey"]) - (lost[1 - lane, "colour"] - lost[1 - lane, "grey"])


def lesioned(row: Row) -> dict[str, float]:
    """Accuracies: whole, without the colour lane, without the other."""
    lane = colour_lane(row)
    cases = {"whole": "whole", "without colour lane": f"without{lane}", "without the other": f"without{1 - lane}"}
    looks = ("colour", "grey")
    return {f"{words}, {look}": float(row[f"{key}/{look}"]) for words, key in cases.items() for look in looks}
