"""What the first-layer filters of each lane have become, in a few numbers; whether lanes differ by more than chance.

Kept out: the measures themselves (selectivity.py), the statistics (lane_statistics.py), when to look.
"""

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from lanes.analysis.lane_statistics import lane_labels, lane_summaries, permutation_test
from lanes.analysis.lane_tests import LEVEL, holm
from lanes.analysis.selectivity import filter_measures

MEASURES = {
    "colour_selectivity": "colour selectivity",
    "orientation_selectivity": "orientation selectivity",
    "frequency": "spatial frequency",
}


def specialisation(weight: Tensor, lanes: int) -> dict[str, float]:
    """Measure the filters of a first layer, lane by lane.

    Args:
        weight: [K, 3 or 1, h, w], of all lanes.
        lanes: how many there are; lane i owns the i-th block of K / lanes filters.

    Returns:
        For each of `MEASURES`: "lane{i}/{measure}", the mean over the lane's filters, dead ones left out; and, where
        two or more lanes have any, "effect/{measure}" (of two lanes Cliff's delta, positive if lane 0 has more; of more
        lanes epsilon-squared) and "p/{measure}" (permutation test of this measure alone). And "lane{i}/dead", the share
        of dead filters, see `FilterMeasures.dead`.

    Raises:
        ValueError: these are no finite filters of RGB or grey images, or they do not divide over the lanes.
    """
    labels = lane_labels(len(weight), lanes)
    measured = filter_measures(weight)
    alive = measured.without_dead()
    numbers: dict[str, float] = {}
    for name in MEASURES:
        values = getattr(alive, name).cpu().numpy()
        found = [summary for summary in lane_summaries(values, labels) if summary.count]
        numbers |= {f"lane{summary.lane}/{name}": summary.mean for summary in found}
        if len(found) > 1:
            test = permutation_test(values, labels)
            numbers |= {f"effect/{name}": test.effect.value, f"p/{name}": test.p_value}
    dead = measured.dead().cpu().numpy()
    return numbers | {f"lane{lane}/dead": float(np.mean(dead[labels == lane])) for lane in range(lanes)}


def in_words(numbers: Mapping[str, float], layer: str) -> str:
    """What `specialisation` has found, in one sentence; p-values corrected for the number of measures (Holm 1979)."""
    tests = {name: numbers[f"p/{name}"] for name in MEASURES if f"p/{name}" in numbers}
    differ: list[str] = []
    alike: list[str] = []
    for corrected, name in sorted(zip(holm(list(tests.values())), tests, strict=True)):
        means = ", ".join(f"{numbers[key]:.2f}" for key in _of_lanes(numbers, name))
        told = f"means {means}; effect {numbers[f'effect/{name}']:+.2f}, corrected p = {corrected:.2g}"
        (differ if corrected <= LEVEL else alike).append(f"{MEASURES[name]} ({told})")
    if not tests:
        return f"{layer}: fewer than two lanes have filters that can be compared"
    first = f"lanes differ in {' and '.join(differ)}" if differ else "lanes do not differ by more than chance"
    rest = f"; not, by more than chance, in {' and '.join(alike)}" if differ and alike else ""
    rest = f": {' and '.join(alike)}" if not differ else rest
    return f"{layer}: {first}{rest}"


def _of_lanes(numbers: Mapping[str, float], name: str) -> list[str]:
    """The keys of a measure, lane by lane; lane 10 comes after lane 9."""
    keys = [key for key in numbers if key.startswith("lane") and key.endswith(f"/{name}")]
    return sorted(keys, key=lambda key: int(key.partition("/")[0].removeprefix("lane")))
