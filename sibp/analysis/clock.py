"""Verdicts by the clock: break-even and measured ratio of seconds per step; report/rules.html states the rules."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path
from statistics import median
from typing import Any

from sibp.analysis.comparison import Method, Problem, compare, methods_of
from sibp.analysis.outcomes import FINAL_LOSS, seconds_per_step
from sibp.analysis.scoring import BETTER, MIN_SEEDS, TOO_FEW, WORSE
from sibp.analysis.statistics import Estimate, estimate
from sibp.runs.reading import Run, read_text
from sibp.runs.values import BrokenError, UsageError, number, shown

NOISE = "within the noise"
MAX_RECORD = 100_000_000  # bytes, far above any record
INPUTS = {"digits": 64, "mnist": 784, "fashion_mnist": 784, "cifar10": 3072}  # pixels and channels of an image
KEPT = "bench/runs-cpu-1thread.json"  # in results/: the common record of seconds per step of the kept runs
OWN_CLOCK = Path(KEPT).name
"""In an experiment's folder: a record that replaces `KEPT`, which lacks the experiment's methods, or was measured with
settings whose steps cost something else (with momentum, fewer iterations)."""
Clock = Mapping[str, Sequence[float]]  # method -> seconds per step, one sample per interleaved measurement


@dataclass(frozen=True)
class Timed:
    """A method against another by wall-clock time."""

    method: Method
    other: Method
    break_even: Estimate  # over seeds: the largest cost ratio of a step at which the method does not lose
    measured: Estimate  # over interleaved measurements or over seeds: the actual cost ratio of a step

    @property
    def word(self) -> str:
        """``better``, ``worse``, ``within the noise`` or ``too few seeds``."""
        if self.break_even.count < MIN_SEEDS:
            return TOO_FEW
        (low, high), (least, most) = self.break_even.ends, self.measured.ends
        return BETTER if most < low else WORSE if least > high else NOISE


def by_the_clock(problem: Problem) -> list[Timed]:
    """All ordered pairs with known seconds and shared seeds, by the problem's clock or else the runs' seconds.

    Pairs of methods without any finite final loss are omitted.
    """
    finite = {method: any(map(math.isfinite, method.by_seed(FINAL_LOSS).values())) for method in problem.methods}
    pairs = [(method, other) for other, method in permutations(finite, 2) if finite[method] or finite[other]]
    return [found for method, other in pairs if (found := timed(method, other, problem.clock))]


def timed(method: Method, other: Method, clock: Clock | None) -> Timed | None:
    """A method against another by ``clock``, or else by their runs' seconds; None without seconds or shared seeds."""
    even, cost = estimate(break_evens(method, other)), estimate(cost_ratios(method, other, clock))
    return Timed(method, other, even, cost) if even and cost else None


def break_evens(method: Method, other: Method) -> list[float]:
    """The break-even ratio on each shared seed; 0 if only the method diverged, infinite if only the other did."""
    found = [_break_even(mine, rival) for mine, rival in method.paired(other)]
    return [ratio for ratio in found if ratio is not None]


def _break_even(mine: Run, rival: Run) -> float | None:
    ends = FINAL_LOSS.of(mine), FINAL_LOSS.of(rival)
    if ends[0] is None or ends[1] is None:
        return None
    if math.isinf(ends[0]) or math.isinf(ends[1]):
        return 1.0 if ends[0] == ends[1] else 0.0 if math.isinf(ends[0]) else math.inf
    if ends[0] <= ends[1]:
        steps, needed = rival.columns["step"][-1], _steps_to(mine, ends[1])
    else:
        steps, needed = _steps_to(rival, ends[0]), mine.columns["step"][-1]
    return float(steps / needed) if needed else None


def _steps_to(run: Run, loss: float) -> float:
    """The first logged step with this training loss or less, of a run that ended at such a loss."""
    return run.columns["step"][run.columns["train_loss"] <= loss][0]


def cost_ratios(method: Method, other: Method, clock: Clock | None) -> list[float]:
    """Ratios of seconds per step: one per interleaved measurement of ``clock``, or per shared seed without one."""
    if clock is not None:
        pairs = zip(clock.get(method.name, ()), clock.get(other.name, ()), strict=False)
        return [mine / theirs for mine, theirs in pairs if mine > 0 and theirs > 0]
    paces = [(seconds_per_step(mine), seconds_per_step(rival)) for mine, rival in method.paired(other)]
    return [mine / theirs for mine, theirs in paces if mine and theirs]


def read_clock(path: Path, problem: Problem) -> Clock | None:
    """Seconds per step recorded by ``sibp bench runs`` or ``step`` for a problem's network and batch size, or None.

    With one CPU thread, these are seconds of processor time, which other load affects little.

    Raises:
        UsageError: the file is not such a record.
    """
    try:
        text = read_text(path, MAX_RECORD)
        if text is None:
            raise BrokenError("there is no such file")
        record = json.loads(text)
        machine = record.get("machine", {})
        alone = machine.get("device") == "cpu" and machine.get("threads") == 1
        kind = "processor_seconds_per_step" if alone else "seconds_per_step"
        known = {(case["net"], case["batch"]): case.get(kind, case["seconds_per_step"]) for case in record["cases"]}
        found = known.get((net_of(problem), problem.config.get("batch_size")), {})
        return {_name(method): _seconds(method, samples) for method, samples in found.items()} or None
    except (BrokenError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        reason = error if isinstance(error, BrokenError) else type(error).__name__
        raise UsageError(f"--clock {path} is not a record of `sibp bench runs` or `step` ({reason}).") from error


def _seconds(method: str, samples: Sequence[Any]) -> list[float]:
    found = [number(value) for value in samples]
    if not found or not all(seconds > 0 for seconds in found):
        raise BrokenError(f"the seconds per step of {shown(method)} are not numbers above 0")
    return found


def time_by(problem: Problem, clock: Clock) -> None:
    """Set a problem's clock: every step of a run then takes the method's median seconds per step in ``clock``."""
    paces = {method.name: median(clock[method.name]) for method in problem.methods if method.name in clock}
    timed = [
        _at_pace(run, paces[method.name]) if method.name in paces else run
        for method in problem.methods
        for run in method.all_runs
    ]
    problem.clock, problem.methods = clock, methods_of(timed)


def time_all(problems: Sequence[Problem], path: Path) -> None:
    """Set the clock of every problem whose network and batch size are in a record.

    Raises:
        UsageError: the file is not such a record.
    """
    for problem in problems:
        if clock := read_clock(path, problem):
            time_by(problem, clock)


def kept_problems(runs: Sequence[Run], results: Path, experiment: str) -> list[Problem]:
    """Compare kept runs, timed by the record in ``results/experiment``, or else by the common one, if there is any.

    Raises:
        UsageError: the file is not such a record.
    """
    problems = compare(runs)
    own = results / experiment / OWN_CLOCK
    if (record := own if own.exists() else results / KEPT).exists():
        time_all(problems, record)
    return problems


def _at_pace(run: Run, pace: float) -> Run:
    steps = run.columns["step"]
    total = {"train": pace * float(steps[-1])} if len(steps) else run.summary.get("seconds")
    return replace(run, columns=run.columns | {"seconds": pace * steps}, summary=run.summary | {"seconds": total})


def _name(method: str) -> str:
    """The method's name in runs; ``sibp bench step`` uses the solver as the name of SIBP."""
    if method == "proxbp":
        return "proxbp exact"
    return f"sibp {method}" if method in ("exact", "paper") or method.startswith("cg:") else method


def net_of(problem: Problem) -> str:
    """The network's name in the benchmark: its widths from input to output, or the model's name."""
    dataset, model = problem.config.get("dataset"), problem.config.get("model")
    hidden = model.get("hidden") if isinstance(model, dict) else None
    if not isinstance(dataset, dict) or not isinstance(hidden, list):
        return str(model.get("name")) if isinstance(model, dict) else ""
    return "-".join(map(str, [INPUTS.get(str(dataset.get("name")), 0), *hidden, 10]))
