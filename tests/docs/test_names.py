"""Names of code in the text: no page may mention what has been renamed or removed."""

import ast
import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from code_blocks import PAGES, ROOT

import sibp

FENCED = re.compile(r"^( *)```.*?^\1```", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = ("configs", "docs", "examples", "results", "scripts", "sibp", "tests")
NAMES = [module.name for module in pkgutil.walk_packages(sibp.__path__, "sibp.") if "__main__" not in module.name]
CLASSES = {
    name: found
    for module in map(importlib.import_module, NAMES)
    for name, found in inspect.getmembers(module, inspect.isclass)
    if found.__module__.startswith("sibp")
}


def has(owner: type, name: str) -> bool:
    """Whether a class has a member, including those only annotated or assigned in its methods."""
    if hasattr(owner, name) or any(name in getattr(c, "__annotations__", {}) for c in owner.__mro__):
        return True
    return f"self.{name} =" in inspect.getsource(owner)


def exists(code: str) -> bool:
    """Whether a name or path exists, if it looks like the project's; True otherwise."""
    if re.fullmatch(rf"({'|'.join(FOLDERS)})/[a-z0-9_./-]*", code):
        return (ROOT / code).exists()
    first, *rest = re.sub(r"\(.*", "", code).split(".")
    if not rest or not all(part.isidentifier() for part in rest):
        return True
    if first == "sibp":
        return _importable(rest)
    return first not in CLASSES or has(CLASSES[first], rest[0])


def _importable(parts: list[str]) -> bool:
    there: Any = sibp
    for i, part in enumerate(parts):
        if not hasattr(there, part):
            try:
                importlib.import_module(".".join(["sibp", *parts[: i + 1]]))
            except ImportError:
                return False
        there = getattr(there, part)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_in_the_text_exist_in_the_code(page: Path) -> None:
    assert [code for code in CODE.findall(FENCED.sub("", page.read_text())) if not exists(code)] == []


def notation() -> Iterator[str]:
    """What the table of symbols says under "here", with the class that `.b` after `LayerProblem.W` belongs to."""
    table = (ROOT / "docs" / "method.md").read_text().split("## Notation")[1].split("\n## ")[0]
    for row in re.findall(r"^\| \$.*\|$", table, re.MULTILINE):
        owner = ""
        for code in CODE.findall(row.split(" | ")[-1]):
            owner = code.split(".")[0] or owner
            yield owner + code if code.startswith(".") else code


def test_every_symbol_of_the_table_is_in_the_code() -> None:
    """Lone letters are arguments or variables of the solvers; `s.value(Z)` is an expression of such."""
    folders = ("prox", "capture", "optim")
    trees = [ast.parse(path.read_text()) for folder in folders for path in (ROOT / "sibp" / folder).rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    known = {n.arg for n in nodes if isinstance(n, ast.arg)} | {n.attr for n in nodes if isinstance(n, ast.Attribute)}
    codes = list(notation())
    assert len(codes) > 15
    for code in codes:
        first = re.split(r"\W", code)[0]
        if first in CLASSES:
            assert exists(code), code
        else:
            assert set(re.findall(r"[A-Za-z_]+", code)) <= known, code


@pytest.mark.parametrize(
    "code",
    ["sibp.optim.nonsense", "sibp.SIBP.nonsense", "Span.nonsense", "DenseFeatures.nonsense()", "sibp/prox/nonsense.py"],
)
def test_a_missing_file_is_detected(code: str) -> None:
    assert not exists(code)
