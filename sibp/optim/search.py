"""How far to go along a step: pure functions of the loss phi(alpha) at p_old + alpha (p_new - p_old), 0 <= alpha <= 1.

What is taken was tried, and a length that raises the loss is never taken. Among those that do not, the minimum of a
parabola through phi(0), phi'(0) and one trial is looked for. The trial is a long one on purpose: near alpha = 0 a loss
curves more than it does further out, and the minimum that a short trial predicts is several times too near.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

Phi = Callable[[float], float]
"""The loss at a length alpha; NaN or infinite where the weights are of no use."""

MAX_TRIALS = 12  # of ever shorter steps, before a step is refused
_SHORTEST, _HALF, _UNKNOWN = 0.05, 0.5, 0.1  # factors from one trial to the next
_FARTHEST = 4.0  # how many times the longest trial a parabola may be followed
_GAIN, _LEAST_TRUST = 0.5, 1e-3  # how fast trust moves, and its lower end


class SearchStatus(IntEnum):
    """How a search ended."""

    TAKEN = 0  # with the first length that was tried
    SHORTENED = 1  # after lengths that raised the loss
    REFUSED = 2  # no length was found; the weights stay


@dataclass(frozen=True)
class Outcome:
    """What a search found.

    Attributes:
        alpha: the length to take; 0 if none was found.
        loss: phi(alpha).
        trials: how often phi was evaluated.
        optimum: where the parabola has its minimum, within [0, 1]; `alpha` where there was no parabola.
        predicted: the decrease of the loss that the parabola predicts at `alpha`; NaN where there was none.
        status: how it ended.
    """

    alpha: float
    loss: float
    trials: int
    optimum: float
    predicted: float
    status: SearchStatus


def acceptable(loss: float, before: float) -> bool:
    """Whether the loss is finite and not above that of before; any finite one is, where that was not a number."""
    return math.isfinite(loss) and not loss > before


def parabola_minimum(alpha: float, rise: float, slope: float) -> float:
    """Where the parabola through phi(0), phi'(0) and phi(alpha) has its minimum.

    Args:
        alpha: of the trial, > 0.
        rise: phi(alpha) - phi(0).
        slope: phi'(0).

    Returns:
        A length > 0; infinite for a curve that falls for ever, NaN where the slope does not fall or the rise is not
        finite.

    Example:
        >>> parabola_minimum(1.0, 0.0, -1.0)
        0.5
    """
    if not slope < 0 or not math.isfinite(rise) or not math.isfinite(slope):
        return math.nan
    curvature = (rise - slope * alpha) / alpha**2
    return -slope / (2 * curvature) if curvature > 0 else math.inf


def backtrack(phi: Phi, before: float, first: float, slope: float = math.nan) -> Outcome:
    """The first length that does not raise the loss, from `first` down.

    Each trial is at most half of the last one: where the parabola says, if there is one.

    Args:
        phi: the loss.
        before: phi(0).
        first: length of the first trial, 0 < first <= 1.
        slope: phi'(0); NaN if nobody knows.
    """
    alpha = first
    for trials in range(1, MAX_TRIALS + 1):
        loss = phi(alpha)
        rise = loss - before
        optimum = parabola_minimum(alpha, rise, slope)
        if acceptable(loss, before):
            status = SearchStatus.TAKEN if trials == 1 else SearchStatus.SHORTENED
            optimum = alpha if math.isnan(optimum) else min(optimum, _FARTHEST * alpha, 1.0)
            return Outcome(alpha, loss, trials, optimum, -rise if slope < 0 else math.nan, status)
        alpha *= _next(optimum / alpha, finite=math.isfinite(loss))
    return Outcome(0.0, before, MAX_TRIALS, 0.0, math.nan, SearchStatus.REFUSED)


def _next(share: float, *, finite: bool) -> float:
    """The next trial as a share of the last: by the parabola, within bounds; half of it where there is none."""
    if not finite:
        return _UNKNOWN
    return _HALF if math.isnan(share) else min(max(share, _SHORTEST), _HALF)


def minimise(phi: Phi, before: float, first: float, slope: float, trust: float = 1.0) -> Outcome:
    """`trust` times the length at which the parabola has its minimum: phi's own, if that is a parabola.

    Where this length raises the loss, the trial is taken that the parabola came from.

    Args:
        phi: the loss.
        before: phi(0).
        first: length of the trial, 0 < first <= 1.
        slope: phi'(0); NaN if nobody knows, and then this is `backtrack`.
        trust: share of the way to the minimum, 0 < trust <= 1.
    """
    tried = backtrack(phi, before, first, slope)
    target = trust * tried.optimum
    if tried.status is SearchStatus.REFUSED or target == tried.alpha:
        return tried
    loss, trials = phi(target), tried.trials + 1
    if not acceptable(loss, before):
        return Outcome(tried.alpha, tried.loss, trials, tried.optimum, tried.predicted, tried.status)
    decrease = math.nan
    if slope < 0:
        curvature = (tried.loss - before - slope * tried.alpha) / tried.alpha**2
        decrease = -(slope + curvature * target) * target
    return Outcome(target, loss, trials, tried.optimum, decrease, tried.status)


def trust_after(trust: float, fresh: float, expected: float, usual: float = 0.0) -> float:
    """What share of the way to a batch's minimum is worth going, after a look at the step from the next batch.

    The loss of one batch falls further along its own step than the loss of all data does. How far too far the last
    step went is what the next batch's gradient, which knows nothing of it, says along it: falling still, the step was
    too short; rising, too long. With the same batch again, the slope at the minimum is 0 and trust stays.

    Single samples disagree far more than batches do: most of them hardly move a trained net, and what a few ruin must
    not count as one voice among many. So slopes are compared with what is usual, and a flat one says little.

    Args:
        trust: the present share, > 0 and <= 1.
        fresh: slope of the next batch's loss along the last step.
        expected: slope that a step of this length has where it starts, < 0.
        usual: mean of -`expected` over the last looks, >= 0.

    Returns:
        The share from now on, in [1e-3, 1]; the present one where the slopes say nothing.
    """
    if not expected < 0 or not math.isfinite(fresh) or not math.isfinite(expected):
        return trust
    overshoot = min(max(fresh / max(-expected, usual), -1.0), 1.0)
    return min(max(trust * math.exp(-_GAIN * overshoot), _LEAST_TRUST), 1.0)
