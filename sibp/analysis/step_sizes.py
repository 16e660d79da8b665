"""Sensitivity to the step size: metrics of a method at one seed, over all its settings.

At each step size, the other hyper-parameters have the values with the lowest final training loss. All metrics except
`largest` are in decades and limited by the grid. They are minus infinity if every run diverged.
"""

import itertools
import math
from collections.abc import Mapping, Sequence

from sibp.analysis.comparison import Method
from sibp.analysis.outcomes import final

WITHIN, FACTOR = 0.1, 2.0
Losses = Mapping[float, tuple[float, float]]  # step size -> (first loss, final loss)


def losses(method: Method, at: Mapping[str, float]) -> dict[int, dict[float, tuple[float, float]]]:
    """``{seed: {lr: (first loss, final loss)}}`` of the best run among settings that agree with ``at``."""
    found: dict[int, dict[float, tuple[float, float]]] = {}
    for setting in method.settings:
        numbers = setting.hyper_parameters
        if numbers.get("lr", 0.0) <= 0 or any(numbers.get(key, value) != value for key, value in at.items()):
            continue
        for run in setting.runs:
            end, logged = final(run, "train_loss"), run.columns["train_loss"]
            if end is None or not len(logged):
                continue
            start = float(logged[0]) if not math.isnan(logged[0]) else math.inf
            of_seed = found.setdefault(run.seed, {})
            old = of_seed.get(numbers["lr"], (start, math.inf))
            of_seed[numbers["lr"]] = min(old, (start, end), key=lambda pair: pair[1])
    return found


def largest(by_lr: Losses) -> float:
    """The largest step size at which the final loss is below half the initial loss.

    Example:
        >>> largest({0.1: (2.3, 0.5), 1.0: (2.3, 1.1), 10.0: (2.3, 2.2)})
        1.0
    """
    return max((lr for lr, (start, end) in by_lr.items() if end < start / 2), default=-math.inf)


def width(by_lr: Losses) -> float:
    """The width of the interval around the best step size in which no final loss exceeds the least by over 10 %.

    Example:
        >>> width({0.01: (2.3, 0.5), 0.1: (2.3, 0.1), 1.0: (2.3, 0.11), 10.0: (2.3, 0.4), 100.0: (2.3, 0.1)})
        1.0
    """
    best = _best(by_lr)
    if best is None:
        return -math.inf
    bound = by_lr[best][1] * (1 + WITHIN) * (1 + 1e-12)  # includes a loss of exactly 10 % more despite rounding
    worse = [lr for lr, (_, end) in by_lr.items() if end > bound]
    low = max((lr for lr in worse if lr < best), default=0.0)
    high = min((lr for lr in worse if lr > best), default=math.inf)
    around = [lr for lr in by_lr if low < lr < high]
    return math.log10(max(around) / min(around))


def room(by_lr: Losses) -> float:
    """The distance from the best step size to the first larger one with which the loss does not decrease.

    Example:
        >>> room({0.1: (2.3, 0.1), 1.0: (2.3, 1.9), 10.0: (2.3, 2.4), 100.0: (2.3, 5.0)})
        2.0
    """
    best = _best(by_lr)
    if best is None:
        return -math.inf
    failed = [lr for lr, (start, end) in by_lr.items() if lr > best and end >= start]
    return math.log10(min(failed, default=max(by_lr)) / best)


def reach(by_lr: Losses) -> float:
    """The distance above the best step size over which the loss is at most `FACTOR` times the least loss.

    Example:
        >>> reach({0.1: (2.3, 0.4), 1.0: (2.3, 0.1), 10.0: (2.3, 0.4)})
        0.5
    """
    best = _best(by_lr)
    return -math.inf if best is None else _decades(by_lr, [lr for lr in sorted(by_lr) if lr >= best])


def spread(by_lr: Losses) -> float:
    """The range of step sizes around the best over which the loss is at most `FACTOR` times the least loss.

    Example:
        >>> spread({0.1: (2.3, 0.4), 1.0: (2.3, 0.1), 10.0: (2.3, math.inf)})
        0.5
    """
    best = _best(by_lr)
    if best is None:
        return -math.inf
    return reach(by_lr) + _decades(by_lr, [lr for lr in sorted(by_lr, reverse=True) if lr <= best])


def _best(by_lr: Losses) -> float | None:
    """The (smallest) step size with the least loss; None if every run diverged."""
    least = min((end for _, end in by_lr.values()), default=math.inf)
    return None if math.isinf(least) else min(lr for lr, (_, end) in by_lr.items() if end == least)


def _decades(by_lr: Losses, steps: Sequence[float]) -> float:
    """Decades from the best step size, the first of ``steps``, to where the interpolated loss exceeds its bound."""
    bound = FACTOR * by_lr[steps[0]][1]
    for near, far in itertools.pairwise(steps):
        low, high = by_lr[near][1], by_lr[far][1]
        if high > bound:
            known = math.isfinite(high) and low > 0
            part = math.log(bound / low) / math.log(high / low) if known else 0.0
            return abs(math.log10(near / steps[0]) + part * math.log10(far / near))
    return abs(math.log10(steps[-1] / steps[0]))
