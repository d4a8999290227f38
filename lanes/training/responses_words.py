"""What ``lanes responses`` has found, in three short tables with words.

Kept out: the numbers' files (responses_files.py).
"""

import math

from lanes.analysis.lane_tests import LEVEL, LaneTest
from lanes.analysis.lesion_counts import LesionCount
from lanes.tables import table
from lanes.training.responses_files import Findings

SHOWN_LANES = 4  # more do not fit beside one another


def in_words(found: Findings) -> str:
    """The lanes' tests, the pairs' block ratios and the lesions; what there is none of is left out."""
    lanes = f"{found.lanes} lane{'s' if found.lanes > 1 else ''}"
    alone = "; --lanes 2 compares two" if found.lanes == 1 else ""
    parts = [f"{found.measured.images:,} images, {lanes}{alone}"]
    if found.tests:
        made = sum(test.test is not None for test in found.tests)
        parts.append(f"{_lanes(found)}\np: corrected for all {made} tests (Holm)")
    if found.measured.pairs:
        parts.append(_pairs(found))
    parts.append(_lesions(found))
    return "\n\n".join(parts)


def _lanes(found: Findings) -> str:
    single = found.lanes <= SHOWN_LANES
    heads = [f"lane {lane}" for lane in range(found.lanes)] if single else ["lowest lane", "highest lane"]
    rows = [["layer", "median of", *heads, "effect", "p", ""]]
    for test in found.tests:
        medians = [lane.median for lane in test.lanes]
        known = [median for median in medians if not math.isnan(median)]
        shown = medians if single else [min(known, default=math.nan), max(known, default=math.nan)]
        cells = [_number(median) for median in shown]
        effect, p_value = "-", "-"
        if test.test is not None:
            effect, p_value = f"{test.test.effect.value:+.2f}", f"{test.corrected:.2g}"
        rows.append([test.layer, test.measure.replace("_", " "), *cells, effect, p_value, _verdict(test)])
    return table(rows, "<<" + ">" * (len(heads) + 2) + "<")


def _verdict(test: LaneTest) -> str:
    if test.test is None:
        return "cannot be compared"
    if test.corrected > LEVEL:
        return "no difference beyond chance"
    if len(test.lanes) > 2:
        return "lanes differ"
    return f"lanes differ: more in lane {int(test.test.effect.value < 0)}"  # Cliff's delta: positive, lane 0 has more


def _pairs(found: Findings) -> str:
    rows = [["inside lanes / between lanes", "whitened", "correlation", "samples", ""]]
    for pair in found.measured.pairs:
        ratios = found.block_ratios(pair)
        cells = [_number(ratios[name]) for name in ("whitened", "correlation")]
        rows.append([f"{pair.first} - {pair.second}", *cells, f"{pair.samples:,}", pair.remark])
    return table(rows, "<>>><")


def _lesions(found: Findings) -> str:
    looks = list(dict.fromkeys(case.images for case in found.measured.lesions))
    by_place: dict[str, dict[str, LesionCount]] = {}
    for case in found.measured.lesions:
        place = f"{case.layer} lane {case.lane}" if case.layer else "nothing"
        by_place.setdefault(place, {})[case.images] = case
    rows = [["silenced", *(f"right in {look}" for look in looks)]]
    rows += [[place, *(_share(cases[look]) for look in looks)] for place, cases in by_place.items()]
    return table(rows, "<" + ">" * len(looks)) + "\nin brackets: 95 % confidence interval (Wilson)"


def _share(case: LesionCount) -> str:
    low, high = case.interval
    return f"{100 * case.accuracy:.1f} % ({100 * low:.1f} - {100 * high:.1f})"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
