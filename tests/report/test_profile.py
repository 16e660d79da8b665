"""Performance profiles and ranks in cases computed by hand."""

import doctest
import math

import numpy as np
import pytest

from sibp.analysis import performance_profiles as profile
from sibp.analysis.performance_profiles import (
    ranks,
    ratios,
    resampled_scores,
    score,
    share_within,
    shares_of_firsts,
    steps_of,
)
from sibp.analysis.statistics import RESAMPLES

INF = math.inf


def test_the_examples_in_the_docstrings():
    assert doctest.testmod(profile).failed == 0
    assert doctest.testmod(profile).attempted > 0


def test_a_ratio_is_to_the_fastest_on_the_same_instance():
    """Instances differ in difficulty by a factor of 100; a is twice as fast on the first, b on the second."""
    found = ratios({"a": [1, 200], "b": [2, 100]})
    assert found == {"a": [1, 2], "b": [2, 1]}


def test_a_missed_target_is_infinite_even_if_all_methods_miss_it():
    found = ratios({"a": [INF, 5, INF], "b": [INF, INF, 3]})
    assert found == {"a": [INF, 1, INF], "b": [INF, INF, 1]}
    assert share_within(found["a"], INF) == 1 / 3


def test_equal_costs_are_both_the_fastest():
    found = ratios({"a": [10, 0], "b": [10, 0], "c": [30, 4]})
    assert found == {"a": [1, 1], "b": [1, 1], "c": [3, INF]}, "any cost is infinitely more than none"


def test_methods_need_the_same_instances():
    with pytest.raises(ValueError, match="argument"):
        ratios({"a": [1, 2], "b": [1]})


def test_the_profile_counts_missed_targets_as_instances():
    """One of four is solved first, one at twice the cost, two never: 1/4 up to 2, then 1/2 for good."""
    own = [1.0, INF, 2.0, INF]
    assert [share_within(own, tau) for tau in (1, 1.99, 2, 100)] == [0.25, 0.25, 0.5, 0.5]
    tau, height = steps_of(own, 10.0)
    assert tau.tolist() == [1, 2, 2, 10]
    assert height.tolist() == [0.25, 0.25, 0.5, 0.5]


def test_the_drawn_profile_equals_its_definition_and_never_decreases():
    own = [1.0, 1.0, 1.5, 3.0, 3.0, 20.0, INF]
    tau, height = steps_of(own, 10.0)
    assert (tau[0], tau[-1]) == (1, 10)
    assert (height[1:] >= height[:-1]).all()
    for i in range(0, len(tau), 2):  # a level stretch, from the moment at which it is reached
        assert tau[i + 1] > tau[i]
        assert height[i] == height[i + 1] == share_within(own, tau[i])


def test_the_profile_of_a_method_that_solves_nothing_is_0():
    tau, height = steps_of([INF, INF], 4.0)
    assert (tau.tolist(), height.tolist()) == ([1, 4], [0, 0])
    assert score([INF, INF]) == 0


def test_the_score_is_the_area_below_the_profile():
    own = [1.0, 1.2, 2.0, 3.5, 4.0, 7.0, INF]
    tau, height = steps_of(own, profile.LIMIT)
    area = sum((b - a) * h for a, b, h in zip(tau, tau[1:], height, strict=False))
    assert score(own) == pytest.approx(area / (profile.LIMIT - 1))
    assert score([1.0, 1.0]) == 1


def test_equal_methods_share_a_place():
    found = ranks({"a": [1, 5], "b": [INF, 5], "c": [INF, 2], "d": [0, 5]})
    assert found == {"a": [2, 3], "b": [3.5, 3], "c": [3.5, 1], "d": [1, 3]}
    for place in zip(*found.values(), strict=True):
        assert sum(place) == 1 + 2 + 3 + 4


def test_resamples_draw_problems_and_then_their_instances():
    """Two problems: one that both solve at once, with three instances, and one of a single instance that B never does.

    B's score is the share of instances that are of the first problem, and both problems are drawn with equal chance:
    0 (second twice) in a quarter of the resamples, 1 in a quarter, 3/4 in half.
    """
    drawn = resampled_scores({"A": [1.0] * 4, "B": [1.0, 1.0, 1.0, math.inf]}, [3, 1])
    assert drawn.shape == (2, RESAMPLES)
    assert np.all(drawn[0] == 1)
    values, counts = np.unique(drawn[1], return_counts=True)
    assert values.tolist() == [0, 0.75, 1]
    np.testing.assert_allclose(counts / RESAMPLES, [0.25, 0.5, 0.25], atol=0.02)
    assert shares_of_firsts(drawn) == pytest.approx([0.75 + 0.25 / 2, 0.25 / 2], abs=0.01)


def test_resamples_of_one_problem_are_of_its_instances():
    """The mean of three draws with replacement from 0, 0 and 1."""
    (drawn,) = resampled_scores({"A": [math.inf, 1.0, math.inf]}, [3])
    values, counts = np.unique(drawn.round(9), return_counts=True)
    np.testing.assert_allclose(values, [0, 1 / 3, 2 / 3, 1], atol=1e-8)
    np.testing.assert_allclose(counts / RESAMPLES, np.array([8, 12, 6, 1]) / 27, atol=0.02)


def test_methods_are_scored_on_the_same_resamples():
    one, other = resampled_scores({"A": [1.0, math.inf, 2.5, 1.0], "B": [1.0, math.inf, 2.5, 1.0]}, [2, 2])
    assert np.array_equal(one, other)
