"""The report's tables."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

from sibp.analysis.comparison import Method, Problem, Setting
from sibp.analysis.outcomes import (
    BEST_LOSS,
    FINAL_LOSS,
    TEST_ACC,
    Quantity,
    Target,
    final,
    median_over,
    over_runs,
    seconds_per_step,
    to_target,
    training_seconds,
)
from sibp.analysis.scoring import ratio
from sibp.report.blocks import Cell, Link, Table
from sibp.runs.collect import Collection
from sibp.runs.identity import method_name
from sibp.runs.reading import Run
from sibp.runs.values import shown

STATUSES = ("completed", "diverged", "failed", "unfinished")


def summary_table(problem: Problem) -> Table:
    """One row per method at its chosen setting."""
    columns = _over_runs((FINAL_LOSS, BEST_LOSS, *problem.quantities), problem)
    rows = [[method.name, method.label, *(of(method.runs) for of in columns.values())] for method in problem.methods]
    return Table("summary", ("method", "setting", *columns), rows, "Medians over seeds with 95 % bootstrap intervals")


def settings_table(problem: Problem) -> Table:
    """One row per setting, without test metrics, which are shown for chosen settings only."""
    columns = _over_runs((FINAL_LOSS, BEST_LOSS, *problem.quantities[:2]), problem)
    rows: list[list[Cell]] = []
    for method in problem.methods:
        for setting in method.settings:
            mark = "chosen" if setting is method.chosen else ""
            rows.append([method.name, setting.label, mark, *(of(setting.runs) for of in columns.values())])
    title = "Every setting tried, over all its seeds (no test metrics)"
    return Table("settings", ("method", "setting", "chosen", *columns), rows, title, folded=True)


def _over_runs(quantities: Sequence[Quantity], problem: Problem) -> dict[str, Callable[[Sequence[Run]], Cell]]:
    """Column -> function that gives the cell for the runs of a setting."""
    step, sgd = partial(median_over, of=seconds_per_step), problem.by_name.get("sgd")

    def to(target: Target, part: int, run: Run) -> float | None:
        found = to_target(run, target)
        return found[part] if found else None

    columns: dict[str, Callable[[Sequence[Run]], Cell]] = {
        "seeds": lambda runs: sum(run.status != "unfinished" for run in runs),
        **{quantity.title: partial(over_runs, of=quantity.of) for quantity in quantities},
        "seconds": lambda runs: over_runs([run for run in runs if run.status == "completed"], training_seconds),
        "ms per step": lambda runs: None if (found := step(runs)) is None else 1000 * found,
        "step cost against SGD": lambda runs: ratio(step(runs), sgd and sgd.step_seconds()),
    }
    for target in problem.targets:
        for part, unit in enumerate(("steps", "seconds")):
            columns[f"{unit} to {target.title}"] = partial(over_runs, of=partial(to, target, part))
    return columns | {status: partial(_count, status) for status in STATUSES}


def _count(status: str, runs: Sequence[Run]) -> int:
    return sum(run.status == status for run in runs)


def budget_table(problem: Problem) -> Table:
    """Each method's budget: settings, runs, seconds, grids."""
    rows: list[list[Cell]] = []
    for method in problem.methods:
        runs = method.all_runs
        tuned = {key: method.grid(key) for setting in method.settings for key in setting.hyper_parameters}
        grids = [
            f"{shown(key)}: {', '.join(f'{v:g}' for v in grid)}" for key, grid in sorted(tuned.items()) if len(grid) > 1
        ]
        counts = [_count(status, runs) for status in STATUSES]
        seconds = float(sum(map(training_seconds, runs)))
        values = "; ".join(grids) or "one setting"
        rows.append([method.name, len(method.settings), len(runs), *counts, seconds, values])
    columns = ("method", "settings tried", "runs", *STATUSES, "total training seconds", "values tried")
    return Table("budget", columns, rows, "Each method's budget")


RUN: dict[str, Callable[[Problem, Method, Setting, Run], Cell]] = {  # p, m, s, r: problem, method, setting, run
    "task": lambda p, m, s, r: p.title,
    "method": lambda p, m, s, r: m.name,
    "setting": lambda p, m, s, r: s.label,
    "seed": lambda p, m, s, r: r.seed,
    "status": lambda p, m, s, r: r.status,
    "last step": lambda p, m, s, r: int(r.columns["step"][-1]) if len(r.columns["step"]) else None,
    "final train loss": lambda p, m, s, r: final(r, "train_loss"),
    "final val acc": lambda p, m, s, r: final(r, "val_acc"),
    "test acc": lambda p, m, s, r: TEST_ACC.of(r) if s is m.chosen else None,
    "seconds": lambda p, m, s, r: training_seconds(r),
    "reason": lambda p, m, s, r: shown(r.summary.get("reason") or ""),
    "folder": lambda p, m, s, r: Link(r.path),
}


def runs_table(problems: Sequence[Problem]) -> Table:
    """One row per run."""
    rows = [
        [of(problem, method, setting, run) for of in RUN.values()]
        for problem in problems
        for method in problem.methods
        for setting in method.settings
        for run in setting.runs
    ]
    return Table("runs", tuple(RUN), rows, f"{len(rows)} runs, with their folders", folded=True)


def broken_table(collection: Collection) -> list[Table]:
    """The run folders that could not be read, with the reasons, if any."""
    rows = [[Link(broken.path), broken.reason] for broken in collection.broken]
    return [Table("broken", ("folder", "reason"), rows, "Broken runs, excluded above")] if rows else []


def notes_table(collection: Collection, problems: Sequence[Problem]) -> list[Table]:
    """Corrections made while reading, and omitted repetitions of a run, if any."""
    rows: list[list[Cell]] = [[Link(run.path), note] for run in collection.runs for note in run.notes]
    for problem in problems:
        for run, kept in problem.repeated:
            method = method_name(run.optimizer)
            rows.append([Link(run.path), f"omitted: same setting and seed as {shown(kept.path.name)} ({method})"])
    return [Table("notes", ("folder", "note"), rows, "Notes")] if rows else []


def versions_table(runs: Sequence[Run]) -> Table:
    """One row for each distinct environment in the summaries."""
    count: Counter[tuple[str, ...]] = Counter()
    for run in runs:
        about = run.environment
        versions = about.get("versions")
        listed = ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) if isinstance(versions, dict) else ""
        commit = about.get("git_commit")
        changed = " with uncommitted changes" if about.get("git_dirty") is True else ""
        parts = (f"{commit}{changed}" if commit else "", listed, *(about.get(k) for k in ("device", "threads", "host")))
        count[tuple(shown("not recorded" if part in (None, "") else part) for part in parts)] += 1
    rows = [[*about, number] for about, number in sorted(count.items())]
    columns = ("git commit", "versions", "device", "threads", "host", "runs")
    return Table("versions", columns, rows, "Code, versions and machines recorded by the runs")
