"""Values that come from files: checked when read, cut to a decent length when shown."""

import json
import math
from collections.abc import Mapping
from typing import Any

MAX_NODES, MAX_DEPTH, MAX_SHOWN = 10_000, 30, 200
LARGEST_INTEGER = 2**64  # Python can hold longer ones, and refuses to write out the longest


class BrokenError(Exception):
    """Something in a run folder cannot be used; the message is the reason that the report lists."""


class UsageError(Exception):
    """The report cannot be made; the message is one sentence that says why."""


def plain(value: Any) -> Any:
    """Copy what a YAML or JSON file holds into mappings with string keys, lists, numbers, strings, booleans and None.

    Args:
        value: what the parser made of the file; may refer to itself, or blow up when written out.

    Returns:
        The copy; anything else than the above (dates, bytes, sets) becomes its string.

    Raises:
        BrokenError: it is too large or too deep to be settings or results, or a number in it is.
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
        The value as a float; NaN for None and for what is not finite.

    Raises:
        BrokenError: it is no number.
    """
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BrokenError(f"is {shown(value)}, not a number")
    try:
        result = float(value)
    except OverflowError:
        return math.nan
    return result if math.isfinite(result) else math.nan


def number_or_nan(value: Any) -> float:
    """A number that the report can do without.

    Args:
        value: anything.

    Returns:
        The value as a float; NaN for anything that is no finite number.
    """
    try:
        return number(value)
    except BrokenError:
        return math.nan


def canonical(value: Any) -> str:
    """A string that is equal for equal settings: order of keys and 1 against 1.0 make no difference.

    Args:
        value: as returned by :func:`plain`.

    Returns:
        JSON, keys sorted.
    """

    def same(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {key: same(item) for key, item in node.items()}
        if isinstance(node, list):
            return [same(item) for item in node]
        return int(node) if isinstance(node, float) and node.is_integer() else node

    return json.dumps(same(value), sort_keys=True)


def shown(value: Any) -> str:
    """A value from a file as a short line of printable text.

    Args:
        value: anything.

    Returns:
        Its text; what cannot be printed becomes a replacement mark, long texts are cut.
    """
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):  # ValueError: a number of more digits than Python writes out
        text = str(type(value).__name__)
    text = text[: MAX_SHOWN + 1]
    text = "".join(c if c.isprintable() else " " if c in "\n\t" else "\ufffd" for c in text)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 1] + "…"
