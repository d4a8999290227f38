"""How lanes differ in a measure of their filters: summaries, effect sizes, permutation tests, counts, and many seeds.

Values are one number per filter (NaN: cannot be measured, such as the orientation of a dead filter; left out), labels
the lane of each. Everything rests on ranks, so it does not matter on which scale a measure is told.

What a test of one network says: whether its filters could have been dealt to the lanes at random. Filters that learned
together are not independent draws, so that a claim about *networks* rests on several seeds (`split_frequency`).

Kept out: the measures, and pictures of them.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[np.float64]
Labels = NDArray[np.int64]

EXACT_UP_TO = 10_000  # ways to deal the filters; more are sampled
CHUNK = 2**20  # numbers of a chunk of shuffled ranks


@dataclass(frozen=True)
class LaneSummary:
    """The distribution of a measure in one lane; NaN where there are too few filters.

    Attributes:
        lane: which.
        count: filters whose value is not NaN.
        mean, median: of them.
        sd: standard deviation, of a sample (n - 1).
        quartiles: 25th and 75th percentile, linear between values as numpy's.
    """

    lane: int
    count: int
    mean: float
    median: float
    sd: float
    quartiles: tuple[float, float]


@dataclass(frozen=True)
class EffectSize:
    """How far lanes are apart.

    Attributes:
        name: of the measure.
        value: 0: not at all; 1 (Cliff's delta also -1): no filter of one lane lies among those of another.
    """

    name: str
    value: float


@dataclass(frozen=True)
class PermutationTest:
    """Could the filters have been dealt to the lanes at random?

    Attributes:
        effect: the difference seen.
        p_value: of all ways to deal, the share with a difference at least as large, in either direction.
        interval: 95 % confidence interval of that share, which sampling leaves; (p_value, p_value) if exact.
        draws: ways looked at.
        exact: whether these are all.
    """

    effect: EffectSize
    p_value: float
    interval: tuple[float, float]
    draws: int
    exact: bool


@dataclass(frozen=True)
class CountTest:
    """Does a lane hold more filters with a property than chance would give it?

    Attributes:
        lane: which.
        inside: its filters with the property.
        filters: all its filters.
        p_value: chance of so many or more, for a lane named beforehand.
        p_any_lane: the same for a lane chosen because it has many (times the number of lanes: Bonferroni).
    """

    lane: int
    inside: int
    filters: int
    p_value: float
    p_any_lane: float


@dataclass(frozen=True)
class SplitFrequency:
    """In how many networks lanes differ.

    Attributes:
        networks: all.
        split: those whose permutation test has p <= alpha.
        interval: 95 % confidence interval of their share (Wilson).
        p_value: chance of so many if no network's lanes differed: then each has p <= alpha with chance alpha at most.
        alpha: as given.
        tests: of each network.
    """

    networks: int
    split: int
    interval: tuple[float, float]
    p_value: float
    alpha: float
    tests: tuple[PermutationTest, ...]


def lane_labels(filters: int, lanes: int) -> Labels:
    """The lane of each filter, [filters]: lane i owns the i-th of so many equal blocks.

    Raises:
        ValueError: the filters do not divide over the lanes.
    """
    if lanes < 1 or filters < 1 or filters % lanes:
        raise ValueError(f"{filters} filters do not divide over lanes={lanes}: give the model's number of lanes")
    return np.repeat(np.arange(lanes), filters // lanes)


def lane_summaries(values: ArrayLike, labels: ArrayLike) -> list[LaneSummary]:
    """The distribution in every lane, also in those without values.

    Args:
        values: [filters], NaN where there is none.
        labels: [filters], the lane of each.
    """
    numbers, where = _numbers(values, labels)
    summaries = []
    for lane in np.unique(where):
        own = numbers[(where == lane) & ~np.isnan(numbers)]
        mean, median = (float(own.mean()), float(np.median(own))) if len(own) else (math.nan, math.nan)
        low, high = map(float, np.quantile(own, (0.25, 0.75))) if len(own) else (math.nan, math.nan)
        sd = float(own.std(ddof=1)) if len(own) > 1 else math.nan
        summaries.append(LaneSummary(int(lane), len(own), mean, median, sd, (low, high)))
    return summaries


def effect_size(values: ArrayLike, labels: ArrayLike) -> EffectSize:
    """How far the lanes are apart, by ranks.

    Of two lanes Cliff's delta, P(a > b) - P(a < b) for filters a of the first and b of the second (Cliff 1993,
    Psychological Bulletin 114:494): 2 AUC - 1, the rank-biserial correlation. Of more lanes epsilon-squared, Kruskal
    and Wallis's H over n - 1 (Tomczak and Tomczak 2014, Trends in Sport Sciences 21:19): with ties, too, the share of
    the ranks' variance that lies between lanes.

    Args:
        values: [filters], NaN where there is none.
        labels: [filters], the lane of each.

    Raises:
        ValueError: fewer than two lanes have values.
    """
    ranks, sizes = _dealt(values, labels)
    if len(sizes) == 2:
        greater = ranks[: sizes[0]].sum() - sizes[0] * (sizes[0] + 1) / 2  # Mann and Whitney's U
        return EffectSize("Cliff's delta", float(2 * greater / (sizes[0] * sizes[1]) - 1))
    total = float(np.square(ranks - ranks.mean()).sum())
    return EffectSize("epsilon-squared", float(_between(ranks[None], sizes)[0]) / total if total else 0.0)


def permutation_test(values: ArrayLike, labels: ArrayLike, *, draws: int = 9999, seed: int = 0) -> PermutationTest:
    """Deal the filters to the lanes at random and see how often they come to lie as far apart.

    The difference is that of the rank sums, two-sided: for two lanes Mann and Whitney's, for more Kruskal and Wallis's.
    All ways to deal are looked at if there are few; else ``draws`` random ones, and p = (1 + b) / (1 + draws), where b
    of them are as far apart: the way seen is one of those possible, so p is never 0 and never too small (Phipson and
    Smyth 2010, Stat. Appl. Genet. Mol. Biol. 9:39).

    Args:
        values: [filters], NaN where there is none.
        labels: [filters], the lane of each.
        draws: random ways to deal.
        seed: of their generator.

    Raises:
        ValueError: fewer than two lanes have values, or no draws.
    """
    if draws < 1:
        raise ValueError(f"draws={draws} must be at least 1; 9999 tell p to about 0.01")
    ranks, sizes = _dealt(values, labels)
    effect = effect_size(values, labels)
    seen = float(_between(ranks[None], sizes)[0]) * (1 - 1e-9)  # equal ones may differ in the last digit
    ways = math.factorial(len(ranks)) // math.prod(map(math.factorial, sizes.tolist()))
    if ways <= EXACT_UP_TO:
        dealt = np.array([ranks[way] for way in _all_ways(list(range(len(ranks))), sizes.tolist())])
        p_value = float(np.mean(_between(dealt, sizes) >= seen))
        return PermutationTest(effect, p_value, (p_value, p_value), ways, True)
    generator, far = np.random.default_rng(seed), 0
    rows = max(1, CHUNK // len(ranks))
    for done in range(0, draws, rows):
        dealt = generator.permuted(np.tile(ranks, (min(rows, draws - done), 1)), axis=1)
        far += int(np.count_nonzero(_between(dealt, sizes) >= seen))
    return PermutationTest(effect, (1 + far) / (1 + draws), wilson_interval(far, draws), draws, False)


def wilson_interval(successes: int, trials: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """The confidence interval of a share, by Wilson's score (1927, JASA 22:209)."""
    square = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    centre = (successes + square / 2) / (trials + square)
    half = math.sqrt(square * (successes * (trials - successes) / trials + square / 4)) / (trials + square)
    return max(0.0, centre - half), min(1.0, centre + half)


def count_tests(has: ArrayLike, labels: ArrayLike) -> list[CountTest]:
    """For every lane the hypergeometric test of a property that a filter has or has not.

    As in Voss et al., "Branch Specialization" (Distill 2021): all 9 colour units of InceptionV1's mixed3a lie in one
    branch of 32 of its 256 channels; by chance that has P = 2.5e-9.

    Args:
        has: [filters], true or false.
        labels: [filters], the lane of each.
    """
    flags, where = _numbers(has, labels)
    if not np.isin(flags, (0, 1)).all():
        raise ValueError("a filter has the property or has not: give true or false, such as measure > threshold")
    total, filters = int(flags.sum()), len(flags)
    lanes, sizes = np.unique(where, return_counts=True)
    tests = []
    for lane, size in zip(lanes.tolist(), sizes.tolist(), strict=True):
        inside = int(flags[where == lane].sum())
        ways = sum(
            math.comb(total, k) * math.comb(filters - total, size - k) for k in range(inside, min(total, size) + 1)
        )
        p_value = ways / math.comb(filters, size)  # of whole numbers, so exact however large
        tests.append(CountTest(lane, inside, size, p_value, min(1.0, len(lanes) * p_value)))
    return tests


def aligned(quantity: ArrayLike, *, by: ArrayLike) -> NDArray[Any]:
    """A quantity of every network's lanes, the lanes ordered by a measure, highest first: to average over networks.

    In which lane a kind of filter ends up is chance. So ordered, lanes differ in *that* measure on average even if all
    is noise: whether they differ is for tests of each network to say (`split_frequency`).

    Args:
        quantity: [networks, lanes, ...].
        by: [networks, lanes], such as the mean colour selectivity of each lane; NaN last.
    """
    array, order = np.asarray(quantity), np.argsort(-np.asarray(by, np.float64), axis=1, kind="stable")
    return np.take_along_axis(array, order.reshape(*order.shape, *[1] * (array.ndim - 2)), axis=1)


def split_frequency(
    values: Sequence[ArrayLike], labels: ArrayLike, *, alpha: float = 0.05, draws: int = 9999, seed: int = 0
) -> SplitFrequency:
    """How often lanes differ: in how many of several networks trained from different seeds.

    Args:
        values: of each network, [filters].
        labels: [filters], the lane of each.
        alpha: a network's lanes count as different if its permutation test has p <= alpha.
        draws: of each test.
        seed: of the first; each network has its own.

    Raises:
        ValueError: no networks, alpha is no chance, or as `permutation_test`.
    """
    if not values or not 0 < alpha < 1:
        raise ValueError(f"{len(values)} networks, alpha={alpha}: give at least one network and 0 < alpha < 1")
    tests = tuple(permutation_test(v, labels, draws=draws, seed=seed + i) for i, v in enumerate(values))
    count, split = len(tests), sum(test.p_value <= alpha for test in tests)
    chance = math.fsum(math.comb(count, k) * alpha**k * (1 - alpha) ** (count - k) for k in range(split, count + 1))
    return SplitFrequency(count, split, wilson_interval(split, count), min(1.0, chance), alpha, tests)


def _numbers(values: ArrayLike, labels: ArrayLike) -> tuple[Numbers, Labels]:
    numbers, where = np.asarray(values, np.float64), np.asarray(labels, np.int64)
    if numbers.ndim != 1 or numbers.shape != where.shape:
        raise ValueError(f"values {numbers.shape} and labels {where.shape}: give one value and one lane per filter")
    if np.isinf(numbers).any():
        raise ValueError("a value is infinite; give NaN where a filter cannot be measured")
    return numbers, where


def _dealt(values: ArrayLike, labels: ArrayLike) -> tuple[Numbers, Labels]:
    """The ranks of all values (ties share their mean rank), lane by lane, and how many each lane has."""
    numbers, where = _numbers(values, labels)
    numbers, where = numbers[~np.isnan(numbers)], where[~np.isnan(numbers)]
    _, place, counts = np.unique(numbers, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]
    sizes = np.unique(where, return_counts=True)[1]
    if len(sizes) < 2:
        raise ValueError(f"{len(sizes)} lanes have values, so there is nothing to compare; give two or more")
    return ranks[np.argsort(where, kind="stable")], sizes


def _between(ranks: Numbers, sizes: Labels) -> Numbers:
    """The sum of squares between lanes, [ways], of ranks [ways, filters] that lie lane by lane."""
    apart = np.add.reduceat(ranks, np.cumsum(sizes) - sizes, axis=1) - sizes * ((ranks.shape[1] + 1) / 2)
    return (np.square(apart) / sizes).sum(1)


def _all_ways(left: list[int], sizes: list[int]) -> Iterator[list[int]]:
    """All ways to deal filters to lanes of these sizes, each as an order of the filters."""
    if len(sizes) == 1:
        yield left
        return
    for chosen in combinations(left, sizes[0]):
        taken = set(chosen)
        for rest in _all_ways([i for i in left if i not in taken], sizes[1:]):
            yield [*chosen, *rest]
