"""The contribution of each part of a semi-implicit step: ablations, each method against one without a single part."""

from collections.abc import Callable
from dataclasses import dataclass

from sibp.analysis.duels import by_seed
from sibp.analysis.outcomes import FINAL_LOSS, FINAL_VAL, TEST_ACC, Quantity
from sibp.analysis.scoring import verdict
from sibp.analysis.statistics import estimate
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
        f"{title} by {words}": lambda place, make=make, quantity=quantity: make(Ablation(evidence, place, quantity))
        for title, make in (("2 x 2", two_by_two), ("directions", directions))
        for words, quantity in QUANTITIES.items()
    }


@dataclass(frozen=True)
class Ablation:
    """The kept methods of an experiment, compared by one quantity."""

    evidence: Evidence
    place: str  # the experiment
    quantity: Quantity

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

    def verdict(self, name: str, other: str) -> str:
        """One method against another, paired by seed, such as ``better, 18 of 20 seeds``."""
        return seeds_text(verdict(self.values(name), self.values(other), self.quantity.larger_is_better))


def two_by_two(of: Ablation) -> str:
    """{linear, activation inside} x {old weights, new weights}, with the effect of each change alone."""
    rows = [
        [title, of.cell(old), of.cell(new), of.verdict(new, old)]
        for title, (old, new) in (("linear", LINEAR), ("activation inside", INSIDE))
    ]
    halves = [of.verdict(inside, linear) for inside, linear in zip(INSIDE, LINEAR, strict=True)]
    columns = ("subproblem", "through the old weights", "through the new weights", "new, against old")
    return lines_of_table(columns, [*rows, ["inside, against linear", *halves, ""]])


def directions(of: Ablation) -> str:
    """Each optimizer on the proximal directions, compared with the same optimizer on the gradient."""
    rows = []
    for title, (plain, prox, semi) in DIRECTIONS.items():
        try:
            against_prox = f"{of.verdict(semi, plain)}; against ProxBP's {of.verdict(semi, prox)}"
            cells = [of.cell(plain), f"{of.cell(prox)}: {of.verdict(prox, plain)}", f"{of.cell(semi)}: {against_prox}"]
        except OpenError:
            if title != "Muon":
                raise
            cells = ["not run"] * 3
        rows.append([title, *cells])
    return lines_of_table(("optimizer", "on the gradient", "on ProxBP's direction", "on that of `sibp cg:3`"), rows)
