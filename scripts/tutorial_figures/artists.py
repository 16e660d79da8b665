"""The module that draws each page's pictures."""

from collections.abc import Callable
from typing import Any

import derivatives
import explicit
import fixed
import forward
import graph
import neuron
import proximal
import span

Artist = Callable[[dict[str, Any]], dict[str, str]]
"""Takes the names that a page's code defined, and returns SVG text by file name."""

ARTISTS: dict[str, Artist] = {
    "01-neuron": neuron.draw,
    "02-forward": forward.draw,
    "03-derivatives": derivatives.draw,
    "04-graph": graph.draw,
    "05-explicit-steps": explicit.draw,
    "06-proximal-steps": proximal.draw,
    "07-span-trick": span.draw,
    "08-fixed-points": fixed.draw,
}
