"""The report's tables."""

from collections import Counter
from collections.abc import Sequence

from sibp.analysis import outcomes
from sibp.analysis.comparison import Problem
from sibp.analysis.scoring import ratio
from sibp.analysis.statistics import estimate
from sibp.report.blocks import Cell, Table
from sibp.runs.reading import Run
from sibp.runs.values import shown

STATUSES = ("completed", "diverged", "failed", "unfinished")


def summary_table(problem: Problem) -> Table:
    """One row per method at its chosen setting."""
    rows = [
        {"method": method.name, "setting": method.label, **_results(problem, method.runs, problem.quantities)}
        for method in problem.methods
    ]
    return Table.of("summary", rows, "Medians over seeds with 95 % bootstrap intervals")


def settings_table(problem: Problem) -> Table:
    """One row per setting, without test metrics, which are shown for chosen settings only."""
    rows: list[dict[str, Cell]] = []
    for method in problem.methods:
        for setting in method.settings:
            mark = "chosen" if setting is method.chosen else ""
            head = {"method": method.name, "setting": setting.label, "chosen": mark}
            rows.append(head | _results(problem, setting.runs, problem.quantities[:2]))
    return Table.of("settings", rows, "Every setting tried, over all its seeds (no test metrics)", folded=True)


def _results(problem: Problem, runs: Sequence[Run], quantities: Sequence[outcomes.Quantity]) -> dict[str, Cell]:
    """``{heading: cell}`` for the runs of a setting."""
    count = Counter(run.status for run in runs)
    step, sgd = outcomes.median_over(runs, outcomes.seconds_per_step), problem.by_name.get("sgd")
    found: dict[str, Cell] = {"seeds": len(runs) - count["unfinished"]}
    for quantity in (outcomes.FINAL_LOSS, outcomes.BEST_LOSS, *quantities):
        found[quantity.title] = outcomes.over_runs(runs, quantity.of)
    found["seconds"] = outcomes.over_runs([run for run in runs if run.status == "completed"], outcomes.training_seconds)
    found["ms per step"] = None if step is None else 1000 * step
    found["step cost against SGD"] = ratio(step, sgd and sgd.step_seconds())
    for target in problem.targets:
        costs = [cost for run in runs if (cost := outcomes.to_target(run, target))]
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
        row["total training seconds"] = float(sum(map(outcomes.training_seconds, runs)))
        rows.append(row | {"values tried": tried or "one setting"})
    return Table.of("budget", rows, "Each method's budget")


def runs_table(problems: Sequence[Problem]) -> Table:
    """One row per run."""
    found = [(p, m, s, run) for p in problems for m in p.methods for s in m.settings for run in s.runs]
    rows: list[list[Cell]] = []
    for problem, method, setting, run in found:
        steps, test_acc = run.columns["step"], outcomes.TEST_ACC.of(run) if setting is method.chosen else None
        row = [problem.title, method.name, setting.label, run.seed, run.status, int(steps[-1]) if len(steps) else None]
        row += [outcomes.final(run, "train_loss"), outcomes.final(run, "val_acc"), test_acc]
        rows.append([*row, outcomes.training_seconds(run), shown(run.summary.get("reason") or ""), run.path])
    columns = ("task", "method", "setting", "seed", "status", "last step", "final train loss", "final val acc")
    columns += ("test acc", "seconds", "reason", "folder")
    return Table("runs", columns, rows, f"{len(rows)} runs, with their folders", folded=True)


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
