"""Which module draws which page's pictures."""

from collections.abc import Callable
from typing import Any

import neuron

Artist = Callable[[dict[str, Any]], dict[str, str]]
"""Takes the names that a page's code defined, and answers the SVG text of its pictures by file name."""

ARTISTS: dict[str, Artist] = {
    "01-neuron": neuron.draw,
}
