"""Write every results/*/report.md anew from the runs kept beside it: ``python scripts/results.py [--check]``.

A report names the command that made it; that command is run again in the report's folder. Runs that have no report yet
get one.
"""

import argparse
import contextlib
import io
import shlex
import shutil
import sys
import tempfile
from pathlib import Path

from sibp.report.__main__ import main as report
from sibp.report.packed import PACKED

RESULTS = Path(__file__).parents[1] / "results"
MADE_BY = "Made by: python -m sibp.report "
FIRST = f"{MADE_BY}. --out report.html --format md"


def rebuild(old: Path) -> bytes:
    """Make a report again.

    Args:
        old: a report.md, which need not exist yet.

    Returns:
        What it should hold.

    Raises:
        ValueError: the file does not name its command, or the command fails.
    """
    text = old.read_text() if old.exists() else FIRST
    lines = [line for line in text.splitlines() if line.startswith(MADE_BY)]
    if len(lines) != 1:
        raise ValueError(f"{old} does not say how it was made: no single line starts with {MADE_BY!r}")
    words = shlex.split(lines[0].removeprefix(MADE_BY))
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        shutil.copytree(old.parent, copy)  # a command may write more than report.md
        with contextlib.chdir(copy), contextlib.redirect_stdout(io.StringIO()):
            if report(words) != 0:
                raise ValueError(f"the command of {old} fails: {lines[0]}")
        return (copy / old.name).read_bytes()


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 0 all is as it should be, 1 with ``--check`` if a report differs from its runs.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a report differs")
    check = parser.parse_args().check
    different = 0
    for folder in sorted({path.relative_to(RESULTS).parts[0] for path in RESULTS.rglob(PACKED)}):
        path = RESULTS / folder / "report.md"
        new = rebuild(path)
        if path.exists() and path.read_bytes() == new:
            print(f"unchanged  {path.relative_to(RESULTS)}")
            continue
        different += 1
        print(f"{'differs' if check else 'written'}    {path.relative_to(RESULTS)}")
        if not check:
            path.write_bytes(new)
    return 1 if check and different else 0


if __name__ == "__main__":
    sys.exit(main())
