"""How the numbers of a study are written in tables.

Kept out: the numbers.
"""

import math
from collections.abc import Sequence

from lanes.analysis.over_seeds import Estimate


def estimate(found: Estimate, *, digits: int = 2, sign: bool = False) -> str:
    """A number with its 95 % interval: "0.61 [0.55, 0.67]"; without, of a single run."""
    form = f"{'+' if sign else ''}.{digits}f"
    if math.isnan(found.low):
        return f"{found.value:{form}}"
    return f"{found.value:{form}} [{found.low:{form}}, {found.high:{form}}]"


def percent(found: Estimate, *, digits: int = 0) -> str:
    """A share with its 95 % interval: "97 % [83, 100]"."""
    if math.isnan(found.low):
        return f"{100 * found.value:.{digits}f} %"
    return f"{100 * found.value:.{digits}f} % [{100 * found.low:.{digits}f}, {100 * found.high:.{digits}f}]"


def p_value(p: float) -> str:
    """Two digits; "-" where there is none."""
    return "-" if math.isnan(p) else "< 0.0001" if p < 1e-4 else f"{p:.2g}"


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *lines))
