"""The README's promises: its Python runs, its commands exist."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

import sibp

README = Path(__file__).resolve().parents[1] / "README.md"


def test_first_lines_are_the_two_commands():
    commands = re.findall(r"^(make \w+)", README.read_text(), re.MULTILINE)
    assert commands[:2] == ["make run", "make test"]
    targets = set(re.findall(r"^(\w+):", (README.parent / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "test"} <= targets


def test_drop_in_example_trains_in_twelve_lines():
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (example,) = [block for block in blocks if "SIBP(" in block]
    assert len(example.strip().splitlines()) <= 12
    code = example + "\nassert loss.item() < 0.5 * 2.3, loss\n"  # ln 10 = 2.3: the loss of guessing
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True, timeout=120)


def test_two_screens_are_enough():
    assert len(README.read_text().splitlines()) <= 90


def test_licence_and_citation_say_the_same():
    project = tomllib.loads((README.parent / "pyproject.toml").read_text())["project"]
    citation = yaml.safe_load((README.parent / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()  # required by the format
    assert citation["version"] == project["version"] == sibp.__version__
    assert citation["license"] == "MIT"
    assert project["license"] == "MIT AND PSF-2.0"  # the code's licence and the bundled text's
    starts = ["MIT License\n", "python_docs.txt.gz is the language reference of Python"]
    assert len(starts) == len(project["license-files"])
    for file, start in zip(project["license-files"], starts, strict=True):
        assert (README.parent / file).read_text().startswith(start)
