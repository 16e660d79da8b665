"""What the paper claims, as data, and the verdict on a claim.

**A criterion** holds or does not, as far as the kept runs say; it is open as long as they do not. That one method is
better than another holds if the verdict of the report, on seeds that both share, is "better"; "no difference" and
"worse" both mean that it does not hold.

**The verdict on a claim** is *reproduced* if all its criteria hold, *not reproduced* if none does, and *partly* if some
hold and some do not. It is *inconclusive* as long as an open criterion could change that.

**p by Holm** is that of a sign test over the seeds, step by step, corrected for the number of comparisons in its table.
With five seeds it is never below .0625, however clear the outcome; with ten, one split of ten to none is .002.

**Per second** is the same verdict, by the same criteria after equal training seconds, where they have such a figure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sibp.runs.values import UsageError
from sibp.runs.yaml_file import YamlError, parse_yaml
from sibp.study.experiments import Experiment

REPRODUCED, PARTLY, NOT, INCONCLUSIVE = "reproduced", "partly", "not reproduced", "inconclusive"
TRAINING_LOSS, WIDTH, LARGEST = "training loss", "width of step sizes", "largest step size"
RANGE, REACH, ROOM = "range of step sizes", "reach above the best step size", "room before divergence"
TIMED = (TRAINING_LOSS, "training accuracy", "validation accuracy")  # logged during training
QUANTITIES = (*TIMED, "test accuracy", WIDTH, LARGEST, RANGE, REACH, ROOM)


@dataclass(frozen=True)
class Better:
    """That a method is better than another one.

    Attributes:
        method: of which it is said.
        other: the one it is compared with.
        quantity: one of `QUANTITIES`.
        place: EXPERIMENT or EXPERIMENT/FOLDER.
        relative_to: likewise; the quantity is divided by the same seed's there.
        at: hyper-parameter -> value; settings with others do not count.
    """

    method: str
    other: str
    quantity: str
    place: str
    relative_to: str | None = None
    at: Mapping[str, float] = field(default_factory=dict)

    @property
    def places(self) -> list[str]:
        """Where it is looked at."""
        return [self.place, *([self.relative_to] if self.relative_to else [])]


@dataclass(frozen=True)
class Every:
    """That a number lies below, or above, a bound in all rows of a list; ``key`` is LIST.FIELD."""

    key: str
    place: str
    bound: float
    below: bool

    @property
    def places(self) -> list[str]:
        """Where it is looked at."""
        return [self.place]


Criterion = Better | Every


@dataclass(frozen=True)
class FirstWording:
    """Criteria that were given up for others, with what they come to: they count no more, and are not forgotten.

    Attributes:
        written: the day on which they were.
        changed: the day on which others took their place.
        why: and what was known by then.
        criteria: as they were.
    """

    written: str
    changed: str
    why: str
    criteria: Sequence[Criterion]


@dataclass(frozen=True)
class Claim:
    """A claim: in our words, in the paper's, and what would show it."""

    name: str
    claim: str
    states: str
    criteria: Sequence[Criterion]
    beside: Sequence[Criterion] = ()
    note: str = ""
    first: FirstWording | None = None

    def experiments(self) -> list[str]:
        """Names of the experiments that it is tried by, those that count first."""
        before = self.first.criteria if self.first else ()
        tried = [place for criterion in (*self.criteria, *self.beside, *before) for place in criterion.places]
        return list(dict.fromkeys(place.partition("/")[0] for place in tried))


def judge(holds: Sequence[bool | None]) -> str:
    """The verdict on a claim.

    Args:
        holds: of every criterion, None for one that is open.

    Returns:
        One of `REPRODUCED`, `PARTLY`, `NOT`, `INCONCLUSIVE`.

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
    """Read the claims.

    Args:
        path: the file.
        experiments: those that criteria may name.

    Returns:
        The claims, in the file's order.

    Raises:
        UsageError: an entry is wrong; names its key.
    """
    try:
        nodes = parse_yaml(path.read_text())
    except YamlError as error:
        raise UsageError(f"{path.name} is no YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(nodes, dict) or not nodes:
        raise UsageError(f"{path.name} holds no claims.")
    return [_claim(name, node, experiments, f"{path.name}: {name}") for name, node in nodes.items()]


def _claim(name: str, node: Any, experiments: Mapping[str, Experiment], where: str) -> Claim:
    _check_keys(node, {"claim", "states", "criteria"}, {"note", "beside", "first"}, where)
    _check_texts(node, ("claim", "states", "note"), where)
    counted = _list_of(node, "criteria", experiments, where)
    beside = _list_of(node, "beside", experiments, where) if "beside" in node else []
    first = _first(node["first"], experiments, f"{where}: first") if "first" in node else None
    return Claim(name, node["claim"], node["states"], counted, beside, node.get("note", ""), first)


def _first(node: Any, experiments: Mapping[str, Experiment], where: str) -> FirstWording:
    _check_keys(node, {"written", "changed", "why", "criteria"}, set(), where)
    _check_texts(node, ("why",), where)
    criteria = _list_of(node, "criteria", experiments, where)
    return FirstWording(str(node["written"]), str(node["changed"]), node["why"], criteria)


def _list_of(node: Mapping[str, Any], key: str, experiments: Mapping[str, Experiment], where: str) -> list[Criterion]:
    entries = node[key]
    if not isinstance(entries, list) or (key == "criteria" and not entries):
        raise UsageError(f"{where}: {key} is no list of criteria.")
    found = [each for i, entry in enumerate(entries) for each in _criteria(entry, f"{where}: {key}[{i}]")]
    for criterion in found:
        for place in criterion.places:
            _check_place(place, isinstance(criterion, Every), experiments, f"{where}: {key}")
    return found


def _check_texts(node: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in keys:
        if not isinstance(node.get(key, ""), str):
            raise UsageError(f"{where}: {key} is no text.")


def _criteria(node: Any, where: str) -> list[Criterion]:
    """One criterion for each method named by ``than``."""
    if isinstance(node, dict) and "every" in node:
        _check_keys(node, {"every", "of"}, {"below", "above"}, where)
        if ("below" in node) == ("above" in node):
            raise UsageError(f"{where}: give one bound, below or above.")
        side = "below" if "below" in node else "above"
        if str(node["every"]).count(".") != 1:
            raise UsageError(f"{where}: every is {node['every']}, not LIST.FIELD.")
        return [Every(str(node["every"]), str(node["of"]), _number(node[side], f"{where}: {side}"), side == "below")]
    _check_keys(node, {"better", "than", "in", "of"}, {"relative_to", "at"}, where)
    if node["in"] not in QUANTITIES:
        raise UsageError(f"{where}: in is {node['in']!r}, not one of {', '.join(QUANTITIES)}.")
    others, at = node["than"], node.get("at", {})
    if not isinstance(others, list) or not others:
        raise UsageError(f"{where}: than is no list of methods.")
    if not isinstance(at, dict):
        raise UsageError(f"{where}: at is no mapping of hyper-parameters to numbers.")
    only = {str(key): _number(value, f"{where}: at.{key}") for key, value in at.items()}
    base = node.get("relative_to")
    return [
        Better(str(node["better"]), str(other), node["in"], str(node["of"]), None if base is None else str(base), only)
        for other in others
    ]


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UsageError(f"{where} is {value!r}, not a number.")
    return float(value)


def _check_keys(node: Any, needed: set[str], allowed: set[str], where: str) -> None:
    if not isinstance(node, dict):
        raise UsageError(f"{where} is no mapping.")
    if missing := needed - node.keys():
        raise UsageError(f"{where}: {min(missing)} is missing.")
    if unknown := node.keys() - needed - allowed:
        known = ", ".join(sorted(needed | allowed))
        raise UsageError(f"{where}: there is no key {min(map(str, unknown))}; choose from {known}.")


def _check_place(place: str, is_file: bool, experiments: Mapping[str, Experiment], where: str) -> None:
    name, _, rest = place.partition("/")
    if name not in experiments:
        raise UsageError(f"{where}: there is no experiment {name!r} in experiments.yaml.")
    if is_file and not rest.endswith(".json"):
        raise UsageError(f"{where}: {place} is not EXPERIMENT/FILE.json.")
    if not is_file and rest and rest not in experiments[name].commands:
        folders = ", ".join(experiments[name].commands)
        raise UsageError(f"{where}: {name} has no folder {rest!r}; choose from {folders}.")
