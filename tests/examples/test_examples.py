"""Every file of examples/ runs, prints what its docstring shows, and trains.

What is expected is in the examples themselves: the lines of "Expected output" come in that order and with those words,
while their numbers are the machine's. Whatever is printed as `NAME: FIRST -> LAST` has to fall to half or less.
"""

import ast
import contextlib
import importlib.util
import io
import random
import re
import runpy
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NUMBER = re.compile(r"-?\d+(\.\d+)?(e[+-]?\d+)?")
FALL = re.compile(r"(?P<name>.+): (?P<first>\d\S*) -> (?P<last>\d\S*)")
PACKAGES = ("accelerate", "ignite", "lightning", "optuna", "peft", "schedulefree", "skorch", "timm", "transformers")


def expected(path: Path) -> list[str]:
    """The lines that an example's docstring shows as its output."""
    text = ast.get_docstring(ast.parse(path.read_text())) or ""
    shown = text.partition("Expected output:")[2]
    return [line.strip() for line in shown.splitlines() if line.strip()]


def missing(path: Path) -> list[str]:
    """Packages that an example imports and that are not installed."""
    imported = re.findall(r"^(?:from|import) (\w+)", path.read_text(), re.MULTILINE)
    return [name for name in PACKAGES if name in imported and importlib.util.find_spec(name) is None]


def words(line: str) -> str:
    """A line with its numbers left out."""
    return NUMBER.sub("#", re.sub(r"-{3,}| +", " ", line)).strip()


@pytest.fixture(autouse=True)
def _as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder; restores what frameworks change for the whole process."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    threads, states = torch.get_num_threads(), (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    yield
    torch._dynamo.reset()  # discards the compiled example's cache
    torch.set_num_threads(threads)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_prints_what_it_says_and_trains(path: Path) -> None:
    if absent := missing(path):
        pytest.skip(f"pip install sibp[examples]: {', '.join(absent)} is not installed")
    with warnings.catch_warnings(record=True) as warned, contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.simplefilter("always")
        runpy.run_path(str(path), run_name="__main__")
    ours = [one for one in warned if Path(one.filename).is_relative_to(ROOT)]
    ours = [str(one.message) for one in ours if not Path(one.filename).is_relative_to(sys.prefix)]
    assert ours == []  # warnings of other packages do not count, wherever they are installed
    lines = [line for line in printed.getvalue().splitlines() if line.strip()]
    assert [words(line) for line in lines] == [words(line) for line in expected(path)]
    for found in filter(None, map(FALL.fullmatch, lines)):
        assert float(found["last"]) <= 0.5 * float(found["first"]), found[0]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_what_it_prints(path: Path) -> None:
    assert 30 <= len(path.read_text().splitlines()) <= 80
    assert expected(path)


def test_the_module_on_the_page_trains() -> None:
    if importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    page = (ROOT / "docs" / "howto" / "in-your-stack.md").read_text()
    (code,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "LightningModule" in block]
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as printed:
        warnings.simplefilter("ignore")  # Lightning's, of workers and logging
        exec(code, {"__name__": "__main__"})
    last = printed.getvalue().strip().splitlines()[-1]
    assert 0 < float(last.removeprefix("loss of the last batch: ")) < 0.5
