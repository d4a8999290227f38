"""Whether lanes differ in many measures at once: a test of each, corrected for how many there are.

Kept out: the statistics of one measure (lane_statistics.py).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from lanes.analysis.lane_statistics import LaneSummary, PermutationTest, lane_labels, lane_summaries, permutation_test

LEVEL = 0.05


@dataclass(frozen=True)
class LaneTest:
    """How lanes differ in a measure of a layer.

    Attributes:
        layer: its name.
        measure: its name.
        lanes: the distribution in each.
        test: of the measure alone; None if fewer than two lanes have values.
        corrected: its p-value, corrected for all tests that were made together (Holm); NaN without a test.
    """

    layer: str
    measure: str
    lanes: tuple[LaneSummary, ...]
    test: PermutationTest | None
    corrected: float


def lane_tests(measures: Mapping[str, Mapping[str, ArrayLike]], lanes: int, *, draws: int = 9999) -> list[LaneTest]:
    """Test every measure of every layer.

    Args:
        measures: layer -> measure -> values [channels], NaN where there is none.
        lanes: how many; lane i owns the i-th of so many equal blocks of channels.
        draws: of each test.

    Raises:
        ValueError: the channels of a layer do not divide over the lanes.
    """
    found: list[tuple[str, str, list[LaneSummary], PermutationTest | None]] = []
    for layer, of_layer in measures.items():
        for measure, values in of_layer.items():
            labels = lane_labels(len(np.asarray(values)), lanes)
            summaries = lane_summaries(values, labels)
            several = sum(summary.count > 0 for summary in summaries) > 1
            found.append(
                (layer, measure, summaries, permutation_test(values, labels, draws=draws) if several else None)
            )
    tests = [test for *_, test in found if test is not None]
    corrected = dict(zip(map(id, tests), holm([test.p_value for test in tests]), strict=True))
    return [
        LaneTest(layer, measure, tuple(summaries), test, corrected.get(id(test), np.nan))
        for layer, measure, summaries, test in found
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for how many there are, in their order: each test at level a is then one of all of them.

    Source: Holm, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6 (1979).
    """
    corrected, reached = [0.0] * len(p_values), 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        reached = min(1.0, max(reached, (len(p_values) - place) * p_values[index]))
        corrected[index] = reached
    return corrected
