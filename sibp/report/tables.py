"""The report's tables."""

from collections import Counter
from collections.abc import Sequence

from sibp.analysis.comparison import Method, Problem, Setting
from sibp.analysis.outcomes import (
    BEST_LOSS,
    FINAL_LOSS,
    Quantity,
    final,
    over_runs,
    seconds_per_step,
    to_target,
    training_seconds,
)
from sibp.analysis.outcomes import test_figure as figure_on_test
from sibp.analysis.scoring import ratio
from sibp.report.blocks import Block, Cell, Link, Table
from sibp.runs.collect import Collection
from sibp.runs.identity import method_name
from sibp.runs.reading import Run
from sibp.runs.values import shown

STATUSES = ("completed", "diverged", "failed", "unfinished")
NOWHERE = None, None


def summary_table(problem: Problem) -> Table:
    """One row per method at its chosen setting."""
    quantities = (FINAL_LOSS, BEST_LOSS, *problem.quantities)
    rows = []
    for method in problem.methods:
        label = method.chosen.label if method.chosen else None
        rows.append([method.name, label, *_setting_cells(method.runs, quantities, problem)])
    columns = ("method", "setting", *_setting_columns(quantities, problem))
    return Table("summary", columns, rows, "Medians over seeds with 95 % bootstrap intervals")


def settings_table(problem: Problem) -> Table:
    """One row per setting, without test metrics: those are for chosen settings alone."""
    quantities = (FINAL_LOSS, BEST_LOSS, *problem.quantities[:2])
    rows = []
    for method in problem.methods:
        for setting in method.settings:
            mark = "chosen" if setting is method.chosen else ""
            cells = _setting_cells(setting.runs, quantities, problem)
            rows.append([method.name, setting.label, mark, *cells])
    columns = ("method", "setting", "chosen", *_setting_columns(quantities, problem))
    return Table("settings", columns, rows, "Every setting tried, over all its seeds (no test figures)", folded=True)


def _setting_columns(quantities: Sequence[Quantity], problem: Problem) -> list[str]:
    targets = [f"{unit} to {target.title}" for target in problem.targets for unit in ("steps", "seconds")]
    titles = [quantity.title for quantity in quantities]
    return ["seeds", *titles, "seconds", "ms per step", "step cost against SGD", *targets, *STATUSES]


def _setting_cells(runs: Sequence[Run], quantities: Sequence[Quantity], problem: Problem) -> list[Cell]:
    step = over_runs(runs, seconds_per_step)
    cells: list[Cell] = [sum(run.status != "unfinished" for run in runs)]
    cells += [over_runs(runs, quantity.of) for quantity in quantities]
    cells.append(over_runs([run for run in runs if run.status == "completed"], training_seconds))
    cells.append(1000 * step.median if step else None)
    cells.append(ratio(step.median if step else None, problem.sgd_step_seconds))
    for target in problem.targets:
        for i in (0, 1):
            cells.append(over_runs(runs, lambda run, target=target, i=i: (to_target(run, target) or NOWHERE)[i]))
    count = Counter(run.status for run in runs)
    return [*cells, *(count[status] for status in STATUSES)]


def budget_table(problem: Problem) -> Table:
    """What each method was given: settings, runs, seconds, grids."""
    rows: list[list[Cell]] = []
    for method in problem.methods:
        runs = method.all_runs
        tuned = {key: method.grid(key) for setting in method.settings for key in setting.numbers}
        grids = [
            f"{shown(key)}: {', '.join(f'{v:g}' for v in grid)}" for key, grid in sorted(tuned.items()) if len(grid) > 1
        ]
        count = Counter(run.status for run in runs)
        seconds = float(sum(map(training_seconds, runs)))
        cells = [len(method.settings), len(runs), *(count[status] for status in STATUSES), seconds]
        rows.append([method.name, *cells, "; ".join(grids) or "nothing varied"])
    columns = ("method", "settings tried", "runs", *STATUSES, "training seconds in all", "values tried")
    return Table("budget", columns, rows, "The budget of every method")


def runs_table(problems: Sequence[Problem]) -> Table:
    """One row per run."""
    rows = [
        _run_cells(problem, method, setting, run)
        for problem in problems
        for method in problem.methods
        for setting in method.settings
        for run in setting.runs
    ]
    columns = (
        "task",
        "method",
        "setting",
        "seed",
        "status",
        "last step",
        "final train loss",
        "final val acc",
        "test acc",
        "seconds",
        "reason",
        "folder",
    )
    return Table("runs", columns, rows, f"{len(rows)} runs, with their folders", folded=True)


def _run_cells(problem: Problem, method: Method, setting: Setting, run: Run) -> list[Cell]:
    steps = run.columns["step"]
    chosen = setting is method.chosen
    return [
        problem.title,
        method.name,
        setting.label,
        run.seed,
        run.status,
        int(steps[-1]) if len(steps) else None,
        final(run, "train_loss"),
        final(run, "val_acc"),
        figure_on_test(run, "test_acc") if chosen else None,
        training_seconds(run),
        shown(run.summary["reason"]) if run.summary.get("reason") else "",
        Link(run.path),
    ]


def broken_table(collection: Collection) -> Table:
    """The folders that could not be used, with reasons."""
    rows = [[Link(broken.path), broken.reason] for broken in collection.broken]
    return Table("broken", ("folder", "reason"), rows, "Broken runs: not part of any figure above")


def notes_table(collection: Collection, problems: Sequence[Problem]) -> list[Block]:
    """Corrections made while reading, and runs left out as repetitions, if any."""
    rows: list[list[Cell]] = [[Link(run.path), note] for run in collection.runs for note in run.notes]
    for problem in problems:
        for run, kept in problem.repeated:
            method = method_name(run.optimizer)
            rows.append([Link(run.path), f"left out: same setting and seed as {shown(kept.path.name)} ({method})"])
    return [Table("notes", ("folder", "note"), rows, "Notes")] if rows else []


def versions_table(runs: Sequence[Run]) -> Table:
    """One row for each environment that the summaries record."""
    count: Counter[tuple[str, ...]] = Counter()
    for run in runs:
        about = run.summary.get("environment")
        about = about if isinstance(about, dict) else {}
        versions = about.get("versions")
        listed = ", ".join(f"{k} {v}" for k, v in sorted(versions.items())) if isinstance(versions, dict) else ""
        commit = about.get("git_commit")
        changed = " with uncommitted changes" if about.get("git_dirty") is True else ""
        parts = (f"{commit}{changed}" if commit else "", listed, *(about.get(k) for k in ("device", "threads", "host")))
        count[tuple(shown("not recorded" if part in (None, "") else part) for part in parts)] += 1
    rows = [[*about, number] for about, number in sorted(count.items())]
    columns = ("git commit", "versions", "device", "threads", "host", "runs")
    return Table("versions", columns, rows, "Code, versions and machines as recorded by the runs")
