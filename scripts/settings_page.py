"""Write the tables of docs/settings.md from the comments of configs/: ``python scripts/settings_page.py [--check]``."""

import argparse
import re
import sys
from pathlib import Path

from sibp.experiment.compose import CONFIGS
from sibp.experiment.reference import Setting, about, of_option, of_run, options
from sibp.report.markdown import lines_of_table

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
PLACE = re.compile(r"(<!-- settings of (\w+) -->\n).*?(<!-- end of settings -->)", re.DOTALL)
COLUMNS = ("setting", "default", "unit or choices", "meaning")


def filled(page: str) -> str:
    """A page with regenerated tables.

    Args:
        page: Markdown.
    """
    return PLACE.sub(lambda match: f"{match[1]}\n{tables(match[2])}\n{match[3]}", page)


def tables(what: str) -> str:
    """The table of the run's own settings (``run``), or one table per option of a group.

    Args:
        what: ``run``, or a group.
    """
    if what == "run":
        return _table("", of_run([CONFIGS]))
    parts = []
    for option in options([CONFIGS], what):
        paragraphs = [f"### {what}={option}", about([CONFIGS], what, option)]
        if found := of_option([CONFIGS], what, option):
            paragraphs.append(_table(f"{what}.", found).rstrip())
        parts.append("\n\n".join(filter(None, paragraphs)))
    return "\n\n".join(parts) + "\n"


def _table(prefix: str, settings: list[Setting]) -> str:
    rows = [[f"`{prefix}{s.key}`", f"`{s.default}`", _unit(s), s.meaning] for s in settings]
    return lines_of_table(COLUMNS, [[cell.replace("|", "\\|") for cell in row] for row in rows])


def _unit(setting: Setting) -> str:
    if setting.choices:
        return ", ".join(f"`{choice}`" for choice in setting.choices)
    return "" if setting.unit == "-" else setting.unit


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 0 the page is up to date, 1 with ``--check`` if it differs.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if the page differs")
    check = parser.parse_args().check
    old = PAGE.read_text()
    new = filled(old)
    if not check:
        PAGE.write_text(new)
    return 1 if check and new != old else 0


if __name__ == "__main__":
    sys.exit(main())
