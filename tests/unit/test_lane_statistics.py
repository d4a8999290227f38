"""Statistics of lanes against hand counts, tables and full enumeration; p-values under the null."""

import math
from itertools import combinations, permutations

import numpy as np
import pytest

from lanes.analysis.lane_statistics import (
    aligned,
    count_tests,
    effect_size,
    lane_labels,
    lane_summaries,
    permutation_test,
    split_frequency,
    wilson_interval,
)

NAN = math.nan
FALSE_ALARM = 1e-6  # chance with which a bound below would be broken by luck, had the seeds been others


def kolmogorov_bound(draws: int) -> float:
    """How far the empirical distribution lies from the true one at most, but for FALSE_ALARM (Massart 1990)."""
    return math.sqrt(math.log(2 / FALSE_ALARM) / (2 * draws))


def test_summaries() -> None:
    values = [1, 2, 3, 4, NAN, 10, NAN, 12, NAN, NAN, NAN, 7, NAN, NAN, NAN, NAN]
    low, mid, single, none = lane_summaries(values, lane_labels(16, 4))
    assert (low.lane, low.count, low.mean, low.median, low.quartiles) == (0, 4, 2.5, 2.5, (1.75, 3.25))
    assert low.sd == pytest.approx((5 / 3) ** 0.5)
    assert (mid.lane, mid.count, mid.mean, mid.sd) == (1, 2, 11, pytest.approx(2**0.5))
    assert (single.count, single.mean, single.quartiles) == (1, 7, (7, 7))
    assert math.isnan(single.sd)
    assert none.count == 0
    assert all(map(math.isnan, (none.mean, none.median, none.sd, *none.quartiles)))


@pytest.mark.parametrize(
    ("first", "second", "delta"),
    [
        ([5, 6, 7], [1, 2], 1),
        ([1, 2], [5, 6, 7, NAN], -1),
        ([1, 2, 2, 3], [2, 2], 0),
        ([1, 4, 6], [2, 3, 4, 5], (0 + 2 + 4 - 4 - 1 - 0) / 12),  # pairs greater less pairs smaller, one tie
        ([3, 3], [3, 3], 0),
    ],
)
def test_cliffs_delta(first: list[float], second: list[float], delta: float) -> None:
    effect = effect_size([*first, *second], [0] * len(first) + [1] * len(second))
    assert effect.name == "Cliff's delta"
    assert effect.value == pytest.approx(delta)


def test_epsilon_squared() -> None:
    """A worked example: rank sums 6, 15, 24 of 9, H = 12 / (9 x 10) x 279 - 30 = 7.2, over n - 1 = 0.9."""
    values, labels = [1, 2, 3, 7, 8, 9, 4, 5, 6], lane_labels(9, 3)
    assert effect_size(values, labels).name == "epsilon-squared"
    assert effect_size(values, labels).value == pytest.approx(0.9)
    assert effect_size(np.exp(values), labels).value == pytest.approx(0.9), "of ranks"
    assert effect_size([1, 1, 2, 2, 3, 3], lane_labels(6, 3)).value == pytest.approx(1), "ties counted in"
    assert effect_size([4] * 6, lane_labels(6, 3)).value == 0


def test_exact_p_values() -> None:
    """Tables of Mann and Whitney: lanes of 3, 4 and 5 filters apart, in either direction; and three lanes."""
    for size in (3, 4, 5):
        for values in (range(2 * size), [-v for v in range(2 * size)]):
            test = permutation_test(list(values), lane_labels(2 * size, 2))
            ways = math.comb(2 * size, size)
            assert (test.exact, test.draws, test.p_value) == (True, ways, 2 / ways)
            assert test.interval == (test.p_value, test.p_value)
            assert abs(test.effect.value) == 1
    three = permutation_test([1, 2, 3, 4, 5, 6], lane_labels(6, 3))
    assert three.draws == 90
    assert three.p_value == pytest.approx(6 / 90)
    assert permutation_test([1, 1, 1, 1], [0, 0, 1, 1]).p_value == 1


@pytest.mark.parametrize("values", [range(8), [0, 1, 1, 2, 2, 2, 3, 9]])
@pytest.mark.parametrize("sizes", [(4, 4), (2, 6), (3, 2, 2)])
def test_exact_p_values_are_uniform(values: list[float], sizes: tuple[int, ...]) -> None:
    """Over all ways to deal: the chance of p <= a is a at every p that occurs, and never more than a in between."""
    labels = [lane for lane, size in enumerate(sizes) for _ in range(size)]
    dealt = sorted(set(permutations(labels)))
    p_values = np.array([permutation_test(list(values)[: sum(sizes)], way).p_value for way in dealt])
    for p_value in np.unique(p_values):
        assert np.mean(p_values <= p_value + 1e-12) == pytest.approx(p_value)


@pytest.mark.parametrize("lanes", [2, 3])
def test_sampled_p_values_are_uniform_under_the_null(lanes: int) -> None:
    """Heavy-tailed values of no lane. Rank sums are whole numbers, so p has steps, of at most 0.017 (at no difference)
    for 2 lanes of 24: so far may it be too large. Too small it may not be."""
    draws, filters = 2000, 48
    generator = np.random.default_rng(5)
    labels = lane_labels(filters, lanes)
    values = generator.standard_cauchy((draws, filters))
    p_values = np.sort([permutation_test(v, labels, draws=99, seed=seed).p_value for seed, v in enumerate(values)])
    assert p_values[0] >= 1 / 100
    grid = np.arange(1, 101) / 100  # where a valid p-value of 99 draws can be uniform
    share = np.searchsorted(p_values, grid + 1e-9, side="right") / draws
    assert np.max(share - grid) <= kolmogorov_bound(draws), "too many small ones"
    assert np.max(grid - share) <= kolmogorov_bound(draws) + 0.017, "too few"


def test_the_bound_would_see_a_wrong_test() -> None:
    """Such as one that tells one-sided p-values as two-sided."""
    draws, generator = 2000, np.random.default_rng(6)
    halved = generator.random(draws) / 2
    assert np.max(np.searchsorted(np.sort(halved), [0.25]) / draws - 0.25) > kolmogorov_bound(draws)


def test_sampled_like_exact() -> None:
    """Its interval holds the exact p-value of Mann and Whitney's statistic 95 times in 100."""
    values, labels = [0.3, 2, 5, 9, 11, 12, 14, 1, 3, 4, 6, 7, 8, 10], lane_labels(14, 2)
    exact = permutation_test(values, labels)
    assert exact.exact
    ranks = np.argsort(np.argsort(values)) + 1
    seen = abs(ranks[:7].sum() - 52.5)
    assert exact.p_value == np.mean([abs(sum(way) - 52.5) >= seen for way in combinations(range(1, 15), 7)])
    bigger = [*values, *[v + 20 for v in values[:7]], *[v + 20 for v in values[7:]]]  # too many ways: sampled
    lane = [0] * 7 + [1] * 7 + [0] * 7 + [1] * 7
    sure = permutation_test(bigger, lane, draws=200_000, seed=99)
    assert not sure.exact
    tests = [permutation_test(bigger, lane, draws=500, seed=seed) for seed in range(300)]
    held = sum(test.interval[0] <= sure.p_value <= test.interval[1] for test in tests)
    assert 0.91 <= held / 300 <= 0.99  # 0.95 +- 3 sd
    assert all(test.interval[0] <= test.p_value <= test.interval[1] for test in tests)
    assert permutation_test(bigger, lane, draws=500, seed=3) == tests[3], "seeded"


def test_never_zero() -> None:
    test = permutation_test(range(60), lane_labels(60, 2), draws=99)
    assert (test.p_value, test.exact, test.draws) == (1 / 100, False, 99)
    assert test.interval[0] == 0
    assert test.interval[1] == pytest.approx(0.0374, abs=1e-3)


def test_wilson() -> None:
    """The example of Newcombe 1998 (Statistics in Medicine 17:857): 81 of 263."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert wilson_interval(29, 29)[1] == pytest.approx(1)


def test_counts_of_voss() -> None:
    """All 9 colour units of mixed3a in 32 of 256 channels, P = 2.5e-9; all 30 curves in 96 of 480, P = 1.7e-23."""
    for filters, own, units, p_value in ((256, 32, 9, 2.5e-9), (480, 96, 30, 1.7e-23)):
        labels = [0] * own + [1] * (filters - own)
        first, second = count_tests([i < units for i in range(filters)], labels)
        assert (first.lane, first.inside, first.filters) == (0, units, own)
        assert first.p_value == pytest.approx(p_value, rel=0.03)
        assert first.p_any_lane == pytest.approx(2 * first.p_value)
        assert (second.inside, second.p_value, second.p_any_lane) == (0, 1, 1)


def test_counts_by_enumeration() -> None:
    """And valid: over all ways to deal, p <= a has at most chance a."""
    p_values = []
    for own in combinations(range(9), 4):
        labels = [0 if i in own else 1 for i in range(9)]
        found = count_tests([i < 5 for i in range(9)], labels)[0]
        p_values.append(found.p_value)
        at_least = [len({0, 1, 2, 3, 4} & set(way)) >= found.inside for way in combinations(range(9), 4)]
        assert found.p_value == pytest.approx(np.mean(at_least))
    for p_value in set(p_values):
        assert np.mean(np.array(p_values) <= p_value) == pytest.approx(p_value)


def test_lanes_aligned_over_seeds() -> None:
    colour = np.array([[0.1, 0.9, 0.5], [0.7, 0.2, NAN]])
    curves = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    assert aligned(colour, by=colour)[0].tolist() == [0.9, 0.5, 0.1]
    found = aligned(curves, by=colour)
    assert (found[0] == curves[0, [1, 2, 0]]).all()
    assert (found[1] == curves[1, [0, 1, 2]]).all(), "the lane without a measure last"


def test_how_often_lanes_split() -> None:
    """Six of eight networks with lanes that differ, whichever lane is which."""
    generator, labels = np.random.default_rng(2), lane_labels(32, 2)
    noise = generator.standard_normal((8, 32))
    shift = 3 * np.array([1, -1, 1, 1, -1, -1, 0, 0])[:, None] * (labels == 0)
    found = split_frequency(list(noise + shift), labels, draws=499)
    assert (found.networks, found.split) == (8, 6)
    assert found.interval == wilson_interval(6, 8)
    assert found.p_value == pytest.approx(28 * 0.05**6 * 0.95**2 + 8 * 0.05**7 * 0.95 + 0.05**8)
    assert [np.sign(test.effect.value) for test in found.tests[:6]] == [1, -1, 1, 1, -1, -1]
    assert split_frequency(list(noise[6:]), labels, draws=99).p_value == pytest.approx(1)


@pytest.mark.parametrize("bad", [{"values": [1, 2, 3]}, {"labels": [0, 1]}, {"values": [[1, 2, 3, 4]]}])
def test_refused_shapes(bad: dict[str, list[float]]) -> None:
    with pytest.raises(ValueError, match="one value and one lane per filter"):
        permutation_test(**{"values": [1, 2, 3, 4], "labels": [0, 0, 1, 1]} | bad)


def test_refused() -> None:
    labels = lane_labels(4, 2)
    with pytest.raises(ValueError, match="1 lanes have values"):
        effect_size([1, 2, NAN, NAN], labels)
    with pytest.raises(ValueError, match="infinite"):
        lane_summaries([1, 2, 3, math.inf], labels)
    with pytest.raises(ValueError, match="draws=0"):
        permutation_test([1, 2, 3, 4], labels, draws=0)
    with pytest.raises(ValueError, match="do not divide over lanes=3"):
        lane_labels(4, 3)
    with pytest.raises(ValueError, match="true or false"):
        count_tests([0.5, 1, 0, 1], labels)
    with pytest.raises(ValueError, match="0 networks"):
        split_frequency([], labels)
