"""The rule for trials: equally many per method, none twice, first beyond an edge, then around the best."""

import doctest
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sibp.tuning import grid
from sibp.tuning.grid import WORST, Axis, Point, Score, Trial, best, edges, next_trials, setting

LR, PROX = Axis("lr", (0.1, 0.3, 1.0)), Axis("prox_weight", (1.0, 10.0, 100.0))
MOMENTUM = Axis("momentum", (0.0, 0.7, 0.9))
Judge = Callable[[tuple[float, ...]], Score]


def play(axes: list[Axis], budget: int, judge: Judge) -> tuple[dict[Point, Score], list[list[Trial]]]:
    """Runs rounds of trials until none is left; returns (scores, rounds)."""
    done: dict[Point, Score] = {}
    rounds = []
    while batch := next_trials(done, axes, budget):
        assert not any(trial.point in done for trial in batch)  # otherwise the search would not end
        rounds.append(batch)
        done |= {trial.point: judge(setting(axes, trial.point)) for trial in batch}
    return done, rounds


def lottery(seed: int, diverged: float) -> Judge:
    def judge(values: tuple[float, ...]) -> Score:
        draw = random.Random(repr((seed, values)))
        return WORST if draw.random() < diverged else (round(draw.random(), 1), draw.random())

    return judge


@st.composite
def axes(draw: st.DrawFn) -> list[Axis]:
    def values(name: str) -> Axis:
        start = draw(st.sampled_from([0.001, 0.03, 1.0]))
        ratios = draw(st.lists(st.sampled_from([1.5, 2.0, 3.0, 10.0]), min_size=1, max_size=3))
        return Axis(name, tuple(start * math.prod(ratios[:i]) for i in range(len(ratios) + 1)))

    others = st.sampled_from([[], [MOMENTUM], [Axis("momentum", (0.5, 0.9))], [PROX]])
    return [values("lr"), *draw(others)]


@settings(max_examples=60, deadline=None)
@given(axes(), st.integers(0, 10), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 1.0]))
def test_every_method_gets_its_budget_and_no_setting_twice(axes, reserve, seed, diverged):
    size = math.prod(len(axis.values) for axis in axes)
    done, rounds = play(axes, size + reserve, lottery(seed, diverged))
    assert len(done) == size + reserve
    tried = [setting(axes, trial.point) for batch in rounds for trial in batch]
    assert len(set(tried)) == len(tried)
    assert all(values[0] > 0 and all(0 <= value < math.inf for value in values) for values in tried)
    assert len(rounds[0]) == size
    assert {trial.why for trial in rounds[0]} == {"initial grid"}
    assert play(axes, size + reserve, lottery(seed, diverged))[1] == rounds


@settings(max_examples=60, deadline=None)
@given(axes(), st.integers(0, 1000), st.sampled_from([0.0, 0.3, 1.0]))
def test_only_an_edge_extends_the_grid(axes, seed, diverged):
    judge, budget = lottery(seed, diverged), math.prod(len(axis.values) for axis in axes) + 10
    done: dict[Point, Score] = {}
    while batch := next_trials(done, axes, budget):
        assert not any(trial.point in done for trial in batch)
        if done:
            tried = [setting(axes, point) for point in done]
            place = setting(axes, best(done, axes))
            columns = list(zip(*tried, strict=True))
            low, high = list(map(min, columns)), list(map(max, columns))
            new = [setting(axes, trial.point) for trial in batch]
            beyond = [any(v < a or v > b for v, a, b in zip(each, low, high, strict=True)) for each in new]
            at_end = [v == b or (v == a and v > 0) for v, a, b in zip(place, low, high, strict=True)]
            assert all(beyond) if any(at_end) else not any(beyond)
            assert all(trial.why.startswith("beyond") == any(at_end) for trial in batch)
            changed = [sum(v != w for v, w in zip(each, place, strict=True)) for each in new]
            assert changed == sorted(changed)  # straight ahead first
        done |= {trial.point: judge(setting(axes, trial.point)) for trial in batch}


def bowl(*centre: float) -> Judge:
    return lambda values: (math.hypot(*(math.log(v / c) for v, c in zip(values, centre, strict=True))), 0.0)


@pytest.mark.parametrize("centre", [(10.0, 1000.0), (0.01, 0.1), (0.3, 10.0), (0.55, 31.0)])
def test_the_best_setting_is_found_inside_and_outside_the_initial_grid(centre):
    done, _ = play([LR, PROX], 30, bowl(*centre))
    found = setting([LR, PROX], best(done, [LR, PROX]))
    assert edges(done, [LR, PROX]) == []
    for value, ideal, step in zip(found, centre, (math.log(10) / 2, math.log(10)), strict=True):
        assert abs(math.log(value / ideal)) <= step / 2 + 0.01


def test_a_best_value_at_the_edge_of_a_spent_budget_is_an_edge():
    done, _ = play([LR, PROX], 9, bowl(100.0, 10.0))
    assert edges(done, [LR, PROX]) == [(0, 1)]


def test_a_corner_is_extended_in_both_directions_and_diagonally():
    _, rounds = play([LR, PROX], 14, bowl(100.0, 1e5))
    values = [setting([LR, PROX], trial.point) for trial in rounds[1]]
    assert values == [(1.0, 1000.0), (3.16, 100.0), (0.3, 1000.0), (3.16, 10.0), (3.16, 1000.0)]


def test_refinement_halves_the_step_around_the_best_setting():
    lr = Axis("lr", (0.01, 0.1, 1.0))
    _, rounds = play([lr], 7, lambda values: (0.0 if values == (0.1,) else 1.0, 0.0))
    assert [[lr.at(trial.point[0]) for trial in batch] for batch in rounds[1:]] == [[0.0316, 0.316], [0.0562, 0.178]]


def test_refinement_goes_on_at_the_distance_at_which_the_best_was_found():
    """0.178 lies a quarter of a step above 0.1: next come 0.133 and 0.237, an eighth of a step from it."""
    lr = Axis("lr", (0.01, 0.1, 1.0))
    losses = {(0.178,): 0.0, (0.1,): 1.0}
    _, rounds = play([lr], 9, lambda values: (losses.get(values, 2.0), 0.0))
    assert [[trial.point[0] for trial in batch] for batch in rounds[1:]] == [[0.5, 1.5], [0.75, 1.25], [1.125, 1.375]]
    assert [lr.at(trial.point[0]) for trial in rounds[-1]] == [0.133, 0.237]


def test_momentum_0_is_not_an_edge_and_the_other_end_approaches_1():
    done, rounds = play([MOMENTUM], 5, lambda values: (values[0], 0.0))
    assert edges(done, [MOMENTUM]) == []
    assert all(0 < MOMENTUM.at(trial.point[0]) < 0.7 for batch in rounds[1:] for trial in batch)
    done, _ = play([MOMENTUM], 6, lambda values: (-values[0], 0.0))
    assert 0.99 < MOMENTUM.at(best(done, [MOMENTUM])[0]) < 1
    assert edges(done, [MOMENTUM]) == [(0, 1)]


def test_ties_and_divergence_favour_the_smaller_step_size():
    same = {(float(i), float(j)): (0.5, 0.1) for i in range(3) for j in range(3)}
    assert setting([LR, PROX], best(same, [LR, PROX])) == (0.1, 1.0)
    diverged = dict.fromkeys(same, WORST)
    assert setting([LR, PROX], next_trials(diverged, [LR, PROX], 10)[0].point) < (0.1, 1.0)
    assert best(diverged | {(2.0, 2.0): (9.0, 9.0)}, [LR, PROX]) == (2.0, 2.0)


WRONG = [
    ("lr", (0.1,), "two or more"),
    ("lr", (0.3, 0.1), "from the smallest to the largest"),
    ("lr", (0.1, 0.1), "from the smallest to the largest"),
    ("lr", (0.0, 0.1), "above 0"),
    ("lr", (0.1, math.inf), "above 0"),
    ("lr", (0.1, math.nan), "from the smallest to the largest"),
    ("momentum", (0.9, 1.0), "below 1"),
    ("momentum", (-0.1, 0.9), "below 1"),
]


@pytest.mark.parametrize(("name", "values", "message"), WRONG)
def test_an_invalid_axis_is_refused_with_the_reason(name, values, message):
    with pytest.raises(ValueError, match=message):
        Axis(name, values)


def test_examples():
    assert doctest.testmod(grid).failed == 0
    assert doctest.testmod(grid).attempted > 0
