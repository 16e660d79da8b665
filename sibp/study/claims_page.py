"""Every claim with what was run, what was found and the verdict, as Markdown and as CSV."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from sibp.analysis.scoring import Verdict
from sibp.analysis.statistics import INTERVAL_RULE, Estimate, holm
from sibp.report.markdown import lines_of_table
from sibp.report.text import cell_text
from sibp.study import claims as rules
from sibp.study.claims import Better, Claim, Criterion, Every, judge
from sibp.study.criteria import FAILS, HOLDS, OPEN, Evidence, Finding, find
from sibp.study.experiments import Experiment, is_kept

COLUMNS = (
    "holds",
    "method",
    "against",
    "in",
    "of",
    "method has",
    "other has",
    "difference",
    "same steps",
    "same seconds",
    "p by Holm",
)
SIGNIFICANT = 0.05
EVERY_COLUMNS = ("holds", "in all rows of", "of", "must be", "rows that are", "furthest")


@dataclass(frozen=True)
class Judged:
    """A claim with what the kept runs say about it."""

    claim: Claim
    findings: Sequence[Finding]
    beside: Sequence[Finding]
    first: Sequence[Finding] = ()

    @property
    def verdict(self) -> str:
        """By its criteria."""
        return judge([finding.holds for finding in self.findings])

    @property
    def per_second(self) -> str | None:
        """By its criteria after equal seconds; None if none can be asked so."""
        asked = [finding for finding in self.findings if _has_seconds(finding)]
        return judge([finding.holds_per_second for finding in asked]) if asked else None

    def tally(self, per_second: bool = False) -> str:
        """The verdict and how many criteria hold, such as ``partly: 3 of 6 hold, 2 open``."""
        word = self.per_second if per_second else self.verdict
        if word is None:
            return "–"
        found = [f.holds_per_second for f in self.findings if _has_seconds(f)] if per_second else None
        return _tally(word, found if found is not None else [finding.holds for finding in self.findings])


def _tally(word: str, holds: Sequence[bool | None]) -> str:
    waiting = f", {holds.count(None)} open" if None in holds else ""
    return f"**{word}**: {holds.count(True)} of {len(holds)} hold{waiting}"


def _has_seconds(finding: Finding) -> bool:
    """Whether its criterion can be asked after equal seconds too, be it open now or not."""
    criterion = finding.criterion
    timed = isinstance(criterion, Better) and criterion.quantity in rules.TIMED and criterion.relative_to is None
    return timed if finding.holds is None else finding.after_seconds is not None


def judged(claims: Sequence[Claim], evidence: Evidence) -> list[Judged]:
    """Judge all claims.

    Args:
        claims: the claims.
        evidence: what is kept.

    Returns:
        Each with its findings.
    """

    def found(criteria: Sequence[Criterion]) -> list[Finding]:
        return [find(criterion, evidence) for criterion in criteria]

    return [Judged(c, found(c.criteria), found(c.beside), found(c.first.criteria if c.first else ())) for c in claims]


def verdict_table(found: Sequence[Judged]) -> str:
    """A row a claim.

    Args:
        found: the claims.

    Returns:
        Markdown.
    """
    rows = [[str(i), each.claim.claim, each.tally(), each.tally(per_second=True)] for i, each in enumerate(found, 1)]
    return lines_of_table(("", "claim", "verdict, step by step", "second by second"), rows)


def page(found: Sequence[Judged], experiments: Mapping[str, Experiment], results: Path, pictures: Sequence[str]) -> str:
    """Write results/README.md.

    Args:
        found: the claims.
        experiments: all of them, kept or not.
        results: where evidence is kept.
        pictures: experiments that have one, NAME/NAME.svg.

    Returns:
        Markdown.
    """
    paragraphs = [" ".join(text.split()) for text in (rules.__doc__ or "").split("\n\n")[1:]]
    parts = [
        "# The paper's claims, tried",
        "What Liu and Zhang's [Semi-Implicit Back Propagation](https://arxiv.org/abs/2002.03516) claims, and what "
        "came of it here. Written by `make results` from the runs kept in this folder; "
        "`python scripts/reproduce.py` runs whatever is not kept yet. What it means, in plain words: "
        "[findings](../docs/summary.md).",
        verdict_table(found),
        "## How a verdict is reached",
        "The claims and their criteria are data: [claims.yaml](claims.yaml). Methods, settings and seeds are compared "
        "by [the rules of the report](../docs/tuning.md). All outcomes are in [claims.csv](claims.csv). "
        "`python scripts/recompute_verdicts.py` recomputes each from the raw rows with none of the report's code.",
        *paragraphs,
        INTERVAL_RULE,
    ]
    for i, each in enumerate(found, start=1):
        parts += _claim_parts(i, each, experiments, results, pictures)
    parts += ["## All experiments", _experiments_table(experiments, results)]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def _claim_parts(
    number: int, each: Judged, experiments: Mapping[str, Experiment], results: Path, pictures: Sequence[str]
) -> list[str]:
    claim, tried = each.claim, each.claim.experiments()
    second = f"; second by second {each.tally(per_second=True)}" if each.per_second else ""
    return [
        f"## {number}. {claim.claim}",
        f"Verdict {each.tally()}{second}.{_significance(each)}",
        f"**The paper states:** {claim.states}",
        *([f"**How it is tried:** {claim.note}"] if claim.note else []),
        "**Run:**",
        "\n".join(_run_line(experiments[name], results) for name in tried),
        "**Found:**",
        *_tables(each.findings),
        *[f"![{experiments[name].asks}]({name}/{name}.svg)" for name in tried if name in pictures],
        *_first_wording(each),
        *(["**Beside it**, looked at in the same way and not counted:", *_tables(each.beside)] if each.beside else []),
    ]


def _significance(each: Judged) -> str:
    """How many of the criteria that hold are left after a correction for their number."""
    compared = [finding for finding in each.findings if finding.verdict]
    if not compared:
        return ""
    pairs = zip(compared, corrected(compared), strict=True)
    left = sum(finding.holds is True and p < SIGNIFICANT for finding, p in pairs)
    return f" {left} of them by a sign test at {SIGNIFICANT:g}, corrected by Holm for {len(compared)} comparisons."


def _first_wording(each: Judged) -> list[str]:
    """The criteria that were there before, and what they come to."""
    first = each.claim.first
    if first is None:
        return []
    outcome = _tally(judge([finding.holds for finding in each.first]), [finding.holds for finding in each.first])
    about = f"**As first written**, on {first.written}, and changed on {first.changed}: {first.why}"
    return [f"{about} By the first wording: {outcome}.", *_tables(each.first)]


def _run_line(experiment: Experiment, results: Path) -> str:
    name = _linked(experiment.name, results)
    state = "" if is_kept(experiment.name, results) else " **Not run yet.**"
    note = f" {experiment.note}" if experiment.note else ""
    return f"- {name}: {experiment.asks} `{experiment.command}`, about {experiment.minutes:g} minutes.{state}{note}"


def _linked(place: str, results: Path) -> str:
    """An experiment's name, linked to what says most about it."""
    name = place.partition("/")[0]
    return f"[{place}]({name}/report.md)" if (results / name / "report.md").exists() else place


def _tables(findings: Sequence[Finding]) -> list[str]:
    """One table for comparisons, one for bounds, one for what is open."""
    known = [finding for finding in findings if finding.mine is not None]
    compared = [(finding, finding.criterion) for finding in known if isinstance(finding.criterion, Better)]
    chances = corrected([finding for finding, _ in compared])
    duels = [[*_duel_row(*pair), f"{p:.3g}"] for pair, p in zip(compared, chances, strict=True)]
    bounds = [_bound_row(finding, finding.criterion) for finding in known if isinstance(finding.criterion, Every)]
    waiting: dict[str, list[str]] = {}
    for finding in findings:
        if finding.mine is None:
            waiting.setdefault(finding.why, []).append(f"{_said(finding.criterion)} of {finding.criterion.place}")
    lists = "\n".join(f"- {OPEN}, {why}: {'; '.join(said)}." for why, said in waiting.items())
    tables = [lines_of_table(columns, rows) for columns, rows in ((COLUMNS, duels), (EVERY_COLUMNS, bounds)) if rows]
    return [*tables, *([lists] if lists else [])]


def corrected(findings: Sequence[Finding]) -> list[float]:
    """The sign tests of one family of comparisons, step by step, corrected for their number.

    Args:
        findings: those of a claim that have a verdict.

    Returns:
        A probability for each, by Holm's correction.
    """
    return holm([finding.verdict.sign_p if finding.verdict else 1.0 for finding in findings])


def _duel_row(finding: Finding, criterion: Better) -> list[str]:
    found = finding.verdict
    return [
        _mark(finding.holds),
        criterion.method,
        criterion.other,
        _quantity(criterion),
        criterion.place,
        cell_text(finding.mine),
        cell_text(finding.other),
        cell_text(found.difference if found else None),
        _word(found),
        _word(finding.after_seconds),
    ]


def _bound_row(finding: Finding, criterion: Every) -> list[str]:
    side = f"{'below' if criterion.below else 'above'} {criterion.bound:g}"
    worst = cell_text(finding.mine)
    return [_mark(finding.holds), criterion.key, criterion.place, side, finding.why, worst]


def _mark(holds: bool | None) -> str:
    return OPEN if holds is None else f"**{HOLDS}**" if holds else FAILS


def _word(found: Verdict | None) -> str:
    if found is None:
        return "–"
    return f"{found.word}, {found.wins} of {found.wins + found.ties + found.losses} seeds"


def _quantity(criterion: Better) -> str:
    at = ", ".join(f"{key} {value:g}" for key, value in criterion.at.items())
    relative = f", relative to {criterion.relative_to}" if criterion.relative_to else ""
    return f"{criterion.quantity}{f' at {at}' if at else ''}{relative}"


def _said(criterion: Criterion) -> str:
    if isinstance(criterion, Every):
        return f"every {criterion.key} {'below' if criterion.below else 'above'} {criterion.bound:g}"
    return f"{criterion.method} better than {criterion.other} in {_quantity(criterion)}"


def _experiments_table(experiments: Mapping[str, Experiment], results: Path) -> str:
    rows = [
        [
            _linked(each.name, results),
            each.asks,
            f"{each.minutes:g}",
            "yes" if is_kept(each.name, results) else f"no: `{each.command}`",
        ]
        for each in experiments.values()
    ]
    total = sum(each.minutes for each in experiments.values() if not each.is_full) / 60
    return (
        f"Minutes are those expected on one CPU thread with a core of its own (on a GPU for `*_full`): about "
        f"{total:.0f} hours without `*_full`.\n\n"
    ) + lines_of_table(("experiment", "asks", "minutes", "kept"), rows)


def csv_text(found: Sequence[Judged]) -> str:
    """All outcomes with full precision.

    Args:
        found: the claims.

    Returns:
        CSV, a row a criterion.
    """
    file = io.StringIO()
    columns = ["claim", "counts", "holds", "criterion", "of", "outcome"]
    columns += [f"{whose}{part}" for whose in ("method", "other", "difference") for part in ("", " low", " high")]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*columns, "same seconds"])
    for each in found:
        for counts, findings in (("yes", each.findings), ("first wording", each.first), ("no", each.beside)):
            for finding in findings:
                difference = finding.verdict.difference if finding.verdict else None
                numbers = [n for cell in (finding.mine, finding.other, difference) for n in _numbers(cell)]
                about = [_said(finding.criterion), finding.criterion.place, finding.why]
                seconds = finding.after_seconds.word if finding.after_seconds else ""
                holds = _mark(finding.holds).strip("*")
                writer.writerow([each.claim.name, counts, holds, *about, *numbers, seconds])
    return file.getvalue()


def _numbers(cell: Estimate | float | None) -> list[str]:
    if not isinstance(cell, Estimate):
        return ["" if cell is None else repr(cell), "", ""]
    return ["" if number is None else repr(number) for number in (cell.median, cell.low, cell.high)]
