"""Interleaved timing: methods take turns, so that a change of the machine's speed affects all methods."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from sibp.analysis.statistics import Estimate

MIN_ROUNDS = 5
_WARM_UP = 2  # steps
_STRETCH = 0.03  # seconds per stretch of steps, well above the clock's noise
Clock = Callable[[], float]


@dataclass(frozen=True)
class Samples:
    """Seconds of a step by method, one sample per round.

    Attributes:
        seconds: wall-clock time.
        processor: processor time of all threads of this process.
    """

    seconds: dict[str, list[float]]
    processor: dict[str, list[float]]


class Stepper(Protocol):
    """Training steps that can be timed; see `sibp.bench.workers.Worker`.

    Attributes:
        period: steps after which costs repeat; a stretch is a whole number of periods.
    """

    period: int

    def step(self) -> None:
        """Takes a step."""
        ...

    def restart(self) -> None:
        """Called before each stretch: returns to the initial weights if the next steps need them."""
        ...


def device_clock(device: str) -> Clock:
    """A clock that waits for the device before it is read.

    Args:
        device: "cpu" or "cuda".

    Returns:
        A function without arguments that returns seconds.
    """

    def synchronised() -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    return synchronised if device == "cuda" else time.perf_counter


def ratio_clock(device: str) -> Clock:
    """The clock by which ratios to SGD are judged.

    Args:
        device: "cpu", for processor time of all threads, or "cuda".

    Returns:
        A function without arguments that returns seconds.
    """
    return time.process_time if device == "cpu" else device_clock(device)


def interleave(
    workers: Mapping[str, Stepper], seconds: float, clock: Clock, processor: Clock = time.process_time
) -> Samples:
    """Time workers in rounds; each worker has one turn per round.

    A turn restarts the worker, takes one untimed step, so that caches hold the worker's own data, and then times a
    stretch of steps. Every round begins with another worker. A warm-up, which determines the length of each worker's
    stretch, precedes the samples.

    Args:
        workers: by name.
        seconds: rounds start until this much time has passed, but at least `MIN_ROUNDS` of them.
        clock: see `device_clock`.
        processor: returns the processor time of this process in seconds.

    Returns:
        The seconds of a step by name and clock, one sample per round.
    """
    steps = {name: _steps_per_sample(worker, clock) for name, worker in workers.items()}
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


def _steps_per_sample(worker: Stepper, clock: Clock) -> int:
    """Warm up, and return the number of steps, a multiple of the period, that last about `_STRETCH`."""
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
        The estimate; its bounds are quartiles, not a confidence interval.
    """
    low, middle, high = np.quantile(np.asarray(values, dtype=float), [0.25, 0.5, 0.75])
    return Estimate(float(middle), float(low), float(high), len(values))


def ratios(samples: Sequence[float], base: Sequence[float]) -> Estimate:
    """The ratio of two methods' times, round by round.

    Args:
        samples: of the method.
        base: of the other, in the same rounds.

    Returns:
        Median and quartiles of the rounds' ratios, in which a slowdown of a whole round cancels.
    """
    return quartiles([value / other for value, other in zip(samples, base, strict=True)])
