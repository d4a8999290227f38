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
        low, high: confidence interval, of 95 % unless another was asked for; NaN of a single run.
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
    """

    estimate: Estimate
    p_value: float


def mean(values: Sequence[float], confidence: float = CONFIDENCE) -> Estimate:
    """The mean of independent runs, with Student's interval.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    numbers = _finite(values)
    if len(numbers) == 1:
        return Estimate(float(numbers[0]), math.nan, math.nan, 1)
    if np.ptp(numbers) == 0:  # scipy would warn of a division by the deviation, 0
        return Estimate(float(numbers[0]), float(numbers[0]), float(numbers[0]), len(numbers))
    low, high = stats.ttest_1samp(numbers, 0.0).confidence_interval(confidence)
    return Estimate(float(numbers.mean()), float(low), float(high), len(numbers))


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """First minus second, seed by seed: Student's t of the differences.

    Args:
        first: seed -> number.
        second: the same seeds.

    Raises:
        ValueError: the seeds are not the same, there are none, or a number is not finite.
    """
    apart = [first[seed] - second[seed] for seed in _common(first, second)]
    return Difference(mean(apart), _chance_of_mean(apart))


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


def shares_differ(first: Mapping[int, bool], second: Mapping[int, bool]) -> float:
    """McNemar's exact test, in either direction, whether two shares of runs with the same seeds are the same.

    Only seeds tell on which the arms differ; if there are none the chance is 1.

    Raises:
        ValueError: the seeds are not the same, or there are none.
    """
    seeds = _common(first, second)
    only_first = sum(first[seed] and not second[seed] for seed in seeds)
    only_second = sum(second[seed] and not first[seed] for seed in seeds)
    return chance_of_share(only_first, only_first + only_second) if only_first + only_second else 1.0


def below(numbers: Sequence[float], bound: float) -> float:
    """Is the mean below a bound? Student's one-sided t: chance of numbers so low if it were not.

    Raises:
        ValueError: fewer than two runs, or a number is not finite.
    """
    found = _finite(numbers)
    if len(found) < 2:
        raise ValueError(f"{len(found)} runs: a spread takes two or more")
    if np.ptp(found) == 0:
        return 0.0 if found[0] < bound else 1.0
    return float(stats.ttest_1samp(found, bound, alternative="less").pvalue)


def equivalence(differences: Sequence[float], margin: float) -> float:
    """Is the mean difference within ``margin`` of 0? Chance of such numbers if it were not: the two one-sided tests.

    Source: Schuirmann, "A comparison of the two one-sided tests procedure and the power approach", J. Pharmacokinet.
    Biopharm. 15 (1987). At the level 0.05 it says yes where the 90 % interval of the mean lies within the margin.

    Raises:
        ValueError: fewer than two runs, a number is not finite, or the margin is not above 0.
    """
    if not 0 < margin < math.inf:
        raise ValueError(f"margin {margin}: give one above 0")
    return max(below(differences, margin), below([-number for number in differences], margin))


def _common(first: Mapping[int, object], second: Mapping[int, object]) -> list[int]:
    if first.keys() != second.keys() or not first:
        alone = sorted(first.keys() ^ second.keys())
        raise ValueError(f"seeds {alone} have no partner; compare those that both have, and say how many have not")
    return sorted(first)


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
