"""Checks of the commands on the pages, without running them."""

import importlib
import re
import shlex
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from code_blocks import ROOT

PYTHONS = ("python", ".venv/bin/python")


def words_of(code: str) -> Iterator[list[str]]:
    """The commands of a shell block, as words: comments left out, continued lines joined."""
    for line in code.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def project_main(words: list[str]) -> tuple[Callable[[list[str]], int] | None, list[str]]:
    """The `main` of `sibp` and of `python -m sibp.X`, with its words; None for any other command."""
    if words[0] == "sibp":
        return importlib.import_module("sibp.__main__").main, words[1:]
    if words[0] not in PYTHONS or words[1] != "-m" or not words[2].startswith("sibp."):
        return None, words
    try:
        module = importlib.import_module(f"{words[2]}.__main__")
    except ModuleNotFoundError:
        module = importlib.import_module(words[2])
    return module.main, words[3:]


def executable(name: str) -> str:
    """The path of a program, in this interpreter's environment if it is there, otherwise on the path."""
    if name in PYTHONS:
        return sys.executable
    own = Path(sys.executable).parent / Path(name).name
    return str(own) if own.exists() else name


def check(words: list[str]) -> None:
    """Check that a command exists and accepts its arguments.

    Raises:
        AssertionError, SystemExit or UserError: with the reason.
    """
    name = words[0].removeprefix(".venv/bin/")
    assert name in CHECKS, f"nothing checks the command {name!r}: {' '.join(words)}"
    CHECKS[name](words[1:])


def _python(words: list[str]) -> None:
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file(), f"there is no {words[0]}"
    elif words[1].startswith("sibp."):
        _PROJECT[words[1].removeprefix("sibp.")](words[2:])
    else:
        check(words[1:])


def _sibp(words: list[str]) -> None:
    _PROJECT[words[0]](words[1:])


def _train(words: list[str]) -> None:
    from sibp.experiment.compose import plan

    flags = {"-m", "--multirun", "--help", "--cfg", "job", "--status"}
    assert plan([word for word in words if word not in flags], bool({"-m", "--multirun"} & {*words}), "config")


def _tune(words: list[str]) -> None:
    from sibp.tuning.sweep import read_sweep

    (sweep,) = [word.removeprefix("sweep=") for word in words if word.startswith("sweep=")]
    read_sweep(sweep, [word for word in words if not word.startswith(("sweep=", "--"))])


def _parsed(module: str) -> Callable[[list[str]], None]:
    return lambda words: importlib.import_module(module)._parser().parse_args(words)


def _make(words: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(words) <= set(targets), f"the Makefile has no such target: make {' '.join(words)}"


def _pip(words: list[str]) -> None:
    extras: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in words:
        wanted = re.fullmatch(r"\.\[(\w+)\]", word)
        assert wanted is None or wanted[1] in extras, f"there is no extra {word}"


def _pytest(words: list[str]) -> None:
    for word in words:
        assert not word.startswith("tests/") or (ROOT / word.partition("::")[0]).exists(), f"there is no {word}"


def _torchrun(words: list[str]) -> None:
    scripts = [word for word in words if word.startswith("scripts/")]
    assert all((ROOT / script).is_file() for script in scripts), f"there is no {scripts}"


def _anything(words: list[str]) -> None:
    """A command of another project."""


_PROJECT: dict[str, Callable[[list[str]], None]] = {
    "train": _train,
    "tune": _tune,
    "report": _parsed("sibp.report.__main__"),
    "bench": _parsed("sibp.bench.__main__"),
}
CHECKS: dict[str, Callable[[list[str]], None]] = {
    "python": _python,
    "sibp": _sibp,
    "make": _make,
    "pip": _pip,
    "pytest": _pytest,
    "torchrun": _torchrun,
    **dict.fromkeys(("cd", "git", "ls", "rsync", "source", "ssh", "tensorboard"), _anything),
}
