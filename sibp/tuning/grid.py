"""The settings of a method to try next: a pure function of the settings tried, the same for every method.

The search starts with the whole initial grid. While the best setting lies at an edge, it tries the settings one log
step beyond, including the diagonal neighbours, because good values of two hyper-parameters often grow together. Once
the best setting is interior, it tries settings half a log step around it, then a quarter, and so on, until the budget
is spent. Around a new best setting it continues with the distance at which that setting was found.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, ...]  # per axis, a position in its values: 0 the first, 0.5 half a step above, -1 one step below
Score = tuple[float, float]  # smaller is better
WORST: Score = (math.inf, math.inf)
FINEST = 10  # halvings of a step; finer steps are lost in the rounding of the values


@dataclass(frozen=True)
class Axis:
    """A hyper-parameter and its initial values, on a log scale; for ``momentum`` m, the log scale of 1 - m.

    Args:
        name: such as ``lr``.
        values: at least two, increasing; above 0, or for momentum from 0 to below 1.

    Raises:
        ValueError: the values are invalid; the message says which are possible.
    """

    name: str
    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.values) < 2 or any(not a < b for a, b in itertools.pairwise(self.values)):
            raise ValueError("give two or more numbers, from the smallest to the largest")
        first, last = self.values[0], self.values[-1]
        if self._mirrors and not 0 <= first < last < 1:
            raise ValueError("give numbers from 0 to below 1")
        if not self._mirrors and not 0 < first < last < math.inf:
            raise ValueError("give numbers above 0: the scale is logarithmic")

    def at(self, position: float) -> float:
        """The value at a position in the list, interpolated or extrapolated on the log scale.

        Args:
            position: 0 for the first value; beyond the ends, a step is as long as the list's mean step.

        Returns:
            A given value unchanged; other values have three significant digits.

        Example:
            >>> lr, momentum = Axis("lr", (0.1, 1.0)), Axis("momentum", (0.0, 0.9))
            >>> lr.at(2), lr.at(0.5), momentum.at(2), momentum.at(-1)
            (10.0, 0.316, 0.99, 0.0)
        """
        last = len(self.values) - 1
        if position == int(position) and 0 <= position <= last:
            return self.values[int(position)]
        logs = [math.log(self._mirrored(value)) for value in self.values]
        if 0 < position < last:
            left = int(position)
            found = logs[left] + (position - left) * (logs[left + 1] - logs[left])
        else:
            end = 0 if position < 0 else last
            found = logs[end] + (position - end) * (logs[last] - logs[0]) / last
        return max(0.0, self._mirrored(float(f"{math.exp(found):.3g}")))

    @property
    def _mirrors(self) -> bool:
        return self.name == "momentum"

    def _mirrored(self, value: float) -> float:
        return round(1 - value, 9) if self._mirrors else value


@dataclass(frozen=True)
class Trial:
    """A point of the grid to try, and why: the initial grid, beyond an edge, or around the best."""

    point: Point
    why: str


def setting(axes: Sequence[Axis], point: Point) -> tuple[float, ...]:
    """The values at a point of the grid.

    Args:
        axes: of the grid.
        point: one position per axis.

    Returns:
        One value per axis.
    """
    return tuple(axis.at(position) for axis, position in zip(axes, point, strict=True))


def best(done: Mapping[Point, Score], axes: Sequence[Axis]) -> Point:
    """The best setting tried; ties go to the smaller value of the first axis (lr), then of the next.

    Args:
        done: scores of one or more settings.
        axes: of the grid.

    Returns:
        Its point.
    """
    return min(done, key=lambda point: (done[point], setting(axes, point)))


def edges(done: Mapping[Point, Score], axes: Sequence[Axis]) -> list[tuple[int, int]]:
    """The edges at which the best setting lies: it has the smallest or largest value tried, and values beyond exist.

    Args:
        done: scores of one or more settings.
        axes: of the grid.

    Returns:
        (axis, direction) for each edge, direction -1 or 1; a momentum of 0 is no edge.
    """
    place = best(done, axes)
    found = []
    for i, axis in enumerate(axes):
        tried = [point[i] for point in done]
        for direction, end in ((-1, min(tried)), (1, max(tried))):
            if place[i] == end and axis.at(end + direction) != axis.at(end):
                found.append((i, direction))
    return found


def next_trials(done: Mapping[Point, Score], axes: Sequence[Axis], budget: int) -> list[Trial]:
    """The next batch of trials.

    Args:
        done: the score of every setting tried so far.
        axes: of the grid.
        budget: number of settings that may be tried in total, at least the size of the initial grid.

    Returns:
        Trials that have not been tried; an empty list when the budget is spent.
    """
    left = budget - len(done)
    initial = itertools.product(*(map(float, range(len(axis.values))) for axis in axes))
    if missing := [Trial(point, "initial grid") for point in initial if point not in done]:
        return missing[:left]
    if left <= 0:
        return []
    ends = edges(done, axes)
    beyond = [
        Trial(point, "beyond the edge of " + " and ".join(axes[i].name for i, sign in ends if moves[i] == sign))
        for point, moves in _around(done, axes, 1.0)
        if any(moves[i] == sign for i, sign in ends)
    ]
    if beyond:
        return beyond[:left]
    found_at = max(position.as_integer_ratio()[1] for position in best(done, axes)).bit_length() - 1
    for halvings in range(max(1, found_at), FINEST + 1):
        near = _around(done, axes, 0.5**halvings)
        if near:
            return [Trial(point, f"1/{2**halvings} step from the best") for point, _ in near][:left]
    return []


def _around(done: Mapping[Point, Score], axes: Sequence[Axis], step: float) -> list[tuple[Point, Point]]:
    """Untried neighbours of the best setting as (point, moves); neighbours along one axis come first."""
    place = best(done, axes)
    tried = {setting(axes, point) for point in done}
    found = []
    for moves in sorted(itertools.product((0, -1, 1), repeat=len(axes)), key=lambda moves: -moves.count(0)):
        point = tuple(position + step * move for position, move in zip(place, moves, strict=True))
        values = setting(axes, point)
        # A move that changes no value has reached a bound, such as a momentum of 0.
        stuck = any(m and a.at(p) == v for m, a, p, v in zip(moves, axes, place, values, strict=True))
        if values not in tried and not stuck:
            tried.add(values)
            found.append((point, moves))
    return found
