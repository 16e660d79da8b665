"""What results/ claims is what its kept runs say."""

import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parents[1]


def test_reports_are_made_from_the_runs_kept_beside_them():
    command = [sys.executable, "scripts/results.py", "--check"]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "mnist_mlp/report.md" in ended.stdout
    assert "README.md" in ended.stdout
    assert "8. How each subproblem is solved matters" in ended.stdout  # all claims, with verdicts


def test_what_is_shown_elsewhere_is_made_from_the_kept_runs():
    """The tables in README.md and docs/, and the picture."""
    command = [sys.executable, "scripts/shown_results.py", "--check"]
    ended = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "<!-- results/mnist_mlp: comparison -->" in (PROJECT / "README.md").read_text()
