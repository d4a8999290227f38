"""What several runs with different seeds say together: means, differences, shares, each with its 95 % interval.

Runs with different seeds are independent draws, which filters of one network are not: claims about *networks* rest on
these numbers. What is compared with the same seeds is compared pair by pair. No run is left out: where a pair is not
whole, or a number is not finite, that is an error, for the caller to decide and to tell.

Kept out: tests of one network (lane_statistics.py), correcting many tests (lane_tests.holm), the numbers themselves.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A number from several runs, and how well they tell it.

    Attributes:
        value: the mean, the difference of means, or the share.
        low, high: 95 % confidence interval; NaN of a single run.
        runs: how many, or how many pairs.
    """

    value: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True)
class Difference:
    """How far two arms of a study are apart.

    Attributes:
        estimate: of the first minus the second.
        p_value: chance of a difference as far from 0, in either direction, if there were none.
        paired: whether runs with the same seed were compared.
    """

    estimate: Estimate
    p_value: float
    paired: bool


def mean(values: Sequence[float]) -> Estimate:
    """The mean of independent runs, with Student's interval.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    numbers = _finite(values)
    if len(numbers) == 1:
        return Estimate(float(numbers[0]), math.nan, math.nan, 1)
    if np.ptp(numbers) == 0:  # scipy would warn of a division by the deviation, 0
        return Estimate(float(numbers[0]), float(numbers[0]), float(numbers[0]), len(numbers))
    low, high = stats.ttest_1samp(numbers, 0.0).confidence_interval(CONFIDENCE)
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """First minus second, seed by seed: Student's t of the differences.

    Args:
        first: seed -> number.
        second: the same seeds.

    Raises:
        ValueError: the seeds are not the same, there are none, or a number is not finite.
    """
    if first.keys() != second.keys():
        alone = sorted(first.keys() ^ second.keys())
        raise ValueError(f"seeds {alone} have no partner; compare those that both have, and say how many have not")
    apart = [first[seed] - second[seed] for seed in sorted(first)]
    estimate = mean(apart)
    return Difference(estimate, _chance_of_mean(apart), paired=True)


def unpaired(first: Sequence[float], second: Sequence[float]) -> Difference:
    """First minus second of independent runs whose spread need not be the same: Welch's t.

    Raises:
        ValueError: either has fewer than two runs, or a number is not finite.
    """
    one, other = _finite(first), _finite(second)
    if min(len(one), len(other)) < 2:
        raise ValueError(f"{len(one)} and {len(other)} runs: a spread takes two or more of each")
    runs = len(one) + len(other)
    if np.ptp(one) == 0 and np.ptp(other) == 0:
        value = float(one[0] - other[0])  # the means of many equal numbers differ by rounding
        return Difference(Estimate(value, value, value, runs), 1.0 if value == 0 else 0.0, paired=False)
    value = float(one.mean() - other.mean())
    test = stats.ttest_ind(one, other, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    return Difference(Estimate(value, float(low), float(high), runs), float(test.pvalue), paired=False)


def share(successes: int, trials: int) -> Estimate:
    """In how many of so many runs: Clopper and Pearson's interval, which holds its level at any number of runs.

    Source: Clopper and Pearson, "The use of confidence or fiducial limits illustrated in the case of the binomial",
    Biometrika 26 (1934).

    Raises:
        ValueError: there are no runs, or more successes than runs.
    """
    interval = _binomial(successes, trials, 0.5).proportion_ci(CONFIDENCE, method="exact")
    return Estimate(successes / trials, float(interval.low), float(interval.high), trials)


def chance_of_share(successes: int, trials: int, expected: float = 0.5) -> float:
    """Exact binomial test, in either direction: chance of a number of runs no more likely, if the share were expected.

    Raises:
        ValueError: as `share`, or the expected share is not from 0 to 1.
    """
    return float(_binomial(successes, trials, expected).pvalue)


def shares_differ(first: tuple[int, int], second: tuple[int, int]) -> float:
    """Fisher's exact test, in either direction, whether two shares are the same.

    Args:
        first: (successes, trials) of one arm.
        second: of the other.

    Raises:
        ValueError: as `share`.
    """
    for successes, trials in (first, second):
        _binomial(successes, trials, 0.5)  # which refuses what are no numbers of runs
    rows = [[successes, trials - successes] for successes, trials in (first, second)]
    return float(stats.fisher_exact(rows).pvalue)


def equivalence(differences: Sequence[float], margin: float) -> float:
    """Is the mean difference within ``margin`` of 0? Chance of such numbers if it were not: the two one-sided tests.

    Source: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", J. Pharmacokinet.
    Biopharm. 15 (1987). At the level 0.05 it says yes where the 90 % interval of the mean lies within the margin.

    Raises:
        ValueError: fewer than two runs, a number is not finite, or the margin is not above 0.
    """
    numbers = _finite(differences)
    if len(numbers) < 2 or not 0 < margin < math.inf:
        raise ValueError(f"{len(numbers)} differences, margin {margin}: give two or more, and a margin above 0")
    if np.ptp(numbers) == 0:
        return 0.0 if abs(numbers[0]) < margin else 1.0
    above = stats.ttest_1samp(numbers, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(numbers, margin, alternative="less").pvalue
    return float(max(above, below))


def _chance_of_mean(numbers: Sequence[float]) -> float:
    """Student's test of a mean of 0; NaN of a single run."""
    if len(numbers) == 1:
        return math.nan
    if np.ptp(numbers) == 0:
        return 1.0 if numbers[0] == 0 else 0.0
    return float(stats.ttest_1samp(numbers, 0.0).pvalue)


def _finite(values: Sequence[float]) -> NDArray[np.float64]:
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(f"{list(values)}: give one finite number of every run, and say which runs have none")
    return numbers


def _binomial(successes: int, trials: int, expected: float) -> "stats._result_classes.BinomTestResult":
    if not 0 <= successes <= trials or trials < 1 or not 0 <= expected <= 1:
        raise ValueError(f"{successes} of {trials} runs, expected share {expected}: that is no share of runs")
    return stats.binomtest(successes, trials, expected)
