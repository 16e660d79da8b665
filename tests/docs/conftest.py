"""Fixtures of the documentation's tests."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from code_blocks import ROOT


@pytest.fixture(scope="session")
def build(made_once: Callable[[str, Callable[[Path], None]], Path]) -> Path:
    """A folder with the site, and beside it what the build said if it failed."""

    def make(folder: Path) -> None:
        command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder / "site")]
        quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
        done = subprocess.run(command, cwd=ROOT, env=quiet, capture_output=True, text=True)
        folder.mkdir(exist_ok=True)
        if done.returncode:
            (folder / "failed").write_text(done.stdout + done.stderr)

    return made_once("documentation", make)


@pytest.fixture(scope="session")
def site(build: Path) -> Path:
    """The built site."""
    return build / "site"
