"""The pages of results/ match the kept runs."""

import subprocess
import sys
from pathlib import Path

import pytest

from sibp.analysis.clock import KEPT, OWN_CLOCK

pytestmark = pytest.mark.slow

PROJECT = Path(__file__).parents[1]


def checked(script: str, same_pictures: bool) -> str:
    """Run a script that compares kept files with those regenerated from the runs; no difference is allowed."""
    command = [sys.executable, script, "--check"]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    different = [line for line in ended.stdout.splitlines() if line.startswith("differs")]
    pictures = [] if same_pictures else [line for line in different if line.endswith(".svg")]
    assert different == pictures, ended.stdout + ended.stderr
    assert ended.returncode == (1 if pictures else 0), ended.stdout + ended.stderr
    return ended.stdout


def test_reports_are_made_from_the_runs_kept_beside_them(same_pictures):
    printed = checked("scripts/results.py", same_pictures)
    assert "mnist_mlp/report.md" in printed
    assert "README.md" in printed
    assert "8. How each subproblem is solved matters" in printed  # all claims, with verdicts


def test_tables_on_other_pages_match_the_kept_runs(same_pictures):
    """The tables in README.md and docs/, and the picture."""
    checked("scripts/shown_results.py", same_pictures)
    assert "<!-- results/mnist_mlp: comparison -->" in (PROJECT / "README.md").read_text()


def test_a_report_is_timed_by_the_record_beside_its_runs():
    """Else its seconds contradict the pictures and the tables of docs/, which prefer that record."""
    own = [
        path.parent
        for path in (PROJECT / "results").glob(f"*/{OWN_CLOCK}")
        if path.parent.name != Path(KEPT).parent.name
    ]
    assert len(own) >= 5
    for folder in own:
        made = [line for line in (folder / "report.md").read_text().splitlines() if line.startswith("Made by: ")]
        assert [f" --clock {OWN_CLOCK}" in line for line in made] == [True], folder.name
