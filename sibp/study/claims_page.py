"""results/README.md and claims.csv: every claim with its verdict; the text is in page.md."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sibp.analysis.clock import Timed
from sibp.analysis.scoring import Verdict
from sibp.analysis.statistics import INTERVAL_RULE, Estimate, holm
from sibp.report.cells import cell_text, seeds_text
from sibp.report.markdown import lines_of_table, table_of
from sibp.report.templates import templates
from sibp.study.claims import Better, Claim, Criterion, Every, judge
from sibp.study.criteria import Evidence, Finding, find
from sibp.study.experiments import Experiment, is_kept

HOLDS = {True: "**yes**", False: "no", None: "open"}
SIGNIFICANT = 0.05
BY_THE_CLOCK = "by the clock: break-even, measured"


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
    duels = [(finding, finding.criterion, p) for finding, p in _corrected(findings)]
    bounds, still_open = [], {}
    for finding in findings:
        if isinstance(finding.criterion, Every) and finding.mine is not None:
            bounds.append((finding, finding.criterion))
        elif finding.mine is None:
            still_open.setdefault(finding.why, []).append(f"{_text(finding.criterion)} of {finding.criterion.place}")
    lists = "".join(f"- open, {why}: {'; '.join(texts)}.\n" for why, texts in still_open.items())
    return "\n".join(part for part in (table_of(DUEL, duels), table_of(BOUND, bounds), lists) if part)


def _corrected(findings: Sequence[Finding]) -> list[tuple[Finding, float]]:
    """The findings with values of two methods, each with its Holm-corrected p-value after equal steps."""
    compared = [(each, each.verdict.sign_p) for each in findings if each.verdict and each.mine is not None]
    corrected = holm([p for _, p in compared])
    return [(each, p) for (each, _), p in zip(compared, corrected, strict=True)]


def _word(found: Verdict | None) -> str:
    return seeds_text(found) if found else "–"


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


DUEL: dict[str, Callable[[Finding, Better, float], str]] = {  # column -> cell
    "holds": lambda finding, criterion, p: HOLDS[finding.holds],
    "method": lambda finding, criterion, p: criterion.method,
    "against": lambda finding, criterion, p: criterion.other,
    "in": lambda finding, criterion, p: _quantity(criterion),
    "of": lambda finding, criterion, p: criterion.place,
    "method has": lambda finding, criterion, p: cell_text(finding.mine),
    "other has": lambda finding, criterion, p: cell_text(finding.other),
    "difference": lambda finding, criterion, p: cell_text(finding.verdict and finding.verdict.difference),
    "same steps": lambda finding, criterion, p: _word(finding.verdict),
    "same seconds": lambda finding, criterion, p: _word(finding.after_seconds),
    BY_THE_CLOCK: lambda finding, criterion, p: by_the_clock(finding.clock),
    "p by Holm": lambda finding, criterion, p: f"{p:.3g}",
}
BOUND: dict[str, Callable[[Finding, Every], str]] = {
    "holds": lambda finding, _: HOLDS[finding.holds],
    "in all rows of": lambda _, criterion: criterion.key,
    "of": lambda _, criterion: criterion.place,
    "must be": lambda _, criterion: _bound(criterion),
    "rows that are": lambda finding, _: finding.why,
    "worst": lambda finding, _: cell_text(finding.mine),
}


def csv_text(found: Sequence[Judged]) -> str:
    """One row per criterion, with full precision."""
    rows = [
        {"claim": each.claim.name, "counts": counts, **_csv_row(finding)}
        for each in found
        for counts, findings in (("yes", each.findings), ("first wording", each.first), ("no", each.beside))
        for finding in findings
    ]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return file.getvalue()


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
