"""Medians and intervals against scipy, numpy and sums by hand."""

import doctest
import itertools
import math

import numpy as np
import pytest
import scipy.stats

from sibp.analysis import scoring, statistics
from sibp.analysis.statistics import BOOTSTRAP_SEED, RESAMPLES, bootstrap_interval, bounds, estimate, median, sign_test
from sibp.report import cells
from sibp.runs import values

INF = math.inf


@pytest.mark.parametrize("module", [statistics, scoring, cells, values])
def test_the_examples_in_the_documentation_hold(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_median_of_finite_values_is_numpys(count):
    values = np.random.default_rng(count).normal(size=count)
    assert median(list(values)) == pytest.approx(np.median(values), rel=1e-15)


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2, INF], 2), ([1, INF, INF], INF), ([1, INF], INF), ([-INF, INF], 0), ([-INF, 0.9, 0.8], 0.8)],
)
def test_infinite_values_take_part_in_the_median(values, expected):
    assert median(values) == expected


@pytest.mark.parametrize("count", [5, 6, 11, 20])
def test_interval_agrees_with_scipys_percentile_bootstrap(count):
    values = np.random.default_rng(count).normal(size=count)
    theirs = scipy.stats.bootstrap(
        (values,), np.median, method="percentile", n_resamples=50_000, rng=np.random.default_rng(0)
    ).confidence_interval
    gap = np.diff(np.sort(values)).max()  # bounds are ordered values: one place off at most
    assert bootstrap_interval(list(values)) == pytest.approx(tuple(theirs), abs=gap)


def test_bounds_from_an_even_number_are_those_of_all_resamples():
    """Of six values there are 6^6 resamples, equally likely; a median is the mean of the two in the middle."""
    drawn = np.sort(list(itertools.product(range(1, 7), repeat=6)), axis=1)
    medians = np.sort((drawn[:, 2] + drawn[:, 3]) / 2)
    exact = medians[math.ceil(0.025 * len(medians)) - 1], medians[math.ceil(0.975 * len(medians)) - 1]
    assert exact == (1.5, 5.5)
    assert bootstrap_interval(list(range(1, 7))) == exact


def test_as_many_draws_lie_below_the_bounds_as_above():
    """2.5 % of 10,000 different draws are 250: those from 0 to 249, and from 9,750 to 9,999."""
    assert bounds(np.random.default_rng(0).permutation(10_000)) == (250, 9749)


def test_interval_agrees_with_exact_probabilities():
    """With 9 values, the k-th is the bootstrap median's lower 2.5 % point: P(Binomial(9, k/9) >= 5) >= 0.025."""
    exact = next(k for k in range(1, 10) if scipy.stats.binom.sf(4, 9, k / 9) >= 0.025)
    assert bootstrap_interval(list(range(1, 10))) == (exact, 10 - exact)


def test_interval_is_the_same_every_time_and_its_rule_is_stated():
    values = [0.3, 0.1, 0.2, 0.5, 0.4, 0.25]
    assert bootstrap_interval(values) == bootstrap_interval(values[::-1])
    drawn = statistics._middle_positions(9)
    statistics._middle_positions.cache_clear()
    assert np.array_equal(statistics._middle_positions(9), drawn)
    assert str(BOOTSTRAP_SEED) in statistics.INTERVAL_RULE
    assert f"{RESAMPLES:,}" in statistics.INTERVAL_RULE


def test_interval_with_infinite_values_has_no_nan():
    assert bootstrap_interval([1, 2, INF]) == (1, INF)
    assert bootstrap_interval([INF, INF]) == (INF, INF)
    assert bootstrap_interval([-INF, INF]) == (-INF, INF)


def test_one_seed_has_a_median_and_no_interval():
    found = estimate([0.5])
    assert found is not None
    assert (found.median, found.low, found.high, found.count) == (0.5, None, None, 1)
    assert estimate([]) is None


@pytest.mark.parametrize(("wins", "losses"), [(5, 0), (4, 1), (3, 3), (9, 2), (0, 0)])
def test_sign_test_is_scipys(wins, losses):
    expected = scipy.stats.binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
    assert sign_test(wins, losses) == pytest.approx(expected)
