"""Searches on curves whose minimum is known."""

import itertools
import math

import pytest

from sibp.optim.search import (
    MAX_TRIALS,
    SearchStatus,
    acceptable,
    backtrack,
    minimise,
    parabola_minimum,
)
from sibp.optim.trust import updated_trust


@pytest.mark.parametrize("minimum", [0.03, 0.2, 0.5, 0.9])
def test_finds_the_minimum_of_a_parabola(minimum: float):
    def phi(a: float) -> float:
        return 7 + 3 * (a - minimum) ** 2

    found = minimise(phi, phi(0), 1.0, slope=-6 * minimum)
    assert found.alpha == pytest.approx(minimum, rel=1e-12)
    assert found.loss == phi(found.alpha)
    assert found.predicted == pytest.approx(3 * minimum**2, rel=1e-9)
    assert found.trials <= 4


@pytest.mark.parametrize("phi", [lambda a: 1 - a, lambda a: 1 - a * a])
def test_takes_the_full_step_without_a_minimum_of_the_parabola(phi):
    assert minimise(phi, phi(0), 1.0, slope=-1.0).alpha == 1
    assert backtrack(phi, phi(0), 1.0).alpha == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, 2.0])
@pytest.mark.parametrize("slope", [-1.0, 1.0, math.nan])
def test_a_direction_of_ascent_is_refused(bad: float, slope: float):
    for search in (backtrack, minimise):
        found = search(lambda a: bad, 1.0, 1.0, slope)
        assert (found.alpha, found.loss, found.status) == (0.0, 1.0, SearchStatus.REFUSED)
        assert found.trials == MAX_TRIALS


def test_trials_at_least_halve_until_the_loss_does_not_rise():
    tried: list[float] = []

    def phi(a: float) -> float:
        tried.append(a)
        return 2.0 if a > 0.01 else 0.5

    found = backtrack(phi, 1.0, 1.0, slope=-1.0)
    assert found.status is SearchStatus.SHORTENED
    assert found.alpha == tried[-1] <= 0.01
    assert all(b <= a / 2 for a, b in itertools.pairwise(tried))
    assert all(b >= a / 20 for a, b in itertools.pairwise(tried))


def test_a_predicted_minimum_with_a_higher_loss_is_not_taken():
    def phi(a: float) -> float:
        return 0.5 if a == 1 else 9.0

    found = minimise(phi, 1.0, 1.0, slope=-1.25)
    assert parabola_minimum(1.0, -0.5, -1.25) == pytest.approx(5 / 6)
    assert (found.alpha, found.loss) == (1.0, 0.5)


def test_every_evaluation_is_counted():
    """That of a rejected minimum, too, and those that follow where the loss falls too little."""
    for slope in (-1.25, -100.0):
        tried: list[float] = []

        def phi(a: float, tried: list[float] = tried) -> float:
            tried.append(a)
            return 0.5 if a in (1.0, 0.01) else 9.0

        assert minimise(phi, 1.0, 1.0, slope).trials == len(tried) > 1


def test_a_length_must_achieve_a_quarter_of_what_its_slope_promises():
    def phi(a: float) -> float:
        return max(1 - 100 * a, 0.0)  # at its lowest from .01 on; a quarter of the promise until .04

    found = minimise(phi, 1.0, 1.0, slope=-100.0)
    assert 0.02 < found.alpha <= 0.04 * (1 + 1e-9)  # shortened no more than necessary
    assert (found.loss, found.optimum) == (0.0, found.alpha)
    assert found.status is SearchStatus.SHORTENED
    half = minimise(phi, 1.0, 1.0, slope=-100.0, trust=0.5)
    assert half.alpha == pytest.approx(half.optimum / 2)  # the next steps' reach shrinks with the length


def test_halving_goes_past_lengths_that_raise_the_loss():
    def phi(a: float) -> float:
        if a > 0.5:
            return 0.9
        return 2.0 if a > 0.05 else 1 - a

    found = minimise(phi, 1.0, 1.0, slope=-1.0)
    assert found.alpha <= 0.05
    assert found.loss == phi(found.alpha)


def test_one_trial_finds_the_length_that_a_decrease_suffices_for():
    """However long the first one is: a loss that two samples determine falls to 0 along any long step."""

    def phi(a: float) -> float:
        return max(1 - 1e9 * a, 0.0)

    found = minimise(phi, 1.0, 1.0, slope=-1e9)
    assert found.alpha == pytest.approx(4e-9, rel=1e-6)
    assert found.trials <= 4


@pytest.mark.parametrize("level", [1.0, -1.0])
@pytest.mark.parametrize(("slope", "most"), [(-1e9, MAX_TRIALS), (-3e-7, 2)])
def test_a_slope_that_no_length_confirms_is_ignored(slope: float, most: int, level: float):
    """It is wrong, or what it promises is less than single precision resolves."""
    found = minimise(lambda a: level - 1e-9 * a, level, 1.0, slope, trust=1.0)
    plain = backtrack(lambda a: level - 1e-9 * a, level, 1.0, slope)
    assert found.alpha in (plain.alpha, plain.optimum)
    assert found.trials <= most


def test_trust_scales_the_step():
    found = minimise(lambda a: (a - 0.8) ** 2, 0.64, 1.0, slope=-1.6, trust=0.25)
    assert found.alpha == pytest.approx(0.2, rel=1e-12)
    assert found.optimum == pytest.approx(0.8, rel=1e-12)


def test_minimum_of_the_parabola():
    assert parabola_minimum(2.0, 0.0, -3.0) == 1.0  # symmetric about the middle
    assert parabola_minimum(1.0, -1.0, -1.0) == math.inf
    for rise, slope in ((math.nan, -1.0), (math.inf, -1.0), (0.0, 0.0), (0.0, 1.0), (0.0, math.nan)):
        assert math.isnan(parabola_minimum(1.0, rise, slope))


def test_only_a_finite_loss_that_is_not_higher_is_acceptable():
    assert acceptable(1.0, 1.0)
    assert acceptable(1.0, math.nan)
    for loss in (1.1, math.nan, math.inf, -math.inf):
        assert not acceptable(loss, 1.0)


def test_trust_adapts_to_the_slope_of_the_next_batch():
    assert updated_trust(0.5, 0.0, -1.0) == 0.5
    assert updated_trust(0.5, 0.1, -1.0) < 0.5 < updated_trust(0.5, -0.1, -1.0)
    assert updated_trust(0.5, 1e9, -1.0) == updated_trust(0.5, 1.0, -1.0)  # the weight of a single batch is bounded
    assert updated_trust(1.0, -1.0, -1.0) == 1
    # A slope of a tenth of the mean counts a tenth; at or above the mean, `mean_expected` has no effect.
    assert updated_trust(0.5, 0.1, -0.1, mean_expected=1.0) == pytest.approx(updated_trust(0.5, 0.1, -1.0))
    assert updated_trust(0.5, 2.0, -4.0, mean_expected=1.0) == updated_trust(0.5, 2.0, -4.0)
    for fresh, expected in ((math.nan, -1.0), (1.0, 0.0), (1.0, math.nan), (math.inf, -1.0)):
        assert updated_trust(0.5, fresh, expected) == 0.5
