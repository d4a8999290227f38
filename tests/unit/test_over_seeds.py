"""Statistics over seeds on made data: known answers, coverage of intervals, p-values under the null, power."""

import math

import numpy as np
import pytest

from lanes.analysis.lane_tests import holm
from lanes.analysis.over_seeds import below, chance_of_share, equivalence, mean, paired, share, shares_differ

STUDIES = 400  # made, of each kind
FALSE_ALARM = 1e-6  # chance with which a bound below would be broken by luck, had the seeds been others


def kolmogorov_bound(draws: int) -> float:
    """How far the empirical distribution lies from the true one at most, but for FALSE_ALARM (Massart 1990)."""
    return math.sqrt(math.log(2 / FALSE_ALARM) / (2 * draws))


def deviation(share_of: float) -> float:
    """Five standard deviations of a share of STUDIES."""
    return 5 * math.sqrt(share_of * (1 - share_of) / STUDIES)


def seeds(values: np.ndarray) -> dict[int, float]:
    return dict(enumerate(values.tolist()))


def test_known_answers() -> None:
    """By hand: mean 2, deviation 1, t(2) = 4.302653 at 97.5 %: 2 -+ 4.302653 / sqrt(3)."""
    found = mean([1.0, 2.0, 3.0])
    half = 4.302652729911275 / math.sqrt(3)
    assert (found.value, found.runs) == (2, 3)
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    # Gosset's sleep data (1908), as in R's help of t.test: t = -4.0621, p = 0.002833, -2.4598858 to -0.7001142
    first = [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0]
    second = [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4]
    test = paired(seeds(np.array(first)), seeds(np.array(second)))
    assert test.p_value == pytest.approx(0.002833, abs=5e-7)
    assert (test.estimate.low, test.estimate.high) == (pytest.approx(-2.4598858), pytest.approx(-0.7001142))
    # in one direction: half of it, or the rest
    apart = (np.array(first) - second).tolist()
    assert below(apart, 0.0) == pytest.approx(0.002833 / 2, abs=5e-7)
    assert below([-number for number in apart], 0.0) == pytest.approx(1 - 0.002833 / 2, abs=5e-7)
    assert mean(apart, 0.9).low > mean(apart).low


def test_known_shares() -> None:
    """All of 30 runs: (0.025)^(1/30) by Clopper and Pearson; half of it is what a coin does with chance 1."""
    found = share(30, 30)
    assert (found.value, found.low, found.high) == (1, pytest.approx(0.025 ** (1 / 30)), 1)
    assert share(0, 10).high == pytest.approx(1 - 0.025 ** (1 / 10))
    assert chance_of_share(10, 10) == pytest.approx(2 / 2**10)
    assert chance_of_share(5, 10) == 1
    assert chance_of_share(4, 4, 0.25) == pytest.approx(1 / 4**4)
    # six seeds on which arms differ, all the same way: a coin does so with chance 2 / 2^6; the other four tell nothing
    first = dict(enumerate([True] * 6 + [True, True, False, False]))
    second = dict(enumerate([False] * 6 + [True, True, False, False]))
    assert shares_differ(first, second) == shares_differ(second, first) == pytest.approx(2 / 2**6)
    assert shares_differ(first, first) == 1


def test_runs_that_are_all_alike() -> None:
    assert (mean([0.5, 0.5]).low, mean([0.5, 0.5]).high) == (0.5, 0.5)
    assert math.isnan(mean([0.5]).low), "one run has no spread"
    assert math.isnan(paired({0: 1.0}, {0: 0.0}).p_value)
    assert paired({0: 1.0, 1: 2.0}, {0: 0.0, 1: 1.0}).p_value == 0
    assert paired({0: 1.0, 1: 2.0}, {0: 1.0, 1: 2.0}).p_value == 1
    assert (below([1, 1], 2), below([1, 1], 1)) == (0, 1)
    assert equivalence([0.1, 0.1], 0.3) == 0
    assert equivalence([0.4, 0.4], 0.3) == 1


@pytest.mark.parametrize("runs", [3, 8, 30])
def test_intervals_of_means_hold_their_level(runs: int) -> None:
    """95 % of the intervals hold the mean that the data were made with; of pairs likewise."""
    generator = np.random.default_rng(runs)
    inside = dict.fromkeys(("mean", "paired"), 0)
    for _ in range(STUDIES):
        shared = 5 * generator.standard_normal(runs)  # what a seed does to both arms
        first, second = shared + 1 + generator.standard_normal((2, runs)) * [[1], [3]] - [[0], [1]]
        inside["mean"] += mean(second - shared).low <= 0 <= mean(second - shared).high
        found = paired(seeds(first), seeds(second)).estimate
        inside["paired"] += found.low <= 1 <= found.high
    for kind, count in inside.items():
        assert abs(count / STUDIES - 0.95) < deviation(0.95), kind


def test_p_values_are_uniform_where_nothing_differs() -> None:
    generator = np.random.default_rng(1)
    arms = generator.standard_normal((STUDIES, 2, 8))
    pairs = np.sort([paired(seeds(first), seeds(second)).p_value for first, second in arms])
    uniform = (np.arange(STUDIES) + 0.5) / STUDIES
    assert np.abs(pairs - uniform).max() < kolmogorov_bound(STUDIES)
    lower = np.sort([below((first - second).tolist(), 0.0) for first, second in arms])
    assert np.abs(lower - uniform).max() < kolmogorov_bound(STUDIES)


def test_exact_tests_are_never_too_bold() -> None:
    """Shares take few values, so that p-values cannot be uniform; but p <= a happens with chance a at most."""
    for runs, expected in ((10, 0.5), (30, 0.5), (10, 0.25)):
        ways = np.array([math.comb(runs, k) * expected**k * (1 - expected) ** (runs - k) for k in range(runs + 1)])
        p_values = np.array([chance_of_share(k, runs, expected) for k in range(runs + 1)])
        for level in np.unique(p_values):
            assert ways[p_values <= level].sum() <= level + 1e-9


@pytest.mark.parametrize("truth", [0.03, 0.5, 0.9])
def test_intervals_of_shares_hold_at_least_their_level(truth: float) -> None:
    for runs in (10, 30):
        ways = [math.comb(runs, k) * truth**k * (1 - truth) ** (runs - k) for k in range(runs + 1)]
        held = sum(way for k, way in enumerate(ways) if share(k, runs).low <= truth <= share(k, runs).high)
        assert held >= 0.95


def test_power() -> None:
    """Of 8 pairs that are apart by 1.5 deviations: 0.956 by the noncentral t, whatever the seeds do to both arms."""
    generator = np.random.default_rng(2)
    found = 0
    for _ in range(STUDIES):
        shared = 5 * generator.standard_normal(8)
        first, second = shared + 1.5, shared + generator.standard_normal(8)
        found += paired(seeds(first), seeds(second)).p_value <= 0.05
    assert abs(found / STUDIES - 0.956) < deviation(0.956)


def test_equivalence_says_yes_as_seldom_as_it_should() -> None:
    """At the edge of the margin with chance 0.05 at most; well inside of it nearly always."""
    generator = np.random.default_rng(3)
    edge = [equivalence((0.3 + 0.1 * generator.standard_normal(8)).tolist(), 0.3) <= 0.05 for _ in range(STUDIES)]
    assert np.mean(edge) < 0.05 + deviation(0.05)
    inside = [equivalence((0.1 * generator.standard_normal(8)).tolist(), 0.3) <= 0.05 for _ in range(STUDIES)]
    assert np.mean(inside) > 0.99


def test_many_tests_together_hold_the_level() -> None:
    """Four tests of a table without any difference, corrected: one is small in 5 % of the tables, not in 19 %."""
    generator = np.random.default_rng(4)
    alarms = bare = 0
    for _ in range(STUDIES):
        p_values = [
            paired(seeds(numbers), dict.fromkeys(range(8), 0.0)).p_value for numbers in generator.normal(size=(4, 8))
        ]
        alarms += min(holm(p_values)) <= 0.05
        bare += min(p_values) <= 0.05
    assert alarms / STUDIES < 0.05 + deviation(0.05)
    assert abs(bare / STUDIES - (1 - 0.95**4)) < deviation(0.185)


def test_nothing_is_left_out_in_silence() -> None:
    with pytest.raises(ValueError, match=r"seeds \[2, 3\] have no partner"):
        paired({0: 1.0, 1: 2.0, 2: 3.0}, {0: 1.0, 1: 2.0, 3: 3.0})
    for values in ([], [1.0, math.nan], [math.inf, 1.0]):
        with pytest.raises(ValueError, match="one finite number of every run"):
            mean(values)
    with pytest.raises(ValueError, match=r"seeds \[1\] have no partner"):
        shares_differ({0: True}, {0: True, 1: False})
    with pytest.raises(ValueError, match="a spread takes two or more"):
        below([1.0], 0.0)
    with pytest.raises(ValueError, match="no share of runs"):
        share(4, 3)
    with pytest.raises(ValueError, match="margin 0: give one above 0"):
        equivalence([0.1, 0.2], 0)
