"""One colour, dash and marker per method, the same in every picture of the project.

The colours are Okabe and Ito's, safe for the colour-blind; dashes and markers distinguish methods in grey.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7b5ea7", "#8a8f98")
DASHES = {  # plotly's name -> matplotlib's
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 3, 2, 3)),
}
MARKS = {"circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "P"}
GRID, MUTED = "#e3e6ea", "#b9c0c8"


@dataclass(frozen=True)
class Style:
    """A method's style; dash and mark are plotly's names."""

    colour: str
    dash: str
    mark: str


KNOWN = {
    "sgd": Style("#e69f00", "dash", "square"),
    "nesterov": Style("#e69f00", "dot", "square"),
    "adam": Style("#cc79a7", "dot", "triangle-up"),
    "adamw": Style("#cc79a7", "dashdot", "triangle-up"),
    "proxbp": Style("#009e73", "dashdot", "diamond"),
    "proxbp exact": Style("#009e73", "dashdot", "diamond"),
    "proxbp cg:5": Style("#009e73", "longdash", "diamond"),
    "sibp cg:3": Style("#0072b2", "solid", "circle"),
    "sibp cg:5": Style("#56b4e9", "solid", "triangle-down"),
    "sibp cg:20": Style("#0072b2", "longdash", "cross"),
    "sibp exact": Style("#7b5ea7", "longdashdot", "circle"),
    "sibp paper": Style("#d55e00", "longdash", "cross"),
    "sibp_auto": Style("#d55e00", "solid", "diamond"),
    "sibp muon cg:3": Style("#d55e00", "dash", "circle"),
    "sibp adam cg:3": Style("#cc79a7", "solid", "square"),
    "sibp momentum cg:3": Style("#e69f00", "longdash", "circle"),
    "sibp momentum exact": Style("#e69f00", "dashdot", "triangle-up"),
    "proxbp momentum": Style("#009e73", "dot", "square"),
    "muon": Style("#8c564b", "dash", "triangle-down"),
    "soap": Style("#8c564b", "dot", "cross"),
    "kfac": Style("#8c564b", "longdash", "diamond"),
}


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each method: its fixed one, or one that no other method here has.

    Example:
        >>> styles(["mine", "sgd"])["sgd"] == KNOWN["sgd"]
        True
    """
    ordered = list(dict.fromkeys(names))
    found = {name: KNOWN[name] for name in ordered if name in KNOWN}
    dashes, marks = list(DASHES), list(MARKS)
    used = {(style.colour, style.dash) for style in found.values()}
    free = (
        Style(colour, dashes[(i + j) % len(dashes)], marks[(i + j) % len(marks)])
        for i, (j, colour) in product(range(len(dashes)), enumerate(COLOURS))
    )
    spare = (style for style in free if (style.colour, style.dash) not in used)
    for name in ordered:
        if name not in found:
            found[name] = next(spare, Style(COLOURS[0], "solid", "circle"))
    return {name: found[name] for name in ordered}
