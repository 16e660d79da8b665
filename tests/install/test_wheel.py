"""What the wheel holds that is built from the source distribution, and that it trains where there is no checkout.

`make check-wheel` installs both, too.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("sibp", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
SETUPTOOLS = "77"  # the first version that accepts pyproject.toml's licence format
IGNORED = shutil.ignore_patterns("__pycache__", "*.egg-info", "*.so")


def quick_compiler(folder: Path) -> dict[str, str]:
    """The environment with a compiler that skips slow optimisation, as these tests need no speed."""
    compiler = next(filter(None, map(shutil.which, ("gcc", "clang"))), None)
    if compiler is None:
        return dict(os.environ)
    quick = folder / "quick-cc"
    quick.write_text(f'#!/bin/sh\nexec "{compiler}" "$@" -O0\n')
    quick.chmod(0o755)
    return {**os.environ, "CC": str(quick)}


def build(kind: str, source: Path, out: Path) -> None:
    """Builds a ``wheel`` or an ``sdist`` with the installed setuptools, as pip and build would."""
    words = f"from setuptools.build_meta import build_{kind} as build; build({str(out)!r})"
    command, here = [sys.executable, "-c", words], quick_compiler(out)
    done = subprocess.run(command, cwd=source, env=here, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution."""
    pytest.importorskip("setuptools", minversion=SETUPTOOLS)
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("sdist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=IGNORED)
        else:
            shutil.copy(ROOT / name, source)
    build("sdist", source, out)
    (found,) = out.glob("sibp-*.tar.gz")
    return found


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from nothing but the source distribution."""
    source, out = tmp_path_factory.mktemp("unpacked"), tmp_path_factory.mktemp("wheel")
    with tarfile.open(sdist) as archive:
        archive.extractall(source, filter="data")
    build("wheel", next(source.iterdir()), out)
    (found,) = out.glob("sibp-*.whl")
    return found


def test_both_are_named_by_the_version(sdist, wheel):
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert sdist.name == f"sibp-{version}.tar.gz"
    assert wheel.name.startswith(f"sibp-{version}-")


def test_every_file_of_the_package_and_of_configs_is_in_it(wheel):
    held = set(zipfile.ZipFile(wheel).namelist())
    code = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sibp").rglob("*.py")}
    configs = {f"sibp/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 40
    text = {"sibp/experiment/text/LICENSE", "sibp/experiment/text/python_docs.txt.gz"}
    page = {f"sibp/report/{name}" for name in ("page.css", "page.html", "page.js", "plotly/plotly-basic.min.js")}
    assert code | configs | page | text | {"sibp/configs/__init__.py", "sibp/report/plotly/LICENSE"} <= held
    tops = {name.partition("/")[0] for name in held}
    assert {name for name in tops if not name.endswith(".dist-info")} == {"sibp"}


@pytest.mark.skipif(not any(map(shutil.which, ("gcc", "clang"))), reason="needs gcc or clang")
def test_the_kernels_and_their_sources_are_in_it_for_every_python(wheel):
    held = zipfile.ZipFile(wheel).namelist()
    sources = {path.relative_to(ROOT).as_posix() for path in (ROOT / "sibp/prox/kernels").glob("*.[ch]")}
    assert len(sources) > 5
    assert sources <= set(held)
    assert [name for name in held if name.startswith("sibp/prox/kernels/_native")] == [
        "sibp/prox/kernels/_native.abi3.so"
    ]
    assert "-cp311-abi3-" in wheel.name


def test_without_a_compiler_it_is_built_without_kernels(tmp_path):
    pytest.importorskip("setuptools", minversion=SETUPTOOLS)
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, tmp_path / name, **({"ignore": IGNORED} if (ROOT / name).is_dir() else {}))
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "CC": "false"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.rglob("_native*"))
    ask = "from sibp.prox import kernels; print(kernels.description())"
    here = {**os.environ, "PYTHONPATH": str(tmp_path)}
    asked = subprocess.run([sys.executable, "-c", ask], cwd=tmp_path, env=here, capture_output=True, text=True)
    assert asked.stdout.strip() == "none", asked.stderr


def test_it_trains_where_there_is_no_checkout(wheel, tmp_path):
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    (tmp_path / "empty").mkdir()

    code = "import sibp, sibp.__main__ as it; print(sibp.__file__); "
    for words in (
        ["train", "experiment=digits_quick", "max_steps=2", "threads=1"],
        ["tune", "sweep=digits_quick", "threads=1", "--dry"],
        ["report", "runs"],
    ):
        code += f"assert it.main({words}) == 0; "
    here = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "empty", env=here, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    place, trained, *rest = done.stdout.splitlines()
    assert place.startswith(str(tmp_path / "site"))
    assert trained.startswith("completed")
    assert "sgd: " in "".join(rest)
    assert "1 runs" in rest[-1]
