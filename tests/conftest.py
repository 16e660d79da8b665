"""Fixtures shared by all tests."""

import fcntl
import gc
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import matplotlib
import pytest
import torch

from sibp.activations import registry

ROOT = Path(__file__).resolve().parents[1]
MadeOnce = Callable[[str, Callable[[Path], None]], Path]

# The networks of the tests are too small for more threads, and several processes run them at once.
torch.set_num_threads(1)


def pytest_collection_finish() -> None:
    """Objects that exist before the first test are exempt from garbage collection."""
    gc.collect()
    gc.freeze()


def pytest_sessionfinish() -> None:
    """Libraries that count live objects at exit need them collected."""
    gc.unfreeze()


@pytest.fixture(autouse=True)
def _registered_here_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Removes activations that a test has registered and plugins that it has imported."""
    monkeypatch.setattr(registry, "_rows", dict(registry._rows))


@pytest.fixture(scope="session")
def same_pictures() -> bool:
    """Whether a picture drawn here can be a kept one to the byte: by the matplotlib that constraints.txt pins."""
    return f"matplotlib=={matplotlib.__version__}" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> MadeOnce:
    """Makes a folder in one process for all those of pytest-xdist: the others wait, and find it.

    It takes the folder's name and a function that fills it, and returns the folder, which tests leave as it is.
    """
    base = tmp_path_factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def made(name: str, make: Callable[[Path], None]) -> Path:
        with open(base / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (base / name).exists():
                make(base / f"{name}.part")
                (base / f"{name}.part").rename(base / name)
        return base / name

    return made


@pytest.fixture(scope="session")
def data_root(made_once: MadeOnce) -> Path:
    """Folder with the data sets as torchvision lays them out; skips where there are none.

    It is ``SIBP_DATA_ROOT`` if that is set, else a temporary folder filled from packed data sets beside the
    repository, if they are there.
    """
    if given := os.environ.get("SIBP_DATA_ROOT"):
        return Path(given)
    unpack = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack.py"
    if not unpack.exists():
        pytest.skip("no data sets: set SIBP_DATA_ROOT to a folder with MNIST/raw and cifar-10-batches-py")

    def make(folder: Path) -> None:
        subprocess.run([sys.executable, str(unpack), "--to", str(folder)], check=True, capture_output=True)

    return made_once("data", make)
