"""Fixtures of the report's tests."""

from pathlib import Path

import pytest
from fake_runs import write_study


@pytest.fixture(scope="session")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a small tuned comparison, with runs that diverged, failed, are unfinished or broken."""
    return write_study(tmp_path_factory.mktemp("study"))
