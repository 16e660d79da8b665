"""Fixtures of the report's tests."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from fake_runs import write_study  # noqa: E402


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small tuned comparison, with runs that diverged, failed, are unfinished or broken."""
    return write_study(tmp_path_factory.mktemp("study"))
