"""Runs the blocks of a page: ``python running.py PAGE`` in an empty folder.

A page that adds files to the project is run in a process of its own, in a copy; so is one that adds modules of its own,
outside the project.
"""

import contextlib
import doctest
import io
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import commands
from code_blocks import ROOT, Block, blocks

COPY = "<!-- in a copy of the project -->"
OWN = "<!-- in a folder of your own -->"
COPIED = ("sibp", "configs", "tests/optim", "tests/conftest.py", "pyproject.toml")
CHECKER = doctest.OutputChecker()


def run_page(page: Path) -> None:
    """Run a page, in the current folder.

    Raises:
        AssertionError: a command fails, or something else is printed.
        Exception: whatever a block raises; the traceback has the page's line.
    """
    lines = page.read_text().splitlines()
    if COPY not in lines and OWN not in lines:
        run_blocks(page)
        return
    if COPY in lines:
        copy_project()
    here = {**os.environ, "PYTHONPATH": str(Path.cwd() if COPY in lines else ROOT)}
    done = subprocess.run([sys.executable, __file__, str(page)], env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def run_blocks(page: Path) -> None:
    """Run a page's blocks in order, comparing what is printed with what the page shows."""
    names: dict[str, object] = {"__name__": "__main__"}
    printed: str | None = None
    for block in blocks(page):
        if block.language == "text" and block.after and printed is not None:
            assert same(block.code, printed), f"{block} shows\n{block.code}\nbut what is printed is\n{printed}"
        printed = None
        if block.reason:
            continue
        if block.title and block.language == "diff":
            patch(Path(block.title), block)
        elif block.title:
            path = Path(block.title)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block.code)
        elif block.language == "python":
            code = compile("\n" * (block.line - 1) + block.code, str(block.page), "exec")  # tracebacks show the page
            printed = output(lambda code=code: exec(code, names))
        elif block.marker == "run":
            assert block.language == "bash", f"{block}: only python and bash are run"
            printed = output(lambda block=block: run_commands(block))


def copy_project() -> None:
    """Copy the project to the current folder, for a page that adds files to it."""
    for name in COPIED:
        Path(name).parent.mkdir(exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, name)


def patch(path: Path, block: Block) -> None:
    """Make the one change that a diff shows."""
    lines = block.code.splitlines(keepends=True)
    old, new = ("".join(line[1:] for line in lines if line[0] in signs) for signs in (" -", " +"))
    assert path.read_text().count(old) == 1, f"{block}: its context has to occur once in {path}"
    path.write_text(path.read_text().replace(old, new))


def same(shown: str, printed: str) -> bool:
    """Whether the output is what the page shows; "..." matches anything, and trailing blanks are ignored."""
    shown, printed = ("\n".join(line.rstrip() for line in text.rstrip().splitlines()) for text in (shown, printed))
    return CHECKER.check_output(shown + "\n", printed + "\n", doctest.ELLIPSIS)


def output(action: Callable[[], object]) -> str:
    """Captures what is printed inside the context."""
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        action()
    return printed.getvalue()


def run_commands(block: Block) -> None:
    """Run the commands of a block; those of the project in this process, as importing torch takes seconds."""
    for words in commands.words_of(block.code):
        main, own = commands.project_main(words)
        if main is not None:
            assert main(own) == 0, f"{block}: {' '.join(words)} fails"
            continue
        words = [commands.executable(words[0]), *words[1:]]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, f"{block}: {' '.join(words)} fails\n{done.stdout}\n{done.stderr}"
        print(done.stdout, end="")


if __name__ == "__main__":
    run_blocks(Path(sys.argv[1]))
