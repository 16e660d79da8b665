"""The meaning of every setting, for ``sibp train --help`` and docs/settings.md.

The comments in configs/ are the single source: ``key: default  # [unit or choices] meaning``. An option inherits the
comments of the options in its ``defaults``, as it inherits their values.
"""

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from sibp.experiment.overrides import unknown_option
from sibp.runs.errors import UserError

LINE = re.compile(r"(?P<key>\w+): (?P<default>.*?)(?:\s+# \[(?P<unit>[^]]*)] ?(?P<meaning>.*))?$")
PARENT = re.compile(r"  - (\w+)$", re.MULTILINE)
GROUPS = ("dataset", "model", "optimizer")
WIDTH = 100  # characters of a line of the help


@dataclass(frozen=True)
class Setting:
    """One setting.

    Attributes:
        key: as typed, without its group.
        default: as YAML writes it.
        unit: a unit, a range, ``-`` for a number without a unit, or choices separated by ``|``; empty if not given.
        meaning: in words; may be empty.
    """

    key: str
    default: str
    unit: str = ""
    meaning: str = ""

    @property
    def choices(self) -> list[str]:
        """The values to choose from; empty if there is no list of them."""
        return [choice.strip() for choice in self.unit.split("|")] if "|" in self.unit else []


def of_run(places: Sequence[Path]) -> list[Setting]:
    """The settings that belong to no group.

    Args:
        places: folders of configs, that of ``config.yaml`` first.

    Returns:
        In the order of the file.
    """
    text = (places[0] / "config.yaml").read_text().split("\nhydra:")[0]
    return list(_read(text))


def of_option(places: Sequence[Path], group: str, option: str) -> list[Setting]:
    """The settings of one option of a group.

    Args:
        places: folders of configs.
        group: such as ``optimizer``.
        option: such as ``sibp``.

    Returns:
        Inherited settings first; without ``name``, which is not a setting.
    """
    text = _file(places, group, option).read_text()
    found: dict[str, Setting] = {}
    for parent in PARENT.findall(text):
        if parent != "_self_":
            found |= {setting.key: setting for setting in of_option(places, group, parent)}
    for setting in _read(text):
        if setting.key in found and not setting.unit:
            setting = replace(found[setting.key], default=setting.default)
        found[setting.key] = setting
    found.pop("name", None)
    return list(found.values())


def options(places: Sequence[Path], group: str) -> list[str]:
    """The options of a group.

    Args:
        places: folders of configs.
        group: such as ``optimizer``.

    Returns:
        Their names.
    """
    return sorted(path.stem for place in places for path in (place / group).glob("*.yaml"))


def about(places: Sequence[Path], group: str, option: str) -> str:
    """The description of an option: the comment above its settings.

    Args:
        places: folders of configs.
        group: such as ``optimizer``.
        option: such as ``sibp``.

    Returns:
        One paragraph; empty if there is none.
    """
    lines = _file(places, group, option).read_text().splitlines()
    first = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    return " ".join(line.removeprefix("#").strip() for line in lines[:first])


def in_text(places: Sequence[Path], chosen: Mapping[str, str]) -> str:
    """The reference for a terminal.

    Args:
        places: folders of configs.
        chosen: group -> option, whose settings are shown.

    Returns:
        Lines.

    Raises:
        UserError: a group has no such option.
    """
    lines = [*_lines("", of_run(places))]
    for group in GROUPS:
        found = of_option(places, group, chosen[group])
        if found:
            lines += ["", f"{group}={chosen[group]}", *_lines(f"{group}.", found)]
    return "\n".join(lines)


def _file(places: Sequence[Path], group: str, option: str) -> Path:
    for place in places:
        if (path := place / group / f"{option}.yaml").exists():
            return path
    raise UserError(unknown_option(group, option, options(places, group)))


def _lines(prefix: str, settings: list[Setting]) -> Iterator[str]:
    width = max(len(f"{prefix}{setting.key}={setting.default}") for setting in settings) + 4
    for setting in settings:
        unit = "" if setting.unit in ("", "-") else f"[{setting.unit}] "
        line = f"  {prefix}{setting.key}={setting.default}".ljust(width)
        yield textwrap.fill(line + unit + setting.meaning, WIDTH, subsequent_indent=" " * width, break_on_hyphens=False)


def _read(text: str) -> Iterator[Setting]:
    for line in text.splitlines():
        if match := LINE.match(line):
            yield Setting(match["key"], match["default"].strip(), match["unit"] or "", match["meaning"] or "")
