"""The report's tables."""

from collections import Counter
from collections.abc import Callable, Sequence

from sibp.analysis.comparison import Method, Problem, Setting
from sibp.analysis.outcomes import (
    BEST_LOSS,
    FINAL_LOSS,
    TEST_ACC,
    Quantity,
    final,
    median_over,
    over_runs,
    seconds_per_step,
    to_target,
    training_seconds,
)
from sibp.analysis.scoring import ratio
from sibp.analysis.statistics import estimate
from sibp.report.blocks import Cell, Table
from sibp.runs.reading import Run
from sibp.runs.values import shown

STATUSES = ("completed", "diverged", "failed", "unfinished")


def summary_table(problem: Problem) -> Table:
    """One row per method at its chosen setting."""
    quantities = FINAL_LOSS, BEST_LOSS, *problem.quantities
    rows = [
        {"method": method.name, "setting": method.label, **_results(method.runs, quantities, problem)}
        for method in problem.methods
    ]
    return Table.of("summary", rows, "Medians over seeds with 95 % bootstrap intervals")


def settings_table(problem: Problem) -> Table:
    """One row per setting, without test metrics, which are shown for chosen settings only."""
    quantities = FINAL_LOSS, BEST_LOSS, *problem.quantities[:2]
    rows: list[dict[str, Cell]] = []
    for method in problem.methods:
        for setting in method.settings:
            mark = "chosen" if setting is method.chosen else ""
            head = {"method": method.name, "setting": setting.label, "chosen": mark}
            rows.append(head | _results(setting.runs, quantities, problem))
    return Table.of("settings", rows, "Every setting tried, over all its seeds (no test metrics)", folded=True)


def _results(runs: Sequence[Run], quantities: Sequence[Quantity], problem: Problem) -> dict[str, Cell]:
    """``{heading: cell}`` for the runs of a setting."""
    count = Counter(run.status for run in runs)
    step, sgd = median_over(runs, seconds_per_step), problem.by_name.get("sgd")
    found: dict[str, Cell] = {"seeds": len(runs) - count["unfinished"]}
    found |= {quantity.title: over_runs(runs, quantity.of) for quantity in quantities}
    found["seconds"] = over_runs([run for run in runs if run.status == "completed"], training_seconds)
    found["ms per step"] = None if step is None else 1000 * step
    found["step cost against SGD"] = ratio(step, sgd and sgd.step_seconds())
    for target in problem.targets:
        costs = [cost for run in runs if (cost := to_target(run, target))]
        for i, unit in enumerate(("steps", "seconds")):
            found[f"{unit} to {target.title}"] = estimate([cost[i] for cost in costs])
    return found | {status: count[status] for status in STATUSES}


def budget_table(problem: Problem) -> Table:
    """Each method's budget: settings, runs, seconds, grids."""
    rows: list[dict[str, Cell]] = []
    for method in problem.methods:
        runs = method.all_runs
        count = Counter(run.status for run in runs)
        grids = {key: method.grid(key) for setting in method.settings for key in setting.hyper_parameters}
        tuned = {key: ", ".join(map("{:g}".format, grid)) for key, grid in sorted(grids.items()) if len(grid) > 1}
        tried = "; ".join(f"{shown(key)}: {values}" for key, values in tuned.items())
        row: dict[str, Cell] = {"method": method.name, "settings tried": len(method.settings), "runs": len(runs)}
        row |= {status: count[status] for status in STATUSES}
        row["total training seconds"] = float(sum(map(training_seconds, runs)))
        rows.append(row | {"values tried": tried or "one setting"})
    return Table.of("budget", rows, "Each method's budget")


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
    "folder": lambda p, m, s, r: r.path,
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
