"""The choice of a method's setting, and verdicts, as functions of numbers; report/rules.html states the rules."""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sibp.analysis.statistics import Estimate, estimate, median, sign_test

MIN_SEEDS = 5
BETTER, WORSE, SAME, TOO_FEW = "better", "worse", "no difference", "too few seeds"


@dataclass(frozen=True)
class Verdict:
    """One method against another on shared seeds; a win is a seed on which it was better."""

    word: str
    difference: Estimate | None
    wins: int
    ties: int
    losses: int
    sign_p: float

    @property
    def count(self) -> int:
        """The number of shared seeds."""
        return self.wins + self.ties + self.losses


@dataclass(frozen=True)
class Choice:
    """The position of a method's chosen setting, the seeds it was chosen on, and those it is shown on."""

    setting: int
    tuning_seeds: frozenset[int]
    shown_seeds: frozenset[int]

    @property
    def fresh(self) -> bool:
        """Whether none of the shown seeds was used for the choice."""
        return not self.tuning_seeds & self.shown_seeds


def verdict(first: Mapping[int, float], second: Mapping[int, float], larger_is_better: bool) -> Verdict:
    """Judge the first method against the second, paired by seed; the difference is first minus second.

    Args:
        first: ``{seed: value}``; values may be infinite, but not NaN.
        second: the same for the second method.
        larger_is_better: True for an accuracy.

    Example:
        >>> sgd, sibp = {0: 3.0, 1: 3.1, 2: 3.2, 3: 3.3, 4: 3.4}, {0: 1.0, 1: 1.1, 2: 1.2, 3: 1.3, 4: 1.4}
        >>> verdict(sibp, sgd, larger_is_better=False).word, verdict(sgd, sibp, larger_is_better=False).word
        ('better', 'worse')
        >>> verdict({0: 1.0}, {0: 3.0, 1: 3.1}, larger_is_better=False).word
        'too few seeds'
    """
    pairs = [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
    differences = [0.0 if mine == other else mine - other for mine, other in pairs]  # equal if both diverged
    difference, sign = estimate(differences), 1 if larger_is_better else -1
    wins, losses = (sum(way * each > 0 for each in differences) for way in (sign, -sign))
    word = TOO_FEW
    if difference and difference.count >= MIN_SEEDS:
        least, most = sorted(sign * end for end in difference.ends)
        word = BETTER if least > 0 else WORSE if most < 0 else SAME
    return Verdict(word, difference, wins, len(differences) - wins - losses, losses, sign_test(wins, losses))


def choose(
    settings: Sequence[Mapping[int, tuple[float, float]]], trials: Collection[int] = frozenset()
) -> Choice | None:
    """Choose a method's setting on validation data; the first of equal settings, None if no setting has a value.

    Args:
        settings: one ``{seed: (final validation accuracy, final validation loss)}`` each; may be infinite, but not NaN.
        trials: seeds of tuning runs; if empty, the seeds that at least half of the settings share.

    Example:
        >>> choice = choose([{0: (0.9, 0.3)}, {0: (0.8, 0.1), 1: (0.99, 0.1)}])
        >>> choice.setting, sorted(choice.tuning_seeds)
        (0, [0])
    """
    usable = [i for i, seeds in enumerate(settings) if seeds]
    if not usable:
        return None
    if len(usable) == 1 and not trials:
        return Choice(usable[0], frozenset(), frozenset(settings[usable[0]]))
    count = Counter(seed for i in usable for seed in settings[i])
    shared = frozenset(seed for seed, number in count.items() if number >= max(2, len(usable) / 2))
    tuning = frozenset(trials) & count.keys() or shared
    eligible = [i for i in usable if tuning <= settings[i].keys()] or usable

    judged_on = {i: frozenset(settings[i].keys() & tuning or settings[i]) for i in eligible}

    def merit(i: int) -> tuple[float, float]:
        accuracies, losses = zip(*(settings[i][seed] for seed in judged_on[i]), strict=True)
        return median(accuracies), -median(losses)

    best = max(eligible, key=merit)
    own, used = frozenset(settings[best]), judged_on[best]
    fresh = own - used
    return Choice(best, used, fresh if len(fresh) >= min(MIN_SEEDS, len(used)) else own)


def edge(grid: Sequence[float], best: float) -> str | None:
    """``largest`` or ``smallest`` if the best value is at that edge of the tried values, or None; 0 is not an edge.

    Example:
        >>> edge([0.1, 1, 10], 10), edge([0.1, 1, 10], 1), edge([0.0, 0.9], 0.0), edge([1], 1)
        ('largest', None, None, None)
    """
    if len(set(grid)) < 2:
        return None
    if best == max(grid):
        return "largest"
    return "smallest" if best == min(grid) and best > 0 else None


def ratio(value: float | None, base: float | None) -> float | None:
    """``value / base``; None if either is unknown or infinite, or the base is 0."""
    if value is None or not base or not math.isfinite(value) or not math.isfinite(base):
        return None
    return value / base
