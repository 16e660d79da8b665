"""Mutation testing: introduce one small mistake at a time and check that the tests fail.

Each row of ``mutations.toml`` is applied to a temporary copy of the project, never to the project itself, and its tests
are run there. A surviving mistake means that a test is missing.

    python scripts/mutate.py --list
    python scripts/mutate.py --jobs 2
    python scripts/mutate.py --only "step adds"
"""

import argparse
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_name("mutations.toml")
COPIED = ("sibp", "tests", "configs", "scripts", "docs", "results", "pyproject.toml", "setup.py", "mkdocs.yml")
COPIED += ("Makefile", "constraints.txt", "constraints-oldest.txt", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")
COPIED += ("CITATION.cff", "LICENSE")
TIMEOUT = 300.0
"""Time limit in seconds for a row's tests; a mistake that makes them hang is detected, too."""


@dataclass(frozen=True)
class Mutation:
    """One mistake.

    Attributes:
        name: description.
        file: path relative to the project.
        old: text that occurs there exactly once.
        new: its replacement.
        tests: paths of the tests that must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """The outcome of one mistake.

    Attributes:
        mutation: the mistake.
        verdict: "killed", "SURVIVED" or "BROKEN" (the tests could not be run).
        seconds: duration of its tests.
        evidence: the first failing test, or why there is none.
    """

    mutation: Mutation
    verdict: str
    seconds: float
    evidence: str


def read_table(path: Path = TABLE) -> list[Mutation]:
    """The rows of the table.

    Args:
        path: a TOML file with an array `mutation`.

    Raises:
        ValueError: if a name occurs twice, or a row would change nothing.
    """
    rows = tomllib.loads(path.read_text())["mutation"]
    mutations = [Mutation(**{**row, "tests": tuple(row["tests"])}) for row in rows]
    names = [mutation.name for mutation in mutations]
    if twice := {name for name in names if names.count(name) > 1}:
        raise ValueError(f"names occur twice: {', '.join(sorted(twice))}")
    if idle := [mutation.name for mutation in mutations if mutation.old == mutation.new]:
        raise ValueError(f"rows change nothing: {', '.join(idle)}")
    return mutations


def problems(mutations: Sequence[Mutation], root: Path = ROOT) -> list[str]:
    """Errors of the table: patterns that do not occur exactly once in their file, tests that do not exist.

    Args:
        mutations: rows of the table.
        root: of the project.
    """
    found = []
    for mutation in mutations:
        path = root / mutation.file
        count = path.read_text().count(mutation.old) if path.is_file() else 0
        if count != 1:
            found.append(f"{mutation.name}: its pattern occurs {count} times in {mutation.file}")
        found += [f"{mutation.name}: no {test}" for test in mutation.tests if not (root / test).exists()]
    return found


def copy_project(target: Path) -> None:
    """Copies the files that the tests need.

    Args:
        target: a folder that does not exist yet.

    Raises:
        RuntimeError: if Python would import sibp from elsewhere than the copy.
    """
    target.mkdir(parents=True)
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target / name, ignore=ignore)
        elif (ROOT / name).exists():
            shutil.copy2(ROOT / name, target / name)
    # The project is installed in editable mode; PYTHONPATH gives precedence to the copy.
    asked = subprocess.run(
        [sys.executable, "-c", "import sibp, sibp.prox.solvers.linear as part; print(sibp.__file__, part.__file__)"],
        cwd=target, env=_environment(target), capture_output=True, text=True, check=True,
    )  # fmt: skip
    strangers = [path for path in asked.stdout.split() if not Path(path).resolve().is_relative_to(target.resolve())]
    if strangers:
        raise RuntimeError(f"in the copy at {target}, Python imports sibp from elsewhere: {strangers}")
    if not kernels_are_current(target):
        build_kernels(target)


def kernels_are_current(copy: Path) -> bool:
    """Whether a copy has compiled kernels that are newer than all of their sources.

    Args:
        copy: of the project.
    """
    folder = copy / "sibp" / "prox" / "kernels"
    built = [path.stat().st_mtime for path in folder.glob("*.so")]
    sources = [path.stat().st_mtime for path in folder.glob("*.[ch]")]
    return bool(built) and min(built) >= max(sources, default=0.0)


def build_kernels(copy: Path) -> None:
    """Compiles the kernels of a copy; without a compiler, the copy has none.

    Args:
        copy: of the project.
    """
    for earlier in (copy / "sibp").rglob("*.so"):
        earlier.unlink()
    if (copy / "setup.py").exists():
        command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
        subprocess.run(command, cwd=copy, env=_environment(copy), capture_output=True, timeout=TIMEOUT, check=True)


def _environment(copy: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(copy),
        "PYTHONDONTWRITEBYTECODE": "1",  # a mistake reverted within a second may leave stale bytecode
        "OMP_NUM_THREADS": "1",
    }


def run_tests(copy: Path, tests: Sequence[str]) -> tuple[int, str]:
    """Runs tests in a copy.

    Args:
        copy: of the project.
        tests: paths.

    Returns:
        pytest's exit status (124 if it took too long), and its output.
    """
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    try:
        done = subprocess.run(
            command, cwd=copy, env=_environment(copy), capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return 124, f"took more than {TIMEOUT:.0f} seconds"
    return done.returncode, done.stdout + done.stderr


def try_mutation(mutation: Mutation, copy: Path) -> Outcome:
    """Applies a mistake in a copy, runs its tests, reverts it.

    Args:
        mutation: the mistake.
        copy: of the project, not used by others meanwhile.
    """
    path = copy / mutation.file
    compiled = path.suffix in (".c", ".h")
    original, kernels = path.read_text(), {built: built.read_bytes() for built in (copy / "sibp").rglob("*.so")}
    path.write_text(original.replace(mutation.old, mutation.new))
    start = time.monotonic()
    try:
        if compiled:
            build_kernels(copy)
        status, output = run_tests(copy, mutation.tests)
    finally:
        path.write_text(original)
        for built, content in kernels.items() if compiled else ():
            built.write_bytes(content)
    seconds = time.monotonic() - start
    failed = [line.split(" ", 1)[1].split(" - ")[0] for line in output.splitlines() if line.startswith("FAILED ")]
    if status == 1 and failed:
        return Outcome(mutation, "killed", seconds, failed[0])
    if status == 124:
        return Outcome(mutation, "killed", seconds, output)
    if status == 0:
        return Outcome(mutation, "SURVIVED", seconds, "all tests passed: " + " ".join(mutation.tests))
    last = (output.strip().splitlines() or ["no output"])[-1]
    return Outcome(mutation, "BROKEN", seconds, f"pytest ended with {status}: {last}")


def run(mutations: Sequence[Mutation], jobs: int) -> list[Outcome]:
    """Tries mistakes in parallel, and prints each outcome when it is known.

    Args:
        mutations: the mistakes.
        jobs: number of parallel jobs, each with its own copy.

    Raises:
        RuntimeError: if the tests fail without a mistake.
    """
    with tempfile.TemporaryDirectory(prefix="sibp-mutate-") as folder:
        copies: queue.Queue[Path] = queue.Queue()
        for number in range(jobs):
            copy = Path(folder) / f"copy{number}"
            copy_project(copy)
            copies.put(copy)
        first = copies.get()
        status, output = run_tests(first, sorted({test for mutation in mutations for test in mutation.tests}))
        if status != 0:
            raise RuntimeError(f"the tests fail without any mistake:\n{output[-2000:]}")
        copies.put(first)

        def work(mutation: Mutation) -> Outcome:
            copy = copies.get()
            try:
                outcome = try_mutation(mutation, copy)
            finally:
                copies.put(copy)
            print(f"{outcome.verdict:8}  {outcome.seconds:5.1f} s  {mutation.name}  ({outcome.evidence})", flush=True)
            return outcome

        with ThreadPoolExecutor(jobs) as pool:
            return list(pool.map(work, mutations))


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line.

    Args:
        arguments: default those of the process.

    Returns:
        0 if every mistake was detected; 1 if not, or if the table does not fit the project.
    """
    parser = argparse.ArgumentParser(description="Introduce one small mistake at a time and check that the tests fail.")
    parser.add_argument("--list", action="store_true", help="print the table only")
    parser.add_argument("--only", metavar="NAME", action="append", help="only rows whose name contains this")
    parser.add_argument("--jobs", type=int, default=1, help="number of parallel jobs (default 1)")
    args = parser.parse_args(arguments)
    mutations = read_table()
    if wrong := problems(mutations):
        print("\n".join(wrong), file=sys.stderr)
        return 1
    chosen = [m for m in mutations if not args.only or any(part in m.name for part in args.only)]
    if not chosen:
        print(f"no mutation's name contains {' or '.join(args.only)}; see --list", file=sys.stderr)
        return 1
    if args.list:
        width = max(len(mutation.name) for mutation in chosen)
        print("\n".join(f"{m.name:{width}}  {m.file}  {' '.join(m.tests)}" for m in chosen))
        return 0
    start = time.monotonic()
    try:
        outcomes = run(chosen, max(args.jobs, 1))
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    bad = [outcome for outcome in outcomes if outcome.verdict != "killed"]
    print(f"\n{len(outcomes) - len(bad)} of {len(outcomes)} noticed in {time.monotonic() - start:.0f} s")
    for outcome in bad:
        print(f"{outcome.verdict}: {outcome.mutation.name} ({outcome.mutation.file}): {outcome.evidence}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
