"""The contribution of each part of a semi-implicit step: ablations, each method against one without a single part."""

from collections.abc import Callable
from functools import partial

from sibp.analysis.duels import by_seed
from sibp.analysis.outcomes import FINAL_LOSS, FINAL_VAL, TEST_ACC, Quantity
from sibp.analysis.scoring import verdict
from sibp.analysis.statistics import estimate
from sibp.report.cells import cell_text, seeds_text
from sibp.report.markdown import lines_of_table
from sibp.study.criteria import Evidence, OpenError

QUANTITIES = {"training loss": FINAL_LOSS, "validation accuracy": FINAL_VAL, "test accuracy": TEST_ACC}
# Error signals through the old weights, through the new ones.
LINEAR, INSIDE = ("proxbp exact", "sibp exact"), ("sibp cg:3 old", "sibp cg:3")
# Input of an optimizer: the gradient, ProxBP's direction, the semi-implicit direction.
DIRECTIONS = {
    "none; SGD with momentum": ("sgd", "proxbp exact", "sibp cg:3"),
    "Nesterov momentum": ("nesterov", "proxbp_momentum exact", "sibp_momentum cg:3"),
    "Adam": ("adam", "proxbp_adam exact", "sibp_adam cg:3"),
    "Muon": ("muon", "proxbp_muon exact", "sibp_muon cg:3"),
}
MUON = "_muon"  # suffix of an experiment's name: its methods with Muon


def tables(evidence: Evidence) -> dict[str, Callable[[str], str]]:
    """Title -> function that makes the table of an experiment."""
    return {
        f"{title} by {words}": partial(_table, make, evidence, quantity)
        for title, make in (("2 x 2", two_by_two), ("directions", directions))
        for words, quantity in QUANTITIES.items()
    }


def _table(make: Callable[["Ablation"], str], evidence: Evidence, quantity: Quantity, place: str) -> str:
    return make(Ablation(evidence, place, quantity))


class Ablation:
    """The kept methods of an experiment, compared by one quantity."""

    def __init__(self, evidence: Evidence, place: str, quantity: Quantity) -> None:
        self.evidence, self.place, self.quantity = evidence, place, quantity

    def values(self, name: str) -> dict[int, float]:
        """``{seed: value}`` of a method.

        Raises:
            OpenError: it has no kept runs.
        """
        place = self.place + MUON * ("muon" in name)
        return by_seed(self.evidence.method(place, name), self.quantity)

    def cell(self, name: str) -> str:
        """The median over seeds with its interval."""
        return cell_text(estimate(list(self.values(name).values())))

    def said(self, name: str, other: str) -> str:
        """One method against another, paired by seed, such as ``better, 18 of 20 seeds``."""
        return seeds_text(verdict(self.values(name), self.values(other), self.quantity.larger_is_better))


def two_by_two(of: Ablation) -> str:
    """{linear, activation inside} x {old weights, new}, and each half with and without the other."""
    rows = [
        [title, of.cell(old), of.cell(new), of.said(new, old)]
        for title, (old, new) in (("linear", LINEAR), ("activation inside", INSIDE))
    ]
    halves = [of.said(inside, linear) for inside, linear in zip(INSIDE, LINEAR, strict=True)]
    columns = ("subproblem", "through the old weights", "through the new weights", "new, against old")
    return lines_of_table(columns, [*rows, ["inside, against linear", *halves, ""]])


def directions(of: Ablation) -> str:
    """Each optimizer on the proximal directions, compared with the same one on the gradient."""
    rows = []
    for title, (plain, prox, semi) in DIRECTIONS.items():
        try:
            against_prox = f"{of.said(semi, plain)}; against ProxBP's {of.said(semi, prox)}"
            cells = [of.cell(plain), f"{of.cell(prox)}: {of.said(prox, plain)}", f"{of.cell(semi)}: {against_prox}"]
        except OpenError:
            if title != "Muon":
                raise
            cells = ["not run"] * 3
        rows.append([title, *cells])
    return lines_of_table(("optimizer", "on the gradient", "on ProxBP's direction", "on that of `sibp cg:3`"), rows)
