"""Regenerate the tables of results/ in README.md and docs/: ``python scripts/shown_results.py [--check]``.

A table stands between the lines <!-- results/NAME: TABLE --> and <!-- end of table -->; without NAME it covers all
results. For an experiment that is not kept yet, its command is shown instead. The picture is docs/images/mnist_mlp.svg.
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from sibp.analysis.arena import (
    ARENA,
    COSTS,
    GOALS,
    LEVELS,
    UNITS,
    Contest,
    Level,
    failures,
    kept,
    levels,
    scores,
    standings,
)
from sibp.analysis.clock import KEPT, OWN_CLOCK, read_clock, timed
from sibp.analysis.comparison import Method, Problem, Setting
from sibp.analysis.duels import SAME_SECONDS, compared, duels
from sibp.analysis.outcomes import FINAL_ACC, FINAL_LOSS, FINAL_VAL, TEST_ACC, Quantity, over_runs
from sibp.analysis.statistics import Estimate, estimate
from sibp.analysis.step_sizes import losses, reach, room, spread
from sibp.report.arena_page import against, outcome_table, standing_table
from sibp.report.blocks import Table
from sibp.report.cells import cell_text
from sibp.report.curves import overview
from sibp.report.markdown import lines_of_table
from sibp.report.pictures import picture
from sibp.runs.reading import Run
from sibp.study.claims import read_claims
from sibp.study.claims_page import BY_THE_CLOCK, by_the_clock, judged, verdict_table
from sibp.study.credit import tables as tables_of_credit
from sibp.study.criteria import Evidence, OpenError
from sibp.study.experiments import Experiment, provenance, read_experiments
from sibp.study.untuned import safety_table
from sibp.study.untuned import tables as tables_of_untuned

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "mnist_mlp.svg"
PLACE = re.compile(
    r"(?P<begin><!-- results/(?P<name>[\w/]*): (?P<table>.+?) -->\n).*?(?P<end><!-- end of table -->)", re.DOTALL
)
RESULTS = ROOT / "results"
EXPERIMENTS = read_experiments(RESULTS / "experiments.yaml")
EVIDENCE = Evidence(RESULTS)


def all_results() -> str:
    """One row per folder with a page, with links from docs/."""
    rows = []
    for folder in sorted(path for path in RESULTS.iterdir() if path.is_dir()):
        pages = {
            "report": folder / "report.md",
            "picture": folder / f"{folder.name}.svg",
            "about": folder / "README.md",
        }
        links = [f"[{name}](../{page.relative_to(ROOT).as_posix()})" for name, page in pages.items() if page.exists()]
        if links:
            asked = EXPERIMENTS.get(folder.name)
            title = asked.asks if asked else _title(next(page for page in pages.values() if page.exists()))
            rows.append([f"`{folder.name}`", title, ", ".join(links)])
    return lines_of_table(["results/", "asks", "pages"], rows)


def _title(page: Path) -> str:
    return page.read_text().splitlines()[0].removeprefix("# ")


def claims() -> str:
    """The claims of results/claims.yaml with their verdicts."""
    return verdict_table(judged(read_claims(RESULTS / "claims.yaml", EXPERIMENTS), EVIDENCE))


def comparison(problem: Problem) -> str:
    """One row per method: medians with intervals, the best in bold, and verdicts against SGD."""
    found = [duel for duel in duels(problem) if duel.other.name == "sgd"]
    sgd = problem.by_name.get("sgd")
    against_sgd = {(duel.quantity, duel.method.name): duel.verdict.word for duel in found}
    accuracies = _best_bold([method.over_seeds(TEST_ACC) for method in problem.methods], in_percent, max)
    losses = _best_bold([method.over_seeds(FINAL_LOSS) for method in problem.methods], short, min)
    rows = []
    for method, accuracy, loss in zip(problem.methods, accuracies, losses, strict=True):
        step = method.step_seconds()
        clock = timed(method, sgd, problem.clock) if sgd and sgd is not method else None
        rows.append([
            method.name,
            method.label,
            accuracy,
            loss,
            against_sgd.get((FINAL_LOSS.title, method.name)),
            against_sgd.get((SAME_SECONDS, method.name)),
            by_the_clock(clock),
            None if step is None else f"{1000 * step:.1f}",
        ])  # fmt: skip
    columns = ("method", "setting", "test accuracy, %", "training loss", "same steps", "same seconds")
    return lines_of_table([*columns, BY_THE_CLOCK, "ms per step"], [[cell_text(cell) for cell in row] for row in rows])


def processors(problem: Problem) -> str:
    """Verdicts by the clock against SGD, with the costs measured on each processor."""
    paths = RESULTS / KEPT, RESULTS / ARENA / OWN_CLOCK
    clocks = {json.loads(path.read_text())["machine"]["processor"]: read_clock(path, problem) for path in paths}
    sgd = problem.by_name["sgd"]
    others = [method for method in problem.methods if method is not sgd]
    rows = [
        [method.name, *(by_the_clock(timed(method, sgd, clock) if clock else None) for clock in clocks.values())]
        for method in others
    ]
    return lines_of_table(["verdict: break-even, measured", *clocks], rows)


def in_percent(share: float) -> str:
    """A share in percent, to two decimals."""
    return f"{100 * share:.2f}"


def short(value: float) -> str:
    """A value with three significant digits, or with all digits before the decimal point if there are more."""
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:#.3g}".removesuffix(".")


def percent(share: float) -> str:
    """A share in whole percent."""
    return f"{100 * share:.0f}"


def two_decimals(value: float) -> str:
    """A value to two decimals."""
    return f"{value:.2f}"


def significant(value: float) -> str:
    """A value to at most three significant digits, without trailing zeros."""
    return cell_text(value, digits=3)


def _best_bold(
    found: Sequence[Estimate | None], form: Callable[[float], str], best: Callable[[Sequence[float]], float]
) -> list[str]:
    """Medians with their intervals as text, the best median in bold."""
    medians = [each.median for each in found if each]
    winner = best(medians) if medians else None
    return [_in(each, form, bold=each is not None and each.median == winner) for each in found]


def _in(found: Estimate | None, form: Callable[[float], str], bold: bool = False) -> str:
    if found is None:
        return "–"
    middle, low, high = (
        form(value) if math.isfinite(value) else significant(value) for value in (found.median, *found.ends)
    )
    middle = f"**{middle}**" if bold else middle
    return middle if found.low is None else f"{middle} [{low}, {high}]"


def grid(problem: Problem, name: str, of: Callable[[Run], float | None], form: str) -> str:
    """A metric of the tuning runs for every lr and prox_weight that a method was tuned over, the chosen one in bold."""
    method = problem.by_name[name]
    weights, steps = method.grid("prox_weight"), method.grid("lr")
    cells = {
        (s.hyper_parameters["lr"], s.hyper_parameters["prox_weight"]): _tuned(s, method, of, form)
        for s in method.settings
    }
    rows = [[f"**lr {significant(lr)}**", *(cells.get((lr, weight), "") for weight in weights)] for lr in steps]
    return lines_of_table([name, *(f"prox_weight {significant(weight)}" for weight in weights)], rows)


def _tuned(setting: Setting, method: Method, of: Callable[[Run], float | None], form: str) -> str:
    """The median over tuning runs only: final runs have other seeds."""
    found = over_runs([run for run in setting.runs if run not in method.runs], of)
    text = "–" if found is None else format(found.median, form)
    return f"**{text}**" if setting is method.chosen else text


def change(run: Run) -> float:
    """Relative change of weights per step, ||W_new - W|| / ||W||: median over logged steps, of the fastest layer."""
    return max(float(np.median(layer["relative_change"][1])) for layer in run.solver.values())


def parts(name: str, quantity: Quantity) -> str:
    """One row per method, one column per part of an experiment: median with interval, and verdict against SGD."""
    problems = {folder: EVIDENCE.problem(f"{name}/{folder}") for folder in EXPERIMENTS[name].commands}
    names = dict.fromkeys(method.name for problem in problems.values() for method in problem.methods)
    rows = [[each, *(_beside_sgd(problem, each, quantity) for problem in problems.values())] for each in names]
    title = f"{quantity.title}, %" if quantity is TEST_ACC else quantity.title
    return lines_of_table([title, *problems], rows)


def _beside_sgd(problem: Problem, name: str, quantity: Quantity) -> str:
    method, sgd = (problem.by_name.get(each) for each in (name, "sgd"))
    found = method.over_seeds(quantity) if method else None
    text = _in(found, in_percent if quantity is TEST_ACC else short)
    return f"{text} {compared(method, sgd, quantity).word}" if method and found and sgd and method is not sgd else text


def solvers(problem: Problem) -> str:
    """The decrease of the subproblem by each solver, and the metrics of its runs."""
    rows = []
    for method in sorted(problem.methods, key=lambda each: (each.name.partition(":")[0], _iterations(each.name))):
        layers = sorted({layer for run in method.runs for layer in run.solver}, key=lambda name: (len(name), name))
        solved = [over_runs(method.runs, lambda run, layer=layer: _typical(run, layer, "decrease")) for layer in layers]
        moved = over_runs(method.runs, lambda run: change(run) if run.solver else None)
        cells = [", ".join(f"{each.median:.0%}" for each in solved if each) or "–"]
        cells.append(f"{moved.median:.2%}" if moved else "–")
        forms = ((FINAL_LOSS.of, short), (FINAL_ACC.of, in_percent), (FINAL_VAL.of, in_percent))
        metrics = [_in(over_runs(method.runs, of), form) for of, form in forms]
        step = method.step_seconds()
        rows.append([method.name, *cells, *metrics, f"{1000 * step:.1f}" if step else "–"])
    columns = (
        "method",
        "decrease of the subproblem, by layer",
        "weights move by",
        "training loss",
        "training accuracy, %",
    )
    return lines_of_table([*columns, "validation accuracy, %", "ms per step"], rows)


def _iterations(name: str) -> int:
    return int(name.partition(":")[2] or 0)


def _typical(run: Run, layer: str, statistic: str) -> float | None:
    """The median over logged steps of a metric of a layer's solver."""
    found = run.solver.get(layer, {}).get(statistic)
    return float(np.median(found[1])) if found else None


def step_range(problem: Problem) -> str:
    """Range and sensitivity of step sizes, without and with the other settings tuned."""
    rows = []
    for method in problem.methods:
        for rest, at in (("fixed", {"prox_weight": 1.0, "momentum": 0.0}), ("tuned along", {})):
            of_seeds = list(losses(method, at).values())
            cells = [estimate([of(by_lr) for by_lr in of_seeds]) for of in (least_loss, spread, reach, room)]
            rows.append([method.name, rest, *map(cell_text, cells)])
    return lines_of_table(("method", "the rest", "least loss", "range", "reach above the best", "room"), rows)


def least_loss(by_lr: Mapping[float, tuple[float, float]]) -> float:
    """The loss at the best step size."""
    return min(end for _, end in by_lr.values())


def rest(name: str) -> str:
    """Limit points over all methods and seeds: one row per problem and activation."""
    lists = {key: EVIDENCE.rows(f"{name}/limits.json", key) for key in ("tanh", "relu", "wandering", "kinks")}
    at_rest, rows = lists["tanh"] + lists["relu"], []
    for about in dict.fromkeys(_about(row) for row in (*at_rest, *lists["wandering"])):
        resting = [row for row in at_rest if _about(row) == about]
        kinks = [row for row in lists["kinks"] if (row["problem"], "relu") == about]
        others = [row for row in lists["wandering"] if _about(row) == about]
        missing = sorted({row["method"] for row in others} - {row["method"] for row in resting})
        cells = [f"{len(resting)} of {len(resting) + len(others)}", ", ".join(missing) if resting else "all"]
        values = ((resting, "gradient"), (kinks, "subgradient"), (kinks, "falls"))
        largest_of = [f"{max(row[key] for row in found):.1e}" if found else "–" for found, key in values]
        rows.append([*about, *cells, *largest_of])
    columns = ("problem", "activation", "runs at rest", "methods that never are")
    return lines_of_table([*columns, "gradient at rest, at most", "subgradient", "loss falls by"], rows)


def _about(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["problem"], row["activation"]


def standing(name: str, goal: str) -> str:
    """All methods on all problems of the arena."""
    return _marked(standing_table(standings(_contests(name)), goal))


def outcome(name: str) -> str:
    """All methods on one problem of the arena, with the target on validation data."""
    (contest,) = _contests(name)
    whole = outcome_table(contest)
    chosen = [i for i, title in enumerate(whole.columns) if not re.search("completed|SGD|train loss ≤", title)]
    rows = [[row[i] for i in chosen] for row in whole.rows]
    return _marked(replace(whole, columns=[whole.columns[i] for i in chosen], rows=rows))


def duel(name: str, mine: str, rival: str) -> str:
    """One method against another on every problem of the arena, paired by seed."""
    rows = []
    for contest in _contests(name):
        first, second = contest.entry(mine), contest.entry(rival)
        if first and second:
            rows.append([contest.problem.title, *map(cell_text, against(contest, first, second))])
    targets = [f"{unit} to the {goal} target" for goal in GOALS for unit in UNITS]
    columns = [f"{mine} against {rival}", "final validation metric", "final train loss", *targets]
    return lines_of_table(columns, rows)


def hardness(name: str, goal: str) -> str:
    """The targets of every problem, and how many methods reach each; one met at the first evaluation is marked."""
    rows = [[each.problem.title, *map(_hardness_cell, levels(each, goal))] for each in _contests(name)]
    return lines_of_table([f"{goal} target", *LEVELS], rows)


def _hardness_cell(level: Level) -> str:
    mark = ", **at the first logged row**" if level.at_first_row else ""
    return f"{level.target.value:.4g}: {level.reached} of {level.entered}{mark}"


def at_levels(name: str, goal: str) -> str:
    """Every method's score at three levels, by three costs; sorted by the score in steps at the hardest level."""
    found = scores(_contests(name), goal)
    keys = [(level, cost) for level in LEVELS for cost in COSTS]
    ordered = sorted(found, key=lambda method: [-found[method][key] for key in reversed(keys)][2::3])
    best = {key: max(of[key] for of in found.values()) for key in keys}
    rows = [[method, *(_score(found[method][key], best[key]) for key in keys)] for method in ordered]
    return lines_of_table(["method", *(f"{level}, {cost}" for level, cost in keys)], rows)


def _score(value: float, best: float) -> str:
    return f"**{two_decimals(value)}**" if value == best > 0 else two_decimals(value)


def failed(name: str) -> str:
    """Final runs that diverged or failed, by method and problem."""
    rows = [[method, problem, f"{bad} of {count}"] for method, problem, bad, count in failures(_contests(name))]
    return lines_of_table(("method", "problem", "final runs that diverged or failed"), rows)


@cache  # several tables use the same runs
def _contests(name: str) -> list[Contest]:
    if not (found := kept(RESULTS, name)):
        raise OpenError
    return found


def _marked(block: Table) -> str:
    """A table with shares in percent, other numbers with three digits, and the best of every such column in bold."""
    columns = [[row[i] for row in block.rows] for i in range(len(block.columns))]
    titles, shown = [], []
    for title, cells in zip(block.columns, columns, strict=True):
        numbers = [Estimate(cell, None, None, 1) if isinstance(cell, float) else cell for cell in cells]
        found = [cell if isinstance(cell, Estimate) else None for cell in numbers]
        form, best = next((how for start, how in SHOWN_AS.items() if title.startswith(start)), (short, min))
        titles.append(f"{title}, %" if form in (percent, in_percent) else title)
        shown.append(_best_bold(found, form, best) if any(found) else list(map(cell_text, cells)))
    return lines_of_table(titles, list(zip(*shown, strict=True)))


def drawn(name: str) -> str:
    """The picture of an experiment, for a page of docs/.

    Raises:
        OpenError: there is none yet.
    """
    if not (RESULTS / name / f"{name}.svg").exists():
        raise OpenError
    of_arena = "Scores and performance profiles of all methods, by steps and by seconds"
    asks = of_arena if name == ARENA else EXPERIMENTS[name].asks
    return f"![{asks}](../results/{name}/{name}.svg)\n"


def rounding(name: str) -> str:
    """Differences between runs caused by rounding alone, as measured by `scripts/rounding.py`."""
    record = json.loads((RESULTS / name / "rounding.json").read_text())
    rows = []
    for row in record["rows"]:
        cells = [f"{value:.0e}" for value in row["values"]]
        rows.append([row["method"], row["change"], row["of"], *["–"] * (len(record["steps"]) - len(cells)), *cells])
    steps = [f"step {step}" for step in record["steps"]]
    return lines_of_table(("method", "change", "relative difference of", *steps), rows)


def table(name: str, title: str) -> str:
    """A table about results/NAME, or about all results if ``name`` is empty; or a note that it was not run yet."""
    if not name:
        return {"all": all_results, "claims": claims, "provenance": partial(provenance, RESULTS)}[title]()
    try:
        return TABLES[title](name)
    except OpenError:
        return f"*Not run yet:* `{_experiment(name).command}`\n"


def _experiment(name: str) -> Experiment:
    """The experiment that makes results/NAME, or the first of several."""
    related = [each for each in EXPERIMENTS if each.partition("/")[0] == name.partition("/")[0]]
    return EXPERIMENTS[name if name in related else related[0]]


def of_problem(make: Callable[[Problem], str]) -> Callable[[str], str]:
    """A table of an experiment with one problem."""
    return lambda name: make(EVIDENCE.problem(name))


# Start of the title of a column of the arena's tables -> its number format, and the function that picks the best.
SHOWN_AS = {
    "place": (significant, min),
    "steps to": (significant, min),
    "score": (two_decimals, max),
    "first": (percent, max),
    "target reached": (percent, max),
    "test acc": (in_percent, max),
    "final val acc": (in_percent, max),
}
DUELS = (("sibp cg:3", "proxbp"), ("sibp muon cg:3", "muon"), ("sibp muon cg:3", "proxbp muon"))
TABLES: dict[str, Callable[[str], str]] = {
    "comparison": of_problem(comparison),
    "processors": of_problem(processors),
    "accuracy of cg:3": of_problem(lambda problem: grid(problem, "sibp cg:3", FINAL_VAL.of, ".4f")),
    "accuracy of exact": of_problem(lambda problem: grid(problem, "sibp exact", FINAL_VAL.of, ".4f")),
    "accuracy of proxbp": of_problem(lambda problem: grid(problem, "proxbp exact", FINAL_VAL.of, ".4f")),
    "change of cg:3": of_problem(lambda problem: grid(problem, "sibp cg:3", change, ".1%")),
    "solvers": of_problem(solvers),
    "step sizes": of_problem(step_range),
    "rest": rest,
    "picture": drawn,
    "rounding": rounding,
    **{f"{goal} standings": partial(standing, goal=goal) for goal in GOALS},
    **{f"{goal} targets": partial(hardness, goal=goal) for goal in GOALS},
    **{f"{goal} levels": partial(at_levels, goal=goal) for goal in GOALS},
    "failures": failed,
    **tables_of_untuned(RESULTS),
    **tables_of_credit(EVIDENCE),
    "safety": lambda name: safety_table(EVIDENCE, EXPERIMENTS[name]),
    "outcome": outcome,
    **{f"{mine} against {rival}": partial(duel, mine=mine, rival=rival) for mine, rival in DUELS},
    "training loss by part": lambda name: parts(name, FINAL_LOSS),
    "test accuracy by part": lambda name: parts(name, TEST_ACC),
}


def filled(page: str) -> str:
    """A page with regenerated tables.

    Args:
        page: Markdown.
    """
    return PLACE.sub(lambda m: m["begin"] + table(m["name"], m["table"]) + m["end"], page)


def overview_picture(problem: Problem) -> bytes:
    """Training loss against steps and seconds, and final values, as SVG: reproducible byte for byte."""
    return picture(overview(problem), "svg")


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 0 everything is up to date, 1 with ``--check`` if something differs from the runs.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something differs")
    check = parser.parse_args().check
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    wanted = {page: filled(page.read_text()).encode() for page in pages if PLACE.search(page.read_text())}
    wanted[PICTURE] = overview_picture(EVIDENCE.problem("mnist_mlp"))
    different = [path for path, content in wanted.items() if not path.exists() or path.read_bytes() != content]
    for path in different:
        print(f"{'differs' if check else 'written'}    {path.relative_to(ROOT)}")
        if not check:
            path.write_bytes(wanted[path])
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
