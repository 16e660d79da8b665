"""Whether the methods of a problem can be compared, and the weaknesses of the comparison."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import chain

from sibp.analysis.comparison import Problem
from sibp.report.blocks import Text
from sibp.runs.reading import Run
from sibp.runs.values import number_or_nan, shown

LOSS = "initial training loss"
BATCHES = "batches (completed runs)"  # a digest of the batches of all steps, so only completed runs can be compared
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
    weaknesses = chain(_tuning(problem), _records(problem), _clocks(problem), _unreliable(problem))
    return [*_starts(problem), *(Text(text, warning=True) for text in weaknesses)]


def incomparable(problem: Problem) -> list[str]:
    """Why the shown runs must not be compared, as a list of one sentence; an empty list if their starts are equal."""
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
    """Whether two values are equal. Losses may differ by rounding, which depends on threads, kernels and processor."""
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


def _tuning(problem: Problem) -> Iterator[str]:
    if names := ", ".join(method.name for method in problem.methods if not method.validated):
        yield f"No validation data of {names}: the final training loss decides alone."
    if edges := [f"{method.name}'s {edge}" for method in problem.methods for edge in method.edges()]:
        yield f"Chosen at the edge of the grid; better values may lie beyond: {'; '.join(edges)}."
    if len({len(method.settings) for method in problem.methods}) > 1:
        tried = ", ".join(f"{method.name} {len(method.settings)}" for method in problem.methods)
        yield f"Unequal budgets; settings tried: {tried}."


def _records(problem: Problem) -> Iterator[str]:
    """Runs that were logged at different steps, or are of different code."""
    completed = [(run, method.name) for method in problem.methods for run in method.runs if run.status == "completed"]
    if len({tuple(run.columns["step"]) for run, _ in completed}) > 1:
        counts = sorted((len(run.columns["step"]), name) for run, name in completed)
        (least, seldom), (most, often) = counts[0], counts[-1]
        yield (
            f"Runs were logged at different steps ({seldom} {least} rows, {often} {most}), on which best values, steps "
            "and seconds to a target, and break-even ratios depend."
        )
    abouts = [run.environment for run in problem.shown_runs]
    versions = [about["versions"] for about in abouts if isinstance(about.get("versions"), dict)]
    found = {f"versions of {name}": {shown(each[name]) for each in versions if each.get(name)} for name in LIBRARIES}
    found = {"commits": {shown(about["git_commit"]) for about in abouts if about.get("git_commit")}} | found
    differing = [f"{len(values)} {what}" for what, values in found.items() if len(values) > 1]
    changed = sum(about.get("git_dirty") is True for about in abouts)
    if 0 < changed < sum(about.get("git_dirty") is not None for about in abouts):
        differing.append(f"{changed} of {len(abouts)} with uncommitted changes")
    if differing:
        yield f"Runs differ in their code: {', '.join(differing)}."


def _clocks(problem: Problem) -> Iterator[str]:
    """What makes seconds incomparable; nothing if the report shows no seconds that the runs measured themselves."""
    if all(method.name in (problem.clock or ()) for method in problem.methods if method.runs):
        return
    abouts = [run.environment for run in problem.shown_runs if run.environment]
    places = {tuple(shown(about.get(key)) for key in ("host", "processor", "device", "threads")) for about in abouts}
    if len(places) > 1:
        yield f"Seconds were measured on {len(places)} combinations of host, processor, device and threads."
    kernels = sorted({shown(about.get("kernels") or "unknown") for about in abouts})
    if len(kernels) > 1:
        yield f"Runs differ in their compiled kernels ({', '.join(kernels)}): compare steps, not seconds."
    loads = [load for about in abouts if (load := number_or_nan(about.get("load"))) == load]
    if loads and max(loads) - min(loads) > UNEQUAL_LOAD:
        yield (
            f"Machine load varied from {min(loads):g} to {max(loads):g} processes between runs: compare steps, "
            "not seconds, or measure the cost of a step separately (sibp bench runs)."
        )
    resumed = [keys for run in problem.shown_runs if (keys := _changed_speed_keys(run))]
    if resumed:
        keys = ", ".join(key for key in SPEED_KEYS if any(key in each for each in resumed))
        yield (
            f"{len(resumed)} of the shown runs were resumed with other {keys}, so their seconds come from different "
            "clocks: compare steps, not seconds."
        )


def _changed_speed_keys(run: Run) -> list[str]:
    """Which of `SPEED_KEYS` differ between the processes that trained a run."""
    earlier = run.summary.get("earlier_environments")
    parts = [run.environment, *(earlier if isinstance(earlier, list) else [])]
    known = [part for part in parts if isinstance(part, dict) and part]
    return [key for key in SPEED_KEYS if len({shown(part.get(key)) for part in known}) > 1]


def _unreliable(problem: Problem) -> Iterator[str]:
    shown_as = {method: Counter(run.status for run in method.runs) for method in problem.methods}
    for status in ("diverged", "failed"):
        found = [f"{method.name} ({of[status]} of {of.total()})" for method, of in shown_as.items() if of[status]]
        if found:
            yield f"Shown runs {status}, and count as worst: {', '.join(found)}; see the table of runs."
    for method in problem.methods:
        if waiting := sum(run.status == "unfinished" for run in method.all_runs):
            yield f"{method.name}: {waiting} unfinished run{'' if waiting == 1 else 's'}, not counted yet."
