"""Judge the claims, and regenerate the pages of results/: ``python scripts/results.py [--check]``.

results/*/report.md: a report states the command that made it; the command is run again in the report's folder. Runs
without a report get one. results/README.md and claims.csv: the claims of claims.yaml with their verdicts.
results/NAME/NAME.svg: a picture of each experiment, shown at the top of its report.
"""

import argparse
import contextlib
import io
import shlex
import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

from sibp.analysis.arena import ARENA, kept, standings
from sibp.analysis.clock import KEPT, OWN_CLOCK, kept_problems
from sibp.report.__main__ import main as report
from sibp.runs.collect import collect
from sibp.runs.packed import PACKED
from sibp.runs.values import UsageError
from sibp.study.claims import read_claims
from sibp.study.claims_page import csv_text, judged, page
from sibp.study.criteria import Evidence
from sibp.study.experiments import read_experiments
from sibp.study.pictures import arena_picture, outline, pictures

RESULTS = Path(__file__).parents[1] / "results"
MADE_BY = "Made by: python -m sibp.report "
WORDS = f"{MADE_BY}. --out report.html --format md --clock"
FIRST = f"{WORDS} ../{KEPT}"
NOT_OUTLINED = ("auto_safe_full", "auto_safe_arena")  # step sizes, not curves
FIRST_OF = {ARENA: f"{WORDS} {OWN_CLOCK} --arena"}


def rebuild(old: Path) -> bytes:
    """Regenerate a report.

    Args:
        old: a report.md, which need not exist yet.

    Returns:
        Its new content.

    Raises:
        ValueError: the file does not state its command, or the command fails.
    """
    text = old.read_text() if old.exists() else FIRST_OF.get(old.parent.name, FIRST)
    lines = [line for line in text.splitlines() if line.startswith(MADE_BY)]
    if len(lines) != 1:
        raise ValueError(f"{old} must contain exactly one line that starts with {MADE_BY!r}")
    words = shlex.split(lines[0].removeprefix(MADE_BY))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(old.parent, copy)  # a command may write files besides report.md
        shutil.copytree((RESULTS / KEPT).parent, (copy.parent / KEPT).parent)
        with contextlib.chdir(copy), contextlib.redirect_stdout(io.StringIO()):
            if report(words) != 0:
                raise ValueError(f"the command of {old} fails: {lines[0]}")
        return (copy / old.name).read_bytes()


def outlined(folder: Path, drawn: Collection[str]) -> bytes | None:
    """The picture of an experiment's kept problems; None if its picture is drawn elsewhere, or it has no curves."""
    if folder.name in (*drawn, ARENA, *NOT_OUTLINED):
        return None
    return outline(kept_problems(collect([folder]).runs, RESULTS, folder.name))


def with_picture(report: bytes, name: str) -> bytes:
    """A report with the experiment's picture below its title."""
    title, _, rest = report.decode().partition("\n")
    return f"{title}\n\n![{name}]({name}.svg)\n{rest}".encode()


def wanted() -> Iterator[tuple[Path, bytes]]:
    """(path, content) of the generated files of results/; the claims come last and are also printed.

    Raises:
        UsageError: a claim or an experiment is invalid.
    """
    experiments = read_experiments(RESULTS / "experiments.yaml")
    evidence = Evidence(RESULTS)
    drawn = pictures(evidence, experiments)
    for name, svg in drawn.items():
        yield RESULTS / name / f"{name}.svg", svg
    if arena := kept(RESULTS):
        yield RESULTS / ARENA / f"{ARENA}.svg", arena_picture(standings(arena))
    for folder in sorted({path.relative_to(RESULTS).parts[0] for path in RESULTS.rglob(PACKED)}):
        svg = outlined(RESULTS / folder, drawn)
        if svg is not None:
            yield RESULTS / folder / f"{folder}.svg", svg
        path = RESULTS / folder / "report.md"
        shown = folder in (*drawn, ARENA) or svg is not None
        yield path, with_picture(rebuild(path), folder) if shown else rebuild(path)
    found = judged(read_claims(RESULTS / "claims.yaml", experiments), evidence)
    yield RESULTS / "claims.csv", csv_text(found).encode()
    yield RESULTS / "README.md", page(found, experiments, RESULTS, list(drawn)).encode()
    for number, each in enumerate(found, start=1):
        print(f"{number}. {each.claim.claim} {each.tally().replace('*', '')}.")


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 0 all files are up to date, 1 with ``--check`` if a file differs from the runs, 2 wrong input.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args().check
    different = 0
    try:
        for path, new in wanted():
            if path.exists() and path.read_bytes() == new:
                print(f"unchanged  {path.relative_to(RESULTS)}")
                continue
            different += 1
            print(f"{'differs' if check else 'written'}    {path.relative_to(RESULTS)}", flush=True)
            if not check:
                path.write_bytes(new)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
