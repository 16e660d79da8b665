"""The range of versions that pyproject.toml declares: its lower ends are what `make test-oldest` installs."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
EXAMPLES = [Requirement(text) for text in EXTRAS["examples"]]  # `make test` installs them, `make test-oldest` does not
NEEDED = [Requirement(text) for text in [*PROJECT["dependencies"], *EXTRAS["sweep"], *EXTRAS["peers"]]]


def pins(name: str) -> dict[str, Version]:
    lines = (ROOT / name).read_text().splitlines()
    found = [line.split("==") for line in lines if "==" in line and not line.startswith("#")]
    return {canonicalize_name(package): Version(version) for package, version in found}


def lowest(requirement: Requirement) -> Version:
    (version,) = (Version(part.version) for part in requirement.specifier if part.operator in (">=", "=="))
    return version


@pytest.mark.parametrize("requirement", NEEDED, ids=lambda requirement: requirement.name)
def test_the_oldest_version_of_everything_is_the_one_that_is_tested(requirement):
    assert pins("constraints-oldest.txt")[canonicalize_name(requirement.name)] == lowest(requirement)


@pytest.mark.parametrize("requirement", [*NEEDED, *EXAMPLES], ids=lambda requirement: requirement.name)
def test_the_pinned_version_is_in_the_range(requirement):
    assert pins("constraints.txt")[canonicalize_name(requirement.name)] in requirement.specifier
