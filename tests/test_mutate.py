"""The table of mutations fits the code, and the tool that applies them reports correctly."""

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[1] / "scripts" / "mutate.py"


@pytest.fixture(scope="module")
def mutate():
    spec = importlib.util.spec_from_file_location("mutate", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["mutate"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules["mutate"]


def test_every_pattern_is_found_once_and_every_test_exists(mutate):
    table = mutate.read_table()
    assert len(table) >= 30
    assert mutate.problems(table) == []


def test_a_pattern_that_is_missing_or_not_unique_is_named(mutate):
    def row(old):
        return mutate.Mutation("row", "sibp/prox/status.py", old, "", ("tests/prox",))

    (missing,) = mutate.problems([row("no such text")])
    assert "0 times in sibp/prox/status.py" in missing
    (twice,) = mutate.problems([row("Status")])
    assert "times" in twice
    assert len(mutate.problems([mutate.Mutation("row", "no/file.py", "a", "b", ("no/test.py",))])) == 2


@pytest.fixture
def tiny_project(mutate, tmp_path, monkeypatch):
    """A stand-in for the project: a package named sibp with one function and one test."""
    root = tmp_path / "project"
    (root / "sibp" / "prox" / "solvers").mkdir(parents=True)
    (root / "sibp" / "__init__.py").write_text("def double(x):\n    return 2 * x  # twice\n")
    (root / "sibp" / "prox" / "__init__.py").write_text("")
    (root / "sibp" / "prox" / "solvers" / "__init__.py").write_text("")
    (root / "sibp" / "prox" / "solvers" / "linear.py").write_text("")
    (root / "tests").mkdir()
    (root / "tests" / "test_double.py").write_text(
        "import sibp\n\n\ndef test_double():\n    assert sibp.double(3) == 6\n"
    )
    monkeypatch.setattr(mutate, "ROOT", root)
    return root


@pytest.mark.slow
def test_verdicts(mutate, tiny_project, tmp_path, capsys):
    """Also shows that the copy is what the tests import: the installed sibp has no `double`."""

    def row(name, old, new):
        return mutate.Mutation(name, "sibp/__init__.py", old, new, ("tests/test_double.py",))

    rows = [row("noticed", "2 * x", "3 * x"), row("unnoticed", "twice", "thrice"), row("nonsense", "def", "d e f")]
    outcomes = mutate.run(rows, jobs=2)
    assert [outcome.verdict for outcome in outcomes] == ["killed", "SURVIVED", "BROKEN"]
    assert outcomes[0].evidence == "tests/test_double.py::test_double"
    assert "return 2 * x  # twice" in (tiny_project / "sibp" / "__init__.py").read_text()  # only copies were changed
    assert "SURVIVED" in capsys.readouterr().out


def test_a_mistake_is_not_judged_if_the_tests_fail_without_it(mutate, tiny_project):
    (tiny_project / "sibp" / "__init__.py").write_text("def double(x):\n    return x\n")
    row = mutate.Mutation("row", "sibp/__init__.py", "return x", "return 0", ("tests/test_double.py",))
    with pytest.raises(RuntimeError, match="without any mistake"):
        mutate.run([row], jobs=1)


@pytest.mark.parametrize(("verdict", "status"), [("killed", 0), ("SURVIVED", 1), ("BROKEN", 1)])
def test_a_survivor_is_an_exit_status(mutate, monkeypatch, capsys, verdict, status):
    monkeypatch.setattr(mutate, "run", lambda rows, jobs: [mutate.Outcome(rows[0], verdict, 1.0, "evidence")])
    assert mutate.main(["--only", "step adds"]) == status
    assert ("1 of 1 noticed" in capsys.readouterr().out) == (status == 0)


def test_a_table_that_does_not_fit_is_an_exit_status(mutate, monkeypatch, capsys):
    assert mutate.main(["--only", "nothing of the kind"]) == 1
    assert mutate.main(["--list"]) == 0
    assert "step adds" in capsys.readouterr().out
    monkeypatch.setattr(mutate, "problems", lambda table: ["row: its pattern occurs 0 times"])
    assert mutate.main([]) == 1
