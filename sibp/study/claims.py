"""The paper's claims as data, and the verdict on a claim; page.md states the rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any

from sibp.analysis.outcomes import FINAL_ACC, FINAL_LOSS, FINAL_VAL, TEST_ACC
from sibp.analysis.step_sizes import largest, reach, room, spread, width
from sibp.runs.values import UsageError
from sibp.runs.yaml_file import YamlError, parse_yaml
from sibp.study.experiments import Experiment

REPRODUCED, PARTLY, NOT, INCONCLUSIVE = "reproduced", "partly", "not reproduced", "inconclusive"
LOGGED = {"training loss": FINAL_LOSS, "training accuracy": FINAL_ACC, "validation accuracy": FINAL_VAL}
OF_RUNS = LOGGED | {"test accuracy": TEST_ACC}
OVER_SETTINGS = {
    "width of step sizes": width,
    "largest step size": largest,
    "range of step sizes": spread,
    "reach above the best step size": reach,
    "room before divergence": room,
}
QUANTITIES = (*OF_RUNS, *OVER_SETTINGS)

Kinds = Mapping[str, tuple[type | UnionType, str]]  # key -> the type of its value, and its name; "?": optional key
TEXT, LIST = (str, "text"), (list, "a list with something in it")
NUMBER, MAPPING = (int | float, "a number"), (dict, "a mapping")
CLAIM_KEYS: Kinds = {"claim": TEXT, "states": TEXT, "criteria": LIST, "note?": TEXT, "beside?": LIST, "first?": MAPPING}
FIRST_KEYS: Kinds = {"written": TEXT, "changed": TEXT, "why": TEXT, "criteria": LIST}
EVERY_KEYS: Kinds = {"every": TEXT, "of": TEXT, "below?": NUMBER, "above?": NUMBER}
BETTER_KEYS: Kinds = {"better": TEXT, "than": LIST, "in": TEXT, "of": TEXT, "relative_to?": TEXT, "at?": MAPPING}


@dataclass(frozen=True)
class Better:
    """One method is better than another."""

    method: str  # the better one
    other: str  # its rival
    quantity: str  # one of `QUANTITIES`
    place: str  # EXPERIMENT or EXPERIMENT/FOLDER
    relative_to: str | None = None  # a place; the quantity is divided by the value of the same seed there
    at: Mapping[str, float] = field(default_factory=dict)  # hyper-parameter -> value; other settings are excluded

    @property
    def places(self) -> list[str]:
        """Where its runs are."""
        return [place for place in (self.place, self.relative_to) if place]

    @property
    def timed(self) -> bool:
        """Whether it can also be judged after equal seconds."""
        return self.quantity in LOGGED and self.relative_to is None


@dataclass(frozen=True)
class Every:
    """A number is below, or above, a bound in all rows of a list; ``key`` is LIST.FIELD."""

    key: str
    place: str
    bound: float
    below: bool
    timed = False

    @property
    def places(self) -> list[str]:
        """Where its record is."""
        return [self.place]


Criterion = Better | Every


@dataclass(frozen=True)
class FirstWording:
    """Criteria that were replaced; they are still evaluated and shown, but do not count."""

    written: str  # ISO date
    changed: str  # the date of their replacement
    why: str  # the reason, and which outcomes were known
    criteria: Sequence[Criterion]  # as first written


@dataclass(frozen=True)
class Claim:
    """A claim with its criteria."""

    name: str
    claim: str  # in the project's words
    states: str  # in the paper's words
    criteria: Sequence[Criterion]
    beside: Sequence[Criterion] = ()  # judged in the same way, but not counted
    note: str = ""
    first: FirstWording | None = None

    def experiments(self) -> list[str]:
        """Names of its experiments; those of counted criteria come first."""
        before = self.first.criteria if self.first else ()
        tried = [place for criterion in (*self.criteria, *self.beside, *before) for place in criterion.places]
        return list(dict.fromkeys(place.partition("/")[0] for place in tried))


def judge(holds: Sequence[bool | None]) -> str:
    """The verdict on a claim from its criteria, None for an open one.

    Example:
        >>> judge([True, True]), judge([False]), judge([True, False, None]), judge([True, None]), judge([])
        ('reproduced', 'not reproduced', 'partly', 'inconclusive', 'inconclusive')
    """
    if True in holds and False in holds:
        return PARTLY
    if not holds or None in holds:
        return INCONCLUSIVE
    return REPRODUCED if True in holds else NOT


def read_claims(path: Path, experiments: Mapping[str, Experiment]) -> list[Claim]:
    """The claims in a file, in its order.

    Raises:
        UsageError: an invalid entry; names its key.
    """
    try:
        nodes = parse_yaml(path.read_text())
    except YamlError as error:
        raise UsageError(f"{path.name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(nodes, dict) or not nodes:
        raise UsageError(f"{path.name} contains no claims.")
    return [_claim(name, node, experiments, f"{path.name}: {name}") for name, node in nodes.items()]


def _claim(name: str, node: Any, experiments: Mapping[str, Experiment], where: str) -> Claim:
    _check(node, where, CLAIM_KEYS)
    found = dict(node)
    if "first" in node:
        _check(node["first"], f"{where}: first", FIRST_KEYS)
        old = _criteria(node["first"]["criteria"], f"{where}: first: criteria", experiments)
        found["first"] = FirstWording(**node["first"] | {"criteria": old})
    for key in ("criteria", "beside"):
        found[key] = _criteria(node.get(key, []), f"{where}: {key}", experiments)
    return Claim(name, **found)


def _criteria(entries: Sequence[Any], where: str, experiments: Mapping[str, Experiment]) -> list[Criterion]:
    found = [each for i, entry in enumerate(entries) for each in _criterion(entry, f"{where}[{i}]")]
    for criterion in found:
        for place in criterion.places:
            _check_place(place, isinstance(criterion, Every), experiments, where)
    return found


def _criterion(node: Any, where: str) -> Sequence[Criterion]:
    """One criterion per method in ``than``."""
    if isinstance(node, dict) and "every" in node:
        _check(node, where, EVERY_KEYS)
        if ("below" in node) == ("above" in node):
            raise UsageError(f"{where}: give one bound, below or above.")
        if node["every"].count(".") != 1:
            raise UsageError(f"{where}: every is {node['every']}, not LIST.FIELD.")
        below = "below" in node
        return [Every(node["every"], node["of"], float(node["below" if below else "above"]), below)]
    _check(node, where, BETTER_KEYS)
    if node["in"] not in QUANTITIES:
        raise UsageError(f"{where}: in is {node['in']!r}, not one of {', '.join(QUANTITIES)}.")
    at = node.get("at", {})
    _check(at, f"{where}: at", dict.fromkeys(at, NUMBER))
    rest = node["in"], node["of"], node.get("relative_to"), {key: float(value) for key, value in at.items()}
    return [Better(node["better"], str(other), *rest) for other in node["than"]]


def _check(node: Any, where: str, kinds: Kinds) -> None:
    """Check a mapping's keys and the types of its values."""
    if not isinstance(node, dict):
        raise UsageError(f"{where} is not a mapping.")
    known = {key.removesuffix("?"): kind for key, kind in kinds.items()}
    if missing := {key for key in kinds if not key.endswith("?")} - node.keys():
        raise UsageError(f"{where}: {min(missing)} is missing.")
    if unknown := node.keys() - known.keys():
        raise UsageError(f"{where}: there is no key {min(map(str, unknown))}; choose from {', '.join(sorted(known))}.")
    for key, value in node.items():
        kind, called = known[key]
        if not isinstance(value, kind) or isinstance(value, bool) or value == []:
            raise UsageError(f"{where}: {key} is {value!r}, not {called}.")


def _check_place(place: str, is_file: bool, experiments: Mapping[str, Experiment], where: str) -> None:
    name, _, rest = place.partition("/")
    if name not in experiments:
        raise UsageError(f"{where}: there is no experiment {name!r} in experiments.yaml.")
    if is_file and not rest.endswith(".json"):
        raise UsageError(f"{where}: {place} is not EXPERIMENT/FILE.json.")
    if not is_file and rest and rest not in experiments[name].commands:
        folders = ", ".join(experiments[name].commands)
        raise UsageError(f"{where}: {name} has no folder {rest!r}; choose from {folders}.")
