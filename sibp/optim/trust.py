"""AutoSIBP's trust and noise.

Trust is the share of a batch's own optimal length that a step takes. Noise is a running mean of the difference between
the losses of consecutive batches. The functions read and write entries of AutoSIBP's search state: "search_trust",
"search_mean_expected", "search_mean_slope" and "search_noise".
"""

import math
from collections.abc import Callable
from typing import Any

UNKNOWN = math.nan
"""Value of an entry that has not been measured yet."""

_GAIN, _LEAST_TRUST = 0.5, 1e-3  # how fast trust changes, and its lower limit
_FIRST_ROWS = 16  # if the output has fewer rows, trust starts at rows / 16
_SECOND_ROWS = 100  # if it has fewer, trust is limited to sqrt(rows / 100) at the second step, as noise is larger
_SAME_LOSS = 1e-4  # relative difference of two losses that rounding explains
_MEAN_WEIGHT = 0.1  # weight of the latest value in the running means of slopes and of loss differences
_NOISY = 0.1  # batches are noisy if their losses differ by more than this share of the loss
_SMALL_DECREASE = 0.2  # share of the noise; if batches are noisy, a smaller predicted decrease says little


def updated_trust(trust: float, fresh: float, expected: float, mean_expected: float = 0.0) -> float:
    """The trust after a step, from the slope of the next batch's loss along that step.

    Along its own step, the loss of a batch decreases further than the loss of all data. The gradient of the next batch
    is independent of that step, so it shows whether the step had the right length. If the next batch's loss still
    decreases along the step, the step was too short, and trust grows. If the loss increases, the step was too long, and
    trust shrinks. If the batch is always the same, trust approaches 1: then steps end at its minimum, where the slope
    is 0.

    Batches of a single sample disagree much more: most of them hardly change a trained net, and a few change it a lot.
    Slopes are therefore compared with their mean size, so that a small slope has little influence.

    Args:
        trust: the present trust, > 0 and <= 1.
        fresh: slope of the next batch's loss along the last step.
        expected: slope that a step of this length has at its start, < 0.
        mean_expected: running mean of |`expected`|.

    Returns:
        trust exp(-r / 2), limited to [1e-3, 1], with r = fresh / max(|expected|, mean_expected) limited to [-1, 1]. The
        present trust if a slope is unusable.
    """
    if not expected < 0 or not math.isfinite(fresh) or not math.isfinite(expected):
        return trust
    overshoot = min(max(fresh / max(-expected, mean_expected), -1.0), 1.0)
    return min(max(trust * math.exp(-_GAIN * overshoot), _LEAST_TRUST), 1.0)


def record_slopes(memory: dict[str, Any], fresh: float, expected: float) -> None:
    """Updates trust and the mean of |`expected`|; see `updated_trust`.

    Args:
        memory: the search state.
        fresh: slope of this batch's loss along the last step.
        expected: slope that a step of this length has at its start.
    """
    mean_expected = memory["search_mean_expected"]
    if -math.inf < expected < 0:
        mean_expected = _updated_mean(mean_expected, -expected)
        memory["search_mean_expected"] = mean_expected
        memory["search_trust"] = updated_trust(memory["search_trust"], fresh, expected, mean_expected)


def record_loss(memory: dict[str, Any], before: float, output_rows: Callable[[], float]) -> None:
    """Sets trust at the first step, limits it at the second if the batch has changed, and updates the noise.

    Args:
        memory: the search state.
        before: the loss before the step. If the batch is the same, it equals the loss at the end of the last step.
        output_rows: returns the number of rows of the output over all ranks; 0 if unknown.
    """
    if math.isnan(memory["search_trust"]):
        rows = output_rows()
        memory["search_trust"] = min(1.0, rows / _FIRST_ROWS) if rows else 1.0
        return
    end_loss, noise = memory["search_end_loss"], memory["search_noise"]
    difference = abs(before - end_loss)
    if not math.isnan(noise):
        memory["search_noise"] = _updated_mean(noise, difference)
        return
    memory["search_noise"] = difference
    if difference > _SAME_LOSS * abs(end_loss) and (rows := output_rows()):  # never if `end_loss` is NaN
        memory["search_trust"] = min(memory["search_trust"], math.sqrt(rows / _SECOND_ROWS))


def _updated_mean(mean: float, value: float) -> float:
    """A running mean after another value; the value itself if it is the first one."""
    return value if math.isnan(mean) else mean + _MEAN_WEIGHT * (value - mean)


def is_within_noise(memory: dict[str, Any], slope: float, reach: float, before: float) -> bool:
    """Whether this batch says little about the length: batches are noisy, and its slope predicts a small decrease.

    Short steps predict small decreases on every batch. The answer is therefore no if the slope is at least as steep as
    usual, so that steps that have become too short can grow again. Updates the running mean of slopes.

    Args:
        memory: the search state.
        slope: slope of the loss along the step, per unit of length.
        reach: the present length. A parabola with its minimum there predicts a decrease of -slope * reach / 2.
        before: the loss before the step.
    """
    noise, mean = memory["search_noise"], memory["search_mean_slope"]
    if -math.inf < slope < 0:
        memory["search_mean_slope"] = _updated_mean(mean, -slope)
    small = -slope * reach / 2 < _SMALL_DECREASE * noise and not -slope >= mean
    return noise > _NOISY * abs(before) and small
