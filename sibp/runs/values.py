"""Values from files: checked when read, shortened when shown."""

import json
import math
from collections.abc import Mapping
from typing import Any

MAX_NODES, MAX_DEPTH, MAX_SHOWN = 10_000, 30, 200
LARGEST_INTEGER = 2**64  # Python refuses to convert integers of thousands of digits to text


class BrokenError(Exception):
    """A run folder's content cannot be used; the message is the reason shown in the report."""


class UsageError(Exception):
    """The report cannot be made; the message is one sentence that says why."""


def plain(value: Any) -> Any:
    """Copy parsed YAML or JSON into mappings with string keys, lists, numbers, strings, booleans and None.

    Args:
        value: the parser's result; may be recursive, or expand exponentially.

    Returns:
        The copy; other types (dates, bytes, sets) become strings.

    Raises:
        BrokenError: it is too large or too deep for settings or results, or contains an invalid number.
    """
    left = MAX_NODES

    def copy(node: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth > MAX_DEPTH:
            raise BrokenError("is too large or too deep")
        if isinstance(node, Mapping):
            return {str(key): copy(item, depth + 1) for key, item in node.items()}
        if isinstance(node, list):
            return [copy(item, depth + 1) for item in node]
        if isinstance(node, int) and abs(node) > LARGEST_INTEGER:
            raise BrokenError("holds a whole number of too many digits")
        return node if node is None or isinstance(node, bool | int | float | str) else str(node)

    return copy(value, 0)


def number(value: Any) -> float:
    """A number read from a file.

    Args:
        value: anything.

    Returns:
        The value as a float; NaN for None and non-finite values.

    Raises:
        BrokenError: it is not a number.
    """
    if value is None:
        return math.nan
    if not _is_number(value):
        raise BrokenError(f"is {shown(value)}, not a number")
    try:
        result = float(value)
    except OverflowError:
        return math.nan
    return result if math.isfinite(result) else math.nan


def number_or_nan(value: Any) -> float:
    """The value as a float; NaN for anything but a finite number."""
    return number(value) if _is_number(value) else math.nan


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def canonical(value: Any) -> str:
    """A string that is equal for equal settings, whatever the order of keys; 1 equals 1.0.

    Args:
        value: as returned by `plain`.

    Returns:
        JSON with sorted keys.
    """

    def same(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: same(item) for key, item in node.items()}
        if isinstance(node, list):
            return [same(item) for item in node]
        return int(node) if isinstance(node, float) and node.is_integer() else node

    return json.dumps(same(value), sort_keys=True)


def leaves(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys.

    Example:
        >>> leaves({"model": {"name": "mlp", "hidden": [500]}, "seed": 0})
        {'model.name': 'mlp', 'model.hidden': [500], 'seed': 0}
    """
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return found


def brief(value: Any) -> str:
    """A setting as text: as `shown`, but a float with at most six digits."""
    return f"{value:g}" if isinstance(value, float) else shown(value)


def shown(value: Any) -> str:
    """A value from a file as one short line of printable text.

    Args:
        value: anything.

    Returns:
        Its text; unprintable characters are replaced, long texts cut.
    """
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # ValueError: a number of more digits than Python writes out
        text = str(type(value).__name__)
    text = text[: MAX_SHOWN + 1]
    if not text.isprintable():
        text = "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in text)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
