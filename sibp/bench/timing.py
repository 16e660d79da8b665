"""Interleaved timing: methods take turns, so that whatever slows the machine down meets them all."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import torch

from sibp.report.statistics import Estimate

MIN_ROUNDS = 5
_WARM_UP = 2  # steps
_STRETCH = 0.03  # seconds that a stretch of steps should last, well above the clock's own noise
Clock = Callable[[], float]


class Stepper(Protocol):
    """What can be timed; see `sibp.bench.workers.Worker`."""

    def step(self) -> None:
        """Takes a step."""
        ...

    def restart(self) -> None:
        """Goes back to the start."""
        ...


def device_clock(device: str) -> Clock:
    """A clock that lets a device finish its work before it is read.

    Args:
        device: "cpu" or "cuda".

    Returns:
        A function of nothing that gives seconds.
    """

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised if device == "cuda" else time.perf_counter


def interleave(workers: Mapping[str, Stepper], seconds: float, clock: Clock) -> dict[str, list[float]]:
    """Time workers in rounds, in each of which every worker has its turn.

    A turn starts afresh (`restart`), takes one step that is not timed, so that caches hold the worker's own data, and
    then times a stretch of steps. Every round begins with another worker. Warm-up, in which the length of each
    worker's stretch is found, comes before and is not part of the samples.

    Args:
        workers: by name.
        seconds: rounds start until this much time has passed, but at least `MIN_ROUNDS` of them.
        clock: see `device_clock`.

    Returns:
        For each name the seconds of a step, one sample a round.
    """
    steps = {name: _stretch(worker, clock) for name, worker in workers.items()}
    samples: dict[str, list[float]] = {name: [] for name in workers}
    names, done, start = list(workers), 0, clock()
    while done < MIN_ROUNDS or clock() - start < seconds:
        first = done % len(names)
        for name in names[first:] + names[:first]:
            worker = workers[name]
            worker.restart()
            worker.step()
            begin = clock()
            for _ in range(steps[name]):
                worker.step()
            samples[name].append((clock() - begin) / steps[name])
        done += 1
    return samples


def _stretch(worker: Stepper, clock: Clock) -> int:
    """Warms up; the number of steps that last about `_STRETCH`."""
    for _ in range(_WARM_UP):
        worker.step()
    begin = clock()
    worker.step()
    taken = clock() - begin
    return max(1, round(_STRETCH / taken)) if taken > 0 else 1


def quartiles(values: Sequence[float]) -> Estimate:
    """Median with the quartiles as bounds.

    Args:
        values: samples, at least one.

    Returns:
        The estimate, whose bounds are quartiles and no confidence interval.
    """
    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
    return Estimate(float(middle), float(low), float(high), len(values))


def ratios(samples: Sequence[float], base: Sequence[float]) -> Estimate:
    """How many times as long a method takes as another, round by round.

    Args:
        samples: of the method.
        base: of the other, in the same rounds.

    Returns:
        Median and quartiles of the rounds' ratios: what slows a whole round down cancels.
    """
    return quartiles([value / other for value, other in zip(samples, base, strict=True)])
