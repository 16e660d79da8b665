"""Every code block of the documentation is run, or at least checked; see `pages`."""

import contextlib
import doctest
import io
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import commands
import numpy as np
import pytest
import torch
from pages import PAGES, ROOT, Block, blocks

ALL = [block for page in PAGES for block in blocks(page)]
LEFT_OUT = [pytest.param(block, marks=pytest.mark.skip(block.reason), id=str(block)) for block in ALL if block.reason]
TUTORIAL = ROOT / "docs" / "tutorial"  # has tests of its own: its pictures come of its code
RUN = [block.page for block in ALL if block.language == "python" or block.marker == "run"]
RUN = [page for page in dict.fromkeys(RUN) if page.parent != TUTORIAL]
CHECKER = doctest.OutputChecker()


@pytest.fixture
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty folder, and what a page may change for the whole process put back."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
    states = random.getstate(), np.random.get_state(), torch.random.get_rng_state()  # noqa: NPY002
    yield
    torch.set_num_threads(threads)
    torch.set_default_dtype(dtype)
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.random.set_rng_state(states[2])


@pytest.mark.usefixtures("_elsewhere")
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_page_does_what_it_says(page: Path) -> None:
    run_page(list(blocks(page)))


def run_page(page: list[Block]) -> None:
    """Run a page's blocks in order, in the current folder, comparing what is printed with what the page shows."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    for block in page:
        if block.language == "text" and block.after and printed is not None:
            assert same(block.code, printed), f"{block} shows\n{block.code}\nbut what is printed is\n{printed}"
        printed = None
        if block.reason:
            continue
        if block.title:
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")  # tracebacks show the page
            printed = output(lambda code=code: exec(code, names))
        elif block.marker == "run":
            assert block.language == "bash", f"{block}: only python and bash are run"
            printed = output(lambda block=block: run_commands(block))


def same(shown: str, printed: str) -> bool:
    """Whether the output is what the page shows, "..." standing for anything; blanks at the ends of lines count not."""
    shown, printed = ("\n".join(line.rstrip() for line in text.rstrip().splitlines()) for text in (shown, printed))
    return CHECKER.check_output(shown + "\n", printed + "\n", doctest.ELLIPSIS)


def output(action: Callable[[], object]) -> str:
    """What is printed meanwhile."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        action()
    return printed.getvalue()


def run_commands(block: Block) -> None:
    """Run the commands of a block; those of the project in this process, as importing torch takes seconds."""
    for words in commands.words_of(block.code):
        main = commands.project_main(words)
        if main is not None:
            assert main(words[3:]) == 0, f"{block}: {' '.join(words)} fails"
            continue
        words = [commands.executable(words[0]), *words[1:]]
        environment = {**os.environ, "PYTHONPATH": str(Path.cwd() if Path("sibp").is_dir() else ROOT)}
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}: {' '.join(words)} fails\n{done.stdout}\n{done.stderr}"
        print(done.stdout, end="")


@pytest.mark.parametrize("block", [pytest.param(b, id=str(b)) for b in ALL if b.language == "bash" and not b.reason])
def test_commands_exist_and_take_what_they_are_given(block: Block) -> None:
    for words in commands.words_of(block.code):
        commands.check(words)


@pytest.mark.parametrize("block", LEFT_OUT)
def test_block_left_out(block: Block) -> None:
    """Never runs: pytest -rs lists these blocks with their reasons."""


def test_every_block_has_a_language_that_is_looked_at() -> None:
    known = {"python", "bash", "text", "yaml", "json", "toml", "diff", "markdown"}
    assert [str(block) for block in ALL if block.language not in known] == []
