"""Interleaved timing: methods take turns, so that whatever slows the machine down meets them all."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from sibp.analysis.statistics import Estimate

MIN_ROUNDS = 5
_WARM_UP = 2  # steps
_STRETCH = 0.03  # seconds that a stretch of steps should last, well above the clock's own noise
Clock = Callable[[], float]


@dataclass(frozen=True)
class Samples:
    """Seconds of a step by method, one sample a round.

    Attributes:
        seconds: by the clock.
        processor: of processor time, in all threads of this process.
    """

    seconds: dict[str, list[float]]
    processor: dict[str, list[float]]


class Stepper(Protocol):
    """What can be timed; see `sibp.bench.workers.Worker`.

    Attributes:
        period: a stretch is a whole number of so many steps, of which one may be dearer than the others.
    """

    period: int

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


def ratio_clock(device: str) -> Clock:
    """The clock that ratios to SGD are judged by.

    Args:
        device: "cpu", for processor time of all threads, or "cuda".

    Returns:
        A function of nothing that gives seconds.
    """
    return time.process_time if device == "cpu" else device_clock(device)


def interleave(
    workers: Mapping[str, Stepper], seconds: float, clock: Clock, processor: Clock = time.process_time
) -> Samples:
    """Time workers in rounds, in each of which every worker has its turn.

    A turn starts afresh (`restart`), takes one step that is not timed, so that caches hold the worker's own data, and
    then times a stretch of steps. Every round begins with another worker. Warm-up, in which the length of each
    worker's stretch is found, comes before and is not part of the samples.

    Args:
        workers: by name.
        seconds: rounds start until this much time has passed, but at least `MIN_ROUNDS` of them.
        clock: see `device_clock`.
        processor: gives the seconds of processor time that this process has had.

    Returns:
        For each name and clock the seconds of a step, one sample a round.
    """
    steps = {name: _stretch(worker, clock) for name, worker in workers.items()}
    samples = Samples({name: [] for name in workers}, {name: [] for name in workers})
    names, done, start = list(workers), 0, clock()
    while done < MIN_ROUNDS or clock() - start < seconds:
        first = done % len(names)
        for name in names[first:] + names[:first]:
            worker = workers[name]
            worker.restart()
            worker.step()
            begin, begin_processor = clock(), processor()
            for _ in range(steps[name]):
                worker.step()
            samples.seconds[name].append((clock() - begin) / steps[name])
            samples.processor[name].append((processor() - begin_processor) / steps[name])
        done += 1
    return samples


def _stretch(worker: Stepper, clock: Clock) -> int:
    """Warms up; the number of steps that last about `_STRETCH`, in whole periods."""
    for _ in range(_WARM_UP):
        worker.step()
    begin = clock()
    worker.step()
    taken = clock() - begin
    steps = max(1, round(_STRETCH / taken)) if taken > 0 else 1
    return -(-steps // worker.period) * worker.period


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
