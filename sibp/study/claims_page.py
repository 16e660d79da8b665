"""results/README.md and claims.csv: every claim with its verdict; the text is in page.md."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sibp.analysis.clock import Timed
from sibp.analysis.statistics import INTERVAL_RULE, Estimate, holm
from sibp.report.cells import cell_text, seeds_text
from sibp.report.exports import lines_of_csv
from sibp.report.markdown import lines_of_table
from sibp.report.templates import templates
from sibp.study.claims import Better, Claim, Criterion, Every, judge
from sibp.study.criteria import Evidence, Finding, find
from sibp.study.experiments import Experiment, is_kept

HOLDS = {True: "**yes**", False: "no", None: "open"}
SIGNIFICANT = 0.05
BY_THE_CLOCK = "by the clock: break-even, measured"
DUEL = ("holds", "method", "against", "in", "of", "method has", "other has", "difference", "same steps", "same seconds")
DUEL += (BY_THE_CLOCK, "p by Holm")
BOUND = ("holds", "in all rows of", "of", "must be", "rows that are", "worst")


@dataclass(frozen=True)
class Judged:
    """A claim with its findings."""

    claim: Claim
    findings: Sequence[Finding]
    beside: Sequence[Finding]
    first: Sequence[Finding]

    def tally(self, per_second: bool = False) -> str:
        """The verdict after equal steps or seconds, such as ``**partly**: 3 of 6 hold, 2 open``, or ``–``."""
        if per_second:
            return _tally([finding.holds_per_second for finding in self.findings if finding.criterion.timed])
        return _tally([finding.holds for finding in self.findings])


def _tally(holds: Sequence[bool | None]) -> str:
    still_open = f", {holds.count(None)} open" if None in holds else ""
    return f"**{judge(holds)}**: {holds.count(True)} of {len(holds)} hold{still_open}" if holds else "–"


def judged(claims: Sequence[Claim], evidence: Evidence) -> list[Judged]:
    """Judge all claims."""

    def found(criteria: Sequence[Criterion]) -> list[Finding]:
        return [find(criterion, evidence) for criterion in criteria]

    return [Judged(c, found(c.criteria), found(c.beside), found(c.first.criteria if c.first else ())) for c in claims]


def verdict_table(found: Sequence[Judged]) -> str:
    """One row per claim, as Markdown."""
    rows = [[f"{i}. {each.claim.claim}", each.tally(), each.tally(per_second=True)] for i, each in enumerate(found, 1)]
    return lines_of_table(("claim", "verdict, same steps", "same seconds"), rows)


def page(found: Sequence[Judged], experiments: Mapping[str, Experiment], results: Path, pictures: Sequence[str]) -> str:
    """results/README.md; ``pictures``: names of the experiments with a picture."""
    text = templates(Path(__file__).parent, escape=False).get_template("page.md")
    return text.render(
        found=found,
        experiments=experiments,
        pictures=pictures,
        interval_rule=INTERVAL_RULE,
        is_kept=partial(is_kept, results=results),
        linked=lambda name: f"[{name}]({name}/report.md)" if (results / name / "report.md").exists() else name,
        significance=_significance,
        tables=_tables,
        tally=lambda findings: _tally([finding.holds for finding in findings]),
        verdict_table=verdict_table,
    )


def _significance(each: Judged) -> str:
    """How many criteria hold significantly after Holm's correction."""
    compared = _corrected(each.findings)
    left = sum(finding.holds is True and p < SIGNIFICANT for finding, p in compared)
    rule = f"sign test, Holm-corrected for {len(compared)} comparisons"
    return f" Significant at {SIGNIFICANT:g}: {left} ({rule})." if compared else ""


def _tables(findings: Sequence[Finding]) -> str:
    """A table of comparisons, a table of bounds, and a list of open criteria."""
    duels = [_duel(of, of.criterion, p) for of, p in _corrected(findings) if isinstance(of.criterion, Better)]
    bounds, still_open = [], {}
    for finding in findings:
        criterion, holds = finding.criterion, HOLDS[finding.holds]
        if finding.mine is None:
            still_open.setdefault(finding.why, []).append(f"{_text(criterion)} of {criterion.place}")
        elif isinstance(criterion, Every):
            row = [holds, criterion.key, criterion.place, _bound(criterion), finding.why, cell_text(finding.mine)]
            bounds.append(row)
    tables = [lines_of_table(columns, rows) for columns, rows in ((DUEL, duels), (BOUND, bounds)) if rows]
    lists = "".join(f"- open, {why}: {'; '.join(texts)}.\n" for why, texts in still_open.items())
    return "\n".join([*tables, *([lists] if lists else [])])


def _duel(of: Finding, criterion: Better, p: float) -> list[str]:
    values = (of.mine, of.other, of.verdict and of.verdict.difference)
    verdicts = [seeds_text(found) if found else "–" for found in (of.verdict, of.after_seconds)]
    what = [HOLDS[of.holds], criterion.method, criterion.other, _quantity(criterion), criterion.place]
    return [*what, *map(cell_text, values), *verdicts, by_the_clock(of.clock), f"{p:.3g}"]


def _corrected(findings: Sequence[Finding]) -> list[tuple[Finding, float]]:
    """The findings with values of two methods, each with its Holm-corrected p-value after equal steps."""
    compared = [(each, each.verdict.sign_p) for each in findings if each.verdict and each.mine is not None]
    corrected = holm([p for _, p in compared])
    return [(each, p) for (each, _), p in zip(compared, corrected, strict=True)]


def by_the_clock(found: Timed | None) -> str:
    """A verdict by the clock, with the break-even and the measured ratio."""
    if found is None:
        return "–"
    return f"{found.word}: {cell_text(found.break_even, 3)}, {cell_text(found.measured, 3)}"


def _quantity(criterion: Better) -> str:
    at = ", ".join(f"{key} {value:g}" for key, value in criterion.at.items())
    relative = f", relative to {criterion.relative_to}" if criterion.relative_to else ""
    return f"{criterion.quantity}{f' at {at}' if at else ''}{relative}"


def _bound(criterion: Every) -> str:
    return f"{'below' if criterion.below else 'above'} {criterion.bound:g}"


def _text(criterion: Criterion) -> str:
    if isinstance(criterion, Every):
        return f"every {criterion.key} {_bound(criterion)}"
    return f"{criterion.method} better than {criterion.other} in {_quantity(criterion)}"


def csv_text(found: Sequence[Judged]) -> str:
    """One row per criterion, with full precision."""
    return lines_of_csv([
        {"claim": each.claim.name, "counts": counts, **_csv_row(finding)}
        for each in found
        for counts, findings in (("yes", each.findings), ("first wording", each.first), ("no", each.beside))
        for finding in findings
    ])  # fmt: skip


def _csv_row(of: Finding) -> dict[str, str]:
    return {
        "holds": HOLDS[of.holds].strip("*"),
        "criterion": _text(of.criterion),
        "of": of.criterion.place,
        "outcome": of.why,
        **_numbers("method", of.mine),
        **_numbers("other", of.other),
        **_numbers("difference", of.verdict and of.verdict.difference),
        "same seconds": of.after_seconds.word if of.after_seconds else "",
        "by the clock": of.clock.word if of.clock else "",
        **_numbers("break-even", of.clock and of.clock.break_even),
        **_numbers("measured", of.clock and of.clock.measured),
    }


def _numbers(name: str, cell: Estimate | float | None) -> dict[str, str]:
    numbers = (cell.median, cell.low, cell.high) if isinstance(cell, Estimate) else (cell, None, None)
    return {name + part: "" if n is None else repr(n) for part, n in zip(("", " low", " high"), numbers, strict=True)}
