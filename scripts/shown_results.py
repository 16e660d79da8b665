"""Write what README.md and docs/ show of results/ anew: ``python scripts/shown_results.py [--check]``.

A table stands between the lines <!-- results/NAME: TABLE --> and <!-- end of table -->; without NAME it is about all
results. The picture is docs/images/mnist_mlp.svg.
"""

import argparse
import io
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure as Canvas

from sibp.report.blocks import Figure, Table
from sibp.report.collect import collect
from sibp.report.comparison import Method, Problem, Setting, compare
from sibp.report.curves import curves
from sibp.report.markdown import lines_of_table
from sibp.report.outcomes import FINAL_LOSS, FINAL_VAL, TEST_ACC, over_runs
from sibp.report.plotly_figures import GRID, colours
from sibp.report.reading import Run
from sibp.report.text import cell_text
from sibp.report.verdicts import verdicts

ROOT = Path(__file__).resolve().parents[1]
PICTURE = ROOT / "docs" / "images" / "mnist_mlp.svg"
PLACE = re.compile(
    r"(?P<begin><!-- results/(?P<name>\w*): (?P<table>.+?) -->\n).*?(?P<end><!-- end of table -->)", re.DOTALL
)


@cache
def problem(name: str) -> Problem:
    """The kept runs of results/NAME, compared.

    Args:
        name: of the folder; it holds one problem.
    """
    (found,) = compare(collect([ROOT / "results" / name]).runs, None, None)
    return found


def all_results() -> str:
    """A row for every folder that says something about itself, linked from docs/."""
    rows = []
    for folder in sorted(path for path in (ROOT / "results").iterdir() if path.is_dir()):
        pages = [folder / name for name in ("README.md", "report.md", "tuning.md") if (folder / name).exists()]
        if pages:
            title = pages[0].read_text().splitlines()[0].removeprefix("# ")
            links = [f"[{page.stem.lower()}](../{page.relative_to(ROOT).as_posix()})" for page in pages]
            rows.append([f"`{folder.name}`", title, ", ".join(links)])
    return lines_of_table(["results/", "holds", "pages"], rows)


def comparison(problem: Problem) -> str:
    """A row a method: medians with intervals, and its verdicts against SGD."""
    duels = next(block for block in verdicts(problem) if isinstance(block, Table))
    against_sgd = {(quantity, method): word for quantity, method, word, other, *_ in duels.rows if other == "sgd"}
    rows = []
    for method in problem.methods:
        step = method.step_seconds()
        rows.append([
            method.name,
            method.chosen.label if method.chosen else None,
            over_runs(method.runs, TEST_ACC.of),
            over_runs(method.runs, FINAL_LOSS.of),
            against_sgd.get((FINAL_LOSS.title, method.name)),
            against_sgd.get(("train loss after the same seconds", method.name)),
            None if step is None else f"{1000 * step:.1f}",
        ])  # fmt: skip
    columns = ("method", "setting", "test accuracy", "training loss", "same steps", "same seconds", "ms a step")
    return lines_of_table(columns, [[cell_text(cell) for cell in row] for row in rows])


def grid(problem: Problem, name: str, of: Callable[[Run], float | None], form: str) -> str:
    """A figure of the tuning runs for every lr and prox_weight that a method was tuned over; the chosen one is bold."""
    method = next(method for method in problem.methods if method.name == name)
    weights, steps = method.grid("prox_weight"), method.grid("lr")
    cells = {(s.numbers["lr"], s.numbers["prox_weight"]): _tuned(s, method, of, form) for s in method.settings}
    rows = [[f"**lr {_short(lr)}**", *(cells.get((lr, weight), "") for weight in weights)] for lr in steps]
    return lines_of_table([name, *(f"prox_weight {_short(weight)}" for weight in weights)], rows)


def _tuned(setting: Setting, method: Method, of: Callable[[Run], float | None], form: str) -> str:
    """Over the tuning runs alone: the final ones have other seeds."""
    found = over_runs([run for run in setting.runs if run not in method.runs], of)
    text = "–" if found is None else format(found.median, form)
    return f"**{text}**" if setting is method.chosen else text


def change(run: Run) -> float:
    """How far a step moves weights: ||W' - W|| / ||W||, the median over logged steps, of the layer that moves most."""
    return max(float(np.median(layer["relative_change"][1])) for layer in run.solver.values())


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def table(name: str, title: str) -> str:
    """The table of a title, of results/NAME or, without a name, of all."""
    return TABLES[title](problem(name)) if name else all_results()


TABLES: dict[str, Callable[[Problem], str]] = {
    "comparison": comparison,
    "accuracy of cg:3": lambda problem: grid(problem, "sibp cg:3", FINAL_VAL.of, ".4f"),
    "accuracy of exact": lambda problem: grid(problem, "sibp exact", FINAL_VAL.of, ".4f"),
    "change of cg:3": lambda problem: grid(problem, "sibp cg:3", change, ".1%"),
}


def filled(page: str) -> str:
    """A page with its tables made anew.

    Args:
        page: Markdown.
    """
    return PLACE.sub(lambda m: m["begin"] + table(m["name"], m["table"]) + m["end"], page)


def picture(problem: Problem) -> bytes:
    """Training loss against steps and against seconds, as SVG: always the same bytes for the same runs."""
    figures = [block for block in curves(problem, "") if isinstance(block, Figure) and "train-loss" in block.name]
    colour = colours(figures)
    with rc_context({"svg.hashsalt": "sibp", "font.size": 9, "text.usetex": False}):
        canvas = Canvas(figsize=(9, 4), layout="constrained")
        for axes, figure in zip(canvas.subplots(1, 2, sharey=True), figures, strict=True):
            for line in (line for line in figure.lines if line.named):
                low, high = line.low, line.high
                axes.plot(line.x, line.y, color=colour[line.group], label=line.label)
                if low is not None and high is not None:
                    axes.fill_between(line.x, low, high, color=colour[line.group], alpha=0.16, lw=0)
            axes.set(xlabel=figure.x_title, yscale="log")
            axes.grid(color=GRID, which="both", lw=0.5)
        canvas.axes[0].set_ylabel("training loss")
        canvas.legend(*canvas.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
        file = io.BytesIO()
        canvas.savefig(file, format="svg", metadata={"Date": None, "Creator": None})
    return file.getvalue()


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 0 all is as it should be, 1 with ``--check`` if something differs from the runs.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if something differs")
    check = parser.parse_args().check
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    wanted = {page: filled(page.read_text()).encode() for page in pages if PLACE.search(page.read_text())}
    wanted[PICTURE] = picture(problem("mnist_mlp"))
    different = [path for path, content in wanted.items() if not path.exists() or path.read_bytes() != content]
    for path in different:
        print(f"{'differs' if check else 'written'}    {path.relative_to(ROOT)}")
        if not check:
            path.write_bytes(wanted[path])
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
