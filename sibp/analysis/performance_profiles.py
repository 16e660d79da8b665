"""Performance profiles (Dolan and Moré 2002, arXiv cs/0102001), and their scores; report/rules.html explains them."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from sibp.analysis.statistics import BOOTSTRAP_SEED, RESAMPLES

LIMIT = 4.0  # AlgoPerf's


def ratios(costs: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """Every cost over the least cost on its instance; infinite for a missed target.

    Example:
        >>> ratios({"a": [10, 30, math.inf], "b": [20, 30, math.inf]})
        {'a': [1.0, 1.0, inf], 'b': [2.0, 1.0, inf]}
    """
    least = [min(each) for each in zip(*costs.values(), strict=True)]
    return {name: [_ratio(cost, low) for cost, low in zip(own, least, strict=True)] for name, own in costs.items()}


def _ratio(cost: float, least: float) -> float:
    if math.isinf(cost):
        return math.inf
    if cost == least:  # even if both are 0: the target was met from the start
        return 1.0
    return cost / least if least > 0 else math.inf


def share_within(ratios: Sequence[float], tau: float) -> float:
    """The profile's height at tau: the share of instances solved within tau times the least cost.

    Example:
        >>> share_within([1.0, 2.0, 3.0, math.inf], 2.0)
        0.5
    """
    return sum(ratio <= tau and math.isfinite(ratio) for ratio in ratios) / len(ratios)


def score(ratios: Sequence[float]) -> float:
    """The mean height of the profile from 1 to `LIMIT`: 0 (nothing solved within it) to 1 (the fastest everywhere).

    Example:
        >>> score([1.0, 2.5, 9.0, math.inf])
        0.375
    """
    return sum(max(0.0, LIMIT - ratio) for ratio in ratios) / (LIMIT - 1) / len(ratios)


def resampled_scores(ratios: Mapping[str, Sequence[float]], sizes: Sequence[int]) -> np.ndarray:
    """(methods, RESAMPLES): the scores of all methods on the same resamples.

    Args:
        ratios: method -> ratios, ordered by problem.
        sizes: number of instances of each problem.
    """
    gains = np.array([[score([ratio]) for ratio in own] for own in ratios.values()])
    count, starts = np.array(sizes), np.cumsum([0, *sizes[:-1]])
    random = np.random.default_rng(BOOTSTRAP_SEED)
    parts = []
    for _ in range(20):  # in parts, to bound memory
        problems = random.integers(len(sizes), size=(RESAMPLES // 20, len(sizes)))
        instances = (random.random((*problems.shape, max(sizes))) * count[problems, None]).astype(int)
        taken = np.arange(max(sizes)) < count[problems, None]
        drawn = gains[:, starts[problems, None] + instances]
        parts.append((drawn * taken).sum((-2, -1)) / taken.sum((-2, -1)))
    return np.concatenate(parts, axis=1)


def shares_of_firsts(scores: np.ndarray) -> list[float]:
    """The share of resamples in which each method's score is the highest; equal methods share one.

    Example:
        >>> shares_of_firsts(np.array([[0.9, 0.5], [0.9, 0.4], [0.1, 0.3]]))
        [0.75, 0.25, 0.0]
    """
    first = scores == scores.max(0)
    return [float(share) for share in (first / first.sum(0)).mean(1)]


def steps_of(ratios: Sequence[float], limit: float) -> tuple[np.ndarray, np.ndarray]:
    """The profile up to ``limit`` as a step function: tau and heights at its corners.

    Example:
        >>> tau, height = steps_of([1.0, 3.0, math.inf, 3.0], 4.0)
        >>> tau.tolist(), height.tolist()
        ([1.0, 3.0, 3.0, 4.0], [0.25, 0.25, 0.75, 0.75])
    """
    corners = [1.0, *sorted({ratio for ratio in ratios if 1 < ratio <= limit})]
    heights = [share_within(ratios, corner) for corner in corners]
    return np.append(np.repeat(corners, 2)[1:], limit), np.repeat(heights, 2)


def ranks(costs: Mapping[str, Sequence[float]]) -> dict[str, list[float]]:
    """The rank of every method on every instance, 1 for the smallest value; equal methods share their mean rank.

    Example:
        >>> ranks({"a": [3, 1], "b": [2, 1], "c": [math.inf, 4]})
        {'a': [2.0, 1.5], 'b': [1.0, 1.5], 'c': [3.0, 3.0]}
    """
    from scipy.stats import rankdata  # half a second to import

    return dict(zip(costs, rankdata(list(costs.values()), axis=0).tolist(), strict=True))
