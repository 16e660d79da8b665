"""Whether the methods of a problem can be compared, and the weaknesses of the comparison."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

from sibp.analysis.comparison import Problem
from sibp.report.blocks import Text
from sibp.runs.reading import Run
from sibp.runs.values import number_or_nan, shown

LOSS = "initial training loss"
BATCHES = "batches (completed runs)"  # a digest over all steps, comparable between completed runs only
STARTS = {  # what must be equal for equal seeds -> its key in a summary
    LOSS: "initial_train_loss",
    "initial weights": "initial_weights_sha256",
    "data": "data_sha256",
    BATCHES: "batches_sha256",
}
LIBRARIES = ("sibp", "torch", "numpy")  # whose versions must be equal
SPEED_KEYS = ("threads", "device", "processor", "kernels")  # entries of an environment that change seconds per step
ROUNDING = 1e-5  # upper bound on the relative difference between losses that are summed in different orders
UNEQUAL_LOAD = 1.0  # difference in running processes: another training process occupies a processor


def comparability(problem: Problem) -> list[Text]:
    """A paragraph on equal starts, and a warning for each weakness of the comparison."""
    checks = _unvalidated, _edges, _budgets, _rows, _code, _machines, _resumed, _unreliable
    return [*_starts(problem), *(Text(text, warning=True) for check in checks for text in check(problem))]


def incomparable(problem: Problem) -> list[str]:
    """One sentence that says why the shown runs must not be compared; empty if their starts are equal."""
    differing = [what.removesuffix(" (completed runs)") for what in STARTS if _unequal(problem.shown_runs, what)]
    if not differing:
        return []
    return [
        f"Not comparable: runs of the same seed differ in {', '.join(differing)}. The warnings name two of them; look "
        "at their config.yaml and summary.json."
    ]


def _starts(problem: Problem) -> list[Text]:
    """Whether runs of equal seeds had equal first losses, weights, data and batches."""
    equal, unknown, warnings = [], [], []
    for what in STARTS:
        known = sum(_start(run, what) is not None for run in problem.runs)
        if unequal := _unequal(problem.runs, what):
            seed, names = next(iter(unequal.items()))
            where = f"seed {seed} ({shown(names[0])} and {shown(names[1])})"
            warnings.append(f"Unequal start: {what} differ within a seed (on {len(unequal)} seeds): {where}.")
        elif known:
            partly = what != BATCHES and known < len(problem.runs)
            equal.append(what + (f" (recorded by {known} of {len(problem.runs)} runs)" if partly else ""))
        else:
            unknown.append(what)
    texts = [Text(f"Equal start: for each seed, all runs had the same {', '.join(equal)}.")] if equal else []
    if unknown:
        texts.append(Text(f"Not recorded and not checked: {', '.join(unknown)}."))
    return [*texts, *(Text(warning, warning=True) for warning in warnings)]


def _unequal(runs: Sequence[Run], what: str) -> dict[int, list[str]]:
    """``{seed: names of runs}`` for seeds whose runs differ in one of `STARTS`; one run for each distinct value."""
    by_seed: defaultdict[int, list[tuple[float | str, str]]] = defaultdict(list)
    for run in runs:
        value, others = _start(run, what), by_seed[run.seed]
        if value is not None and not any(_same(value, other) for other, _ in others):
            others.append((value, run.path.name))
    return {seed: [name for _, name in found] for seed, found in sorted(by_seed.items()) if len(found) > 1}


def _same(one: float | str, other: float | str) -> bool:
    """Whether two values are equal; losses up to rounding, which depends on threads, kernels and processor."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=ROUNDING)
    return one == other


def _start(run: Run, what: str) -> float | str | None:
    """One of `STARTS` of a run; None if it is not known."""
    value = run.summary.get(STARTS[what])
    if what != LOSS:
        return shown(value) if value and (what != BATCHES or run.status == "completed") else None
    steps, losses = run.columns["step"], run.columns["train_loss"]
    loss = losses[0] if len(steps) and steps[0] == 0 else number_or_nan(value)
    return float(loss) if loss == loss else None


def _unvalidated(problem: Problem) -> Iterable[str]:
    names = ", ".join(method.name for method in problem.methods if not method.validated)
    if names:
        yield f"No validation data of {names}: the final training loss decides alone."


def _edges(problem: Problem) -> Iterable[str]:
    found = [f"{method.name}'s {edge}" for method in problem.methods for edge in method.edges()]
    if found:
        yield f"Chosen at the edge of the grid; better values may lie beyond: {'; '.join(found)}."


def _budgets(problem: Problem) -> Iterable[str]:
    tried = {method.name: len(method.settings) for method in problem.methods}
    if len(set(tried.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in tried.items())
        yield f"Unequal budgets; settings tried: {listed}."


def _rows(problem: Problem) -> Iterable[str]:
    """Runs that were logged at different steps."""
    completed = [(run, method.name) for method in problem.methods for run in method.runs if run.status == "completed"]
    if len({tuple(run.columns["step"]) for run, _ in completed}) > 1:
        counts = sorted((len(run.columns["step"]), name) for run, name in completed)
        (least, seldom), (most, often) = counts[0], counts[-1]
        yield (
            f"Runs were logged at different steps ({seldom} {least} rows, {often} {most}), on which best values, steps "
            "and seconds to a target, and break-even ratios depend."
        )


def _code(problem: Problem) -> Iterable[str]:
    """Runs of different code."""
    abouts = [run.environment for run in problem.shown_runs]
    versions = [about["versions"] for about in abouts if isinstance(about.get("versions"), dict)]
    found = {"commits": {shown(about["git_commit"]) for about in abouts if about.get("git_commit")}}
    for name in LIBRARIES:
        found[f"versions of {name}"] = {shown(each[name]) for each in versions if each.get(name)}
    differing = [f"{len(values)} {what}" for what, values in found.items() if len(values) > 1]
    changed = sum(about.get("git_dirty") is True for about in abouts)
    if 0 < changed < sum(about.get("git_dirty") is not None for about in abouts):
        differing.append(f"{changed} of {len(abouts)} with uncommitted changes")
    if differing:
        yield f"Runs differ in their code: {', '.join(differing)}."


def _machines(problem: Problem) -> Iterable[str]:
    if not _own_seconds(problem):
        return
    abouts = [run.environment for run in problem.shown_runs if run.environment]
    keys = ("host", "processor", "device", "threads")
    places = {tuple(shown(about.get(key)) for key in keys) for about in abouts}
    if len(places) > 1:
        yield f"Seconds were measured on {len(places)} combinations of host, processor, device and threads."
    kernels = sorted({shown(about.get("kernels") or "unknown") for about in abouts})
    if len(kernels) > 1:
        yield f"Runs differ in their compiled kernels ({', '.join(kernels)}): compare steps, not seconds."
    loads = [number_or_nan(about.get("load")) for about in abouts]
    known = [load for load in loads if load == load]
    if known and max(known) - min(known) > UNEQUAL_LOAD:
        yield (
            f"Machine load varied from {min(known):g} to {max(known):g} processes between runs: compare steps, "
            "not seconds, or measure the cost of a step separately (sibp bench runs)."
        )


def _resumed(problem: Problem) -> Iterable[str]:
    """Runs that were continued by a process with another number of threads, device, processor or kernels."""
    changed = [keys for run in problem.shown_runs if (keys := _changed_speed_keys(run))]
    if changed and _own_seconds(problem):
        keys = ", ".join(key for key in SPEED_KEYS if any(key in each for each in changed))
        yield (
            f"Resumed with other {keys}: {len(changed)} of the shown runs, whose seconds mix clocks: compare steps, "
            "not seconds."
        )


def _changed_speed_keys(run: Run) -> list[str]:
    """Which of `SPEED_KEYS` differ between the processes that trained a run."""
    earlier = run.summary.get("earlier_environments")
    parts = [run.environment, *(earlier if isinstance(earlier, list) else [])]
    known = [part for part in parts if isinstance(part, dict) and part]
    return [key for key in SPEED_KEYS if len({shown(part.get(key)) for part in known}) > 1]


def _unreliable(problem: Problem) -> Iterable[str]:
    for status in ("diverged", "failed"):
        counts = [(method, sum(run.status == status for run in method.runs)) for method in problem.methods]
        found = [f"{method.name} ({count} of {len(method.runs)})" for method, count in counts if count]
        if found:
            yield f"Shown runs {status}, and count as worst: {', '.join(found)}; see the table of runs."
    for method in problem.methods:
        waiting = sum(run.status == "unfinished" for run in method.all_runs)
        if waiting:
            yield f"{method.name}: {waiting} unfinished run{'' if waiting == 1 else 's'}, not counted yet."


def _own_seconds(problem: Problem) -> bool:
    """Whether the report shows seconds that the runs measured themselves."""
    return not all(method.name in (problem.clock or ()) for method in problem.methods if method.runs)
