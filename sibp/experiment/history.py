"""The environments of a run's parts: a resumed run may have continued with other code, threads or device."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

UNTIL = "until_step"
PASSING = ("load", "command", UNTIL)  # entries that differ between any two processes
Environment = Mapping[str, Any]


def earlier_environments(checkpoint: Mapping[str, Any], now: Environment | None) -> list[Environment]:
    """The environments that a run had before this process, each with the step that it ended at.

    Args:
        checkpoint: from which the run is resumed; early ones name no environment.
        now: that of this process.

    Returns:
        Those of the checkpoint, and its own if it differs from this process's.
    """
    earlier, last = list(checkpoint.get("earlier_environments", ())), checkpoint.get("environment")
    if now is None or not last or not differences(last, now):
        return earlier
    return [*earlier, {**last, UNTIL: checkpoint["step"]}]


def differences(before: Environment, after: Environment) -> list[str]:
    """The names of the entries that differ, such as ``my_methods`` (a plug-in), ``torch`` or ``threads``."""
    found = []
    for key in (*before, *(key for key in after if key not in before)):
        one, other = before.get(key), after.get(key)
        if key in PASSING or one == other:
            continue
        named = isinstance(one or {}, Mapping) and isinstance(other or {}, Mapping)  # versions, plugins
        found += differences(one or {}, other or {}) if named else [key]
    return found


def notes_of(earlier: Sequence[Environment], now: Environment | None) -> list[str]:
    """A sentence for every resumption in another environment.

    Args:
        earlier: as from `earlier_environments`.
        now: that of this process.

    Returns:
        Such as ``resumed at step 200 with another my_methods, threads``.
    """
    pairs = pairwise([*earlier, now or {}])
    return [f"resumed at step {a[UNTIL]} with another {', '.join(differences(a, b))}" for a, b in pairs]
