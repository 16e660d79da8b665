"""Medians over seeds with intervals; infinite values (a diverged run, a missed target) are included."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

RESAMPLES, BOOTSTRAP_SEED, LEVEL = 10_000, 20200516, 0.95
INTERVAL_RULE = (
    f"Intervals are {100 * LEVEL:g} % percentile bootstrap intervals of the median over seeds "
    f"({RESAMPLES:,} resamples, random seed {BOOTSTRAP_SEED}); a single seed has none."
)


@dataclass(frozen=True)
class Estimate:
    """A median, over seeds unless stated otherwise, with its bootstrap interval; no bounds for a single value."""

    median: float
    low: float | None
    high: float | None
    count: int

    @property
    def ends(self) -> tuple[float, float]:
        """The interval's ends; if there is no interval, the median twice."""
        return (self.median if self.low is None else self.low), (self.median if self.high is None else self.high)

    def __neg__(self) -> "Estimate":
        low, high = (None if end is None else -end for end in (self.high, self.low))
        return Estimate(-self.median, low, high, self.count)


def estimate(values: Sequence[float]) -> Estimate | None:
    """The median of values (no NaN) with its bootstrap interval; None without values."""
    if len(values) < 2:
        return Estimate(float(values[0]), None, None, 1) if values else None
    return Estimate(median(values), *bootstrap_interval(values), len(values))


def median(values: Sequence[float]) -> float:
    """The median of one or more values; 0 between infinities of opposite sign.

    Example:
        >>> median([1.0, math.inf, 2.0]), median([1.0, math.inf]), median([-math.inf, math.inf])
        (2.0, inf, 0.0)
    """
    found = float(statistics.median(values))
    return 0.0 if math.isnan(found) else found


def bootstrap_interval(values: Sequence[float]) -> tuple[float, float]:
    """Percentile bootstrap interval of the median of two or more values.

    The bounds are resampled medians, without interpolation, so infinities are preserved.

    Example:
        >>> bootstrap_interval([3.0, 3.0, 3.0])
        (3.0, 3.0)
    """
    return _interval(tuple(sorted(map(float, values))))


@lru_cache(maxsize=1 << 16)  # a report needs the intervals of the same values many times
def _interval(values: tuple[float, ...]) -> tuple[float, float]:
    low, high = np.array(values)[_middle_positions(len(values))]
    with np.errstate(invalid="ignore"):  # infinities of opposite sign
        return bounds(np.where(low == -high, 0.0, low / 2 + high / 2))


def bounds(drawn: np.ndarray) -> tuple[float, float]:
    """The percentile interval of (RESAMPLES,) draws; both bounds are among the draws."""
    ordered = np.sort(drawn)
    tail = math.floor((1 - LEVEL) / 2 * len(ordered))
    return float(ordered[tail]), float(ordered[-1 - tail])


@lru_cache(maxsize=256)
def _middle_positions(count: int) -> np.ndarray:
    """(2, RESAMPLES): positions among ``count`` sorted values of the two middle values of each resample."""
    random = np.random.default_rng(BOOTSTRAP_SEED)
    parts = (random.integers(count, size=(RESAMPLES // 10, count)) for _ in range(10))  # in parts, to bound memory
    return np.concatenate([np.sort(drawn, axis=1)[:, [(count - 1) // 2, count // 2]] for drawn in parts]).T


def holm(probabilities: Sequence[float]) -> list[float]:
    """Holm's correction of p-values for one family of tests (Scandinavian Journal of Statistics 6, 1979).

    Example:
        >>> holm([0.5, 0.125, 0.25])
        [0.5, 0.375, 0.5]
    """
    order = sorted(range(len(probabilities)), key=lambda i: probabilities[i])
    corrected, least = [0.0] * len(order), 0.0
    for rank, i in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * probabilities[i]))
        corrected[i] = least
    return corrected


def sign_test(wins: int, losses: int) -> float:
    """The p-value of a two-sided exact sign test; ties count for neither side.

    Example:
        >>> sign_test(5, 0), sign_test(3, 2)
        (0.0625, 1.0)
    """
    count = wins + losses
    tail = sum(math.comb(count, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * tail / 2**count)
