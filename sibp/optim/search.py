"""Line searches: pure functions of the loss phi(alpha) at p_old + alpha (p_new - p_old), 0 <= alpha <= 1.

A length is taken only if a trial shows that it does not raise the loss. The search aims at the minimum of the parabola
through phi(0), phi'(0) and one trial point, and shortens the length if the loss decreases too little. That trial is
deliberately long: a loss curves more near alpha = 0 than further out, so a short trial would predict a minimum that is
several times too near.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import IntEnum

Phi = Callable[[float], float]
"""The loss at a length alpha; NaN or infinite where the weights are useless."""

MAX_TRIALS = 12  # trials before the step is refused
# Factors from one trial to the next: the smallest, the largest, and the one after a loss that is not finite.
_SHORTEST, _HALF, _NONFINITE = 0.05, 0.5, 0.1
_FARTHEST = 4.0  # a parabola is used up to this multiple of the trial's length
_SUFFICIENT = 0.25  # least decrease of the loss, as a share of -alpha times the slope (Armijo's rule)
_RESOLUTION = 1e-6  # relative rounding error of a loss in single precision


class SearchStatus(IntEnum):
    """How a search ended."""

    TAKEN = 0  # the first trial was acceptable
    SHORTENED = 1  # longer trials raised the loss, or lowered it too little
    REFUSED = 2  # no trial was acceptable: the weights stay as they were


@dataclass(frozen=True)
class Outcome:
    """The result of a search.

    Attributes:
        alpha: the length to take; 0 if none is acceptable.
        loss: phi(alpha).
        trials: number of evaluations of phi.
        optimum: length of the parabola's minimum, at most 1 and at most 4 times the trial's length; `alpha` without a
            parabola. Where `minimise` shortens the length, `optimum` is shortened in proportion.
        predicted: the decrease of the loss that the parabola predicts at `alpha`; NaN without one.
        status: how the search ended.
    """

    alpha: float
    loss: float
    trials: int
    optimum: float
    predicted: float
    status: SearchStatus


def acceptable(loss: float, before: float) -> bool:
    """Whether the loss is finite and no larger than `before`; any finite loss will do if `before` is NaN."""
    return math.isfinite(loss) and not loss > before


def parabola_minimum(alpha: float, rise: float, slope: float) -> float:
    """The minimum of the parabola through phi(0), phi'(0) and phi(alpha).

    Args:
        alpha: of the trial, > 0.
        rise: phi(alpha) - phi(0).
        slope: phi'(0).

    Returns:
        A length > 0; infinite if the curve never stops falling, NaN if the slope is not negative or the rise is not
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
    """Finds the first length that does not raise the loss, in trials of decreasing length from `first`.

    Each trial is at most half as long as the last one. If the parabola's minimum is even shorter, the next trial is at
    that minimum, or at 5 % of the last trial's length if that is longer.

    Args:
        phi: the loss.
        before: phi(0).
        first: length of the first trial, 0 < first <= 1.
        slope: phi'(0); NaN if unknown.

    Returns:
        The first acceptable length; alpha = 0 with the status REFUSED if none of `MAX_TRIALS` trials is.
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
        alpha *= _next_fraction(optimum / alpha, finite=math.isfinite(loss))
    return Outcome(0.0, before, MAX_TRIALS, 0.0, math.nan, SearchStatus.REFUSED)


def _next_fraction(share: float, *, finite: bool) -> float:
    """The next trial's length as a share of the last one's.

    Args:
        share: the parabola's minimum, as a share of the last trial's length; NaN without a parabola.
        finite: whether the loss of the last trial is finite.
    """
    if not finite:
        return _NONFINITE
    return _HALF if math.isnan(share) else min(max(share, _SHORTEST), _HALF)


def minimise(phi: Phi, before: float, first: float, slope: float, trust: float = 1.0, farthest: float = 1.0) -> Outcome:
    """Takes `trust` times the length of the parabola's minimum, if that length is acceptable.

    If this length raises the loss, the search takes the trial that determined the parabola. While the loss decreases by
    less than a quarter of what the slope predicts, the length is shortened, by at least half each time.

    Args:
        phi: the loss.
        before: phi(0).
        first: length of the first trial, 0 < first <= farthest.
        slope: phi'(0); NaN if unknown: then there is no parabola, and `trust` scales the length of `backtrack`.
        trust: share of the way to the minimum, 0 < trust <= 1.
        farthest: upper limit of the parabola's minimum, <= 1.

    Returns:
        The length taken; alpha = 0 with the status REFUSED if no trial is acceptable.
    """
    tried = backtrack(phi, before, first, slope)
    tried = replace(tried, optimum=min(tried.optimum, farthest))
    if tried.status is SearchStatus.REFUSED:
        return tried
    outcome, target = tried, trust * tried.optimum
    if target != tried.alpha:
        loss, trials = phi(target), tried.trials + 1
        if acceptable(loss, before):
            outcome = replace(tried, alpha=target, loss=loss, trials=trials)
        else:
            outcome = replace(tried, trials=trials)
    outcome = _armijo(phi, before, slope, outcome)
    curvature = (tried.loss - before - slope * tried.alpha) / tried.alpha**2
    predicted = -(slope + curvature * outcome.alpha) * outcome.alpha if slope < 0 else math.nan
    return replace(outcome, predicted=predicted)


def halve_while_decreasing(phi: Phi, outcome: Outcome) -> Outcome:
    """Halves a length while that lowers the loss.

    Args:
        phi: the loss.
        outcome: the result of `backtrack`.
    """
    while outcome.status is not SearchStatus.REFUSED and outcome.trials < MAX_TRIALS:
        alpha = _HALF * outcome.alpha
        loss, trials = phi(alpha), outcome.trials + 1
        if not loss < outcome.loss:
            return replace(outcome, trials=trials)
        outcome = replace(outcome, alpha=alpha, loss=loss, trials=trials, status=SearchStatus.SHORTENED)
    return outcome


def _armijo(phi: Phi, before: float, slope: float, outcome: Outcome) -> Outcome:
    """Shortens the length, and the optimum in proportion, until the decrease satisfies Armijo's rule.

    The decrease has to be at least a quarter of -slope * alpha. At the minimum of a parabola it is half of
    -slope * alpha. Without this rule, a loss that reaches its lowest value early and stays there would allow lengths of
    any size, which harm other batches. Each trial is at most half as long as the last one, and no longer than the
    length for which the last one's decrease would suffice. Predicted decreases that single precision does not resolve
    are not compared. If no trial suffices, the shortest one is taken, unless it raises the loss.
    """
    alpha, loss, trials = outcome.alpha, outcome.loss, outcome.trials
    while trials < MAX_TRIALS and (linear := -slope * alpha) > _RESOLUTION * abs(before):
        ratio = (before - loss) / (_SUFFICIENT * linear) if acceptable(loss, before) else 0.0
        if ratio >= 1:
            return _shortened(outcome, alpha, loss, trials)
        alpha *= min(ratio or _HALF, _HALF)
        loss, trials = phi(alpha), trials + 1
    if trials == MAX_TRIALS and alpha < outcome.alpha and acceptable(loss, before):
        return _shortened(outcome, alpha, loss, trials)
    return replace(outcome, trials=trials)


def _shortened(outcome: Outcome, alpha: float, loss: float, trials: int) -> Outcome:
    """The outcome at another length, with the optimum in proportion."""
    share = alpha / outcome.alpha
    status = outcome.status if share == 1 else SearchStatus.SHORTENED
    return replace(outcome, alpha=alpha, loss=loss, trials=trials, optimum=share * outcome.optimum, status=status)
