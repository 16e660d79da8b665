"""Metrics of sensitivity to the step size at their bounds: losses of exactly half, equal losses, no decrease."""

import doctest
import math

import pytest

from sibp.analysis import step_sizes
from sibp.analysis.step_sizes import largest, room


def test_the_examples_in_the_documentation_hold():
    result = doctest.testmod(step_sizes)
    assert result.attempted > 0
    assert result.failed == 0


def test_half_the_initial_loss_is_not_below_half():
    assert largest({1.0: (2.0, 1.0)}) == -math.inf
    assert largest({1.0: (2.0, 0.999)}) == 1.0


def test_of_equally_good_step_sizes_the_smallest_is_the_best():
    """From 0.1 to 10, where the loss grows, are two decades; from 1, which is no better, only one."""
    assert room({0.1: (2.0, 0.1), 1.0: (2.0, 0.1), 10.0: (2.0, 3.0)}) == pytest.approx(2)


def test_a_loss_that_ends_where_it_began_does_not_decrease():
    assert room({0.1: (2.0, 0.1), 1.0: (2.0, 2.0), 10.0: (2.0, 0.5)}) == pytest.approx(1)
