"""The contribution of each part of a semi-implicit step: ablations, each method against one without a single part."""

from collections.abc import Callable
from functools import partial

from sibp.analysis.comparison import Method
from sibp.analysis.duels import compared
from sibp.analysis.outcomes import FINAL_LOSS, FINAL_VAL, TEST_ACC, Quantity
from sibp.report.cells import cell_text, seeds_text
from sibp.report.markdown import lines_of_table
from sibp.study.criteria import Evidence, OpenError

QUANTITIES = {"training loss": FINAL_LOSS, "validation accuracy": FINAL_VAL, "test accuracy": TEST_ACC}
# Methods with error signals through the old weights, and through the new ones.
LINEAR, INSIDE = ("proxbp exact", "sibp exact"), ("sibp cg:3 old", "sibp cg:3")
# Optimizer -> its methods on the gradient, on ProxBP's direction and on the semi-implicit direction.
DIRECTIONS = {
    "none; SGD with momentum": ("sgd", "proxbp exact", "sibp cg:3"),
    "Nesterov momentum": ("nesterov", "proxbp_momentum exact", "sibp_momentum cg:3"),
    "Adam": ("adam", "proxbp_adam exact", "sibp_adam cg:3"),
    "Muon": ("muon", "proxbp_muon exact", "sibp_muon cg:3"),
}
MUON = "_muon"  # suffix of an experiment's name: its methods with Muon


def tables(evidence: Evidence) -> dict[str, Callable[[str], str]]:
    """``{title: function that makes the table of an experiment}``."""
    return {
        f"{title} by {words}": partial(make, evidence, quantity)
        for title, make in (("2 x 2", two_by_two), ("directions", directions))
        for words, quantity in QUANTITIES.items()
    }


def two_by_two(evidence: Evidence, quantity: Quantity, place: str) -> str:
    """{linear, activation inside} x {old weights, new weights}, with the effect of each change alone."""
    linear, inside = ([evidence.method(place, name) for name in names] for names in (LINEAR, INSIDE))
    rows = [
        [title, _median(old, quantity), _median(new, quantity), _against(new, old, quantity)]
        for title, (old, new) in (("linear", linear), ("activation inside", inside))
    ]
    halves = [_against(*pair, quantity) for pair in zip(inside, linear, strict=True)]
    columns = ("subproblem", "through the old weights", "through the new weights", "new, against old")
    return lines_of_table(columns, [*rows, ["inside, against linear", *halves, ""]])


def directions(evidence: Evidence, quantity: Quantity, place: str) -> str:
    """Each optimizer on the proximal directions, compared with the same optimizer on the gradient."""
    rows = []
    for title, names in DIRECTIONS.items():
        try:
            plain, prox, semi = (evidence.method(place + MUON * (title == "Muon"), name) for name in names)
        except OpenError:
            if title != "Muon":
                raise
            rows.append([title, *["not run"] * 3])
            continue
        of_prox, of_semi = (f"{_median(each, quantity)}: {_against(each, plain, quantity)}" for each in (prox, semi))
        against_prox = _against(semi, prox, quantity)
        rows.append([title, _median(plain, quantity), of_prox, f"{of_semi}; against ProxBP's {against_prox}"])
    return lines_of_table(("optimizer", "on the gradient", "on ProxBP's direction", "on that of `sibp cg:3`"), rows)


def _median(method: Method, quantity: Quantity) -> str:
    return cell_text(method.over_seeds(quantity))


def _against(method: Method, other: Method, quantity: Quantity) -> str:
    return seeds_text(compared(method, other, quantity))
