"""One colour, dash and marker per method, the same in every picture of the project.

The colours are those of Okabe and Ito, safe for colour-blind readers, with violet, grey, brown and olive added. No two
methods have the same dash and marker, so that they also differ without colour.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

BLUE, RED, GREEN, PINK, ORANGE = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00"
SKY, VIOLET, GREY, BROWN, OLIVE = "#56b4e9", "#7b5ea7", "#8a8f98", "#8c564b", "#999933"
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY, VIOLET, GREY, BROWN, OLIVE)
DASHES = {  # plotly's name -> matplotlib's
    "solid": "-",
    "dash": "--",
    "dot": ":",
    "dashdot": "-.",
    "longdash": (0, (9, 3)),
    "longdashdot": (0, (9, 3, 2, 3)),
}
MARKS = {  # plotly's name -> matplotlib's
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
    "star": "*",
    "triangle-left": "<",
    "triangle-right": ">",
    "pentagon": "p",
}
MARKED = 10  # markers on a curve, approximately
GRID, MUTED = "#e3e6ea", "#b9c0c8"


@dataclass(frozen=True)
class Style:
    """A method's style; dash and mark are plotly's names."""

    colour: str
    dash: str
    mark: str


FIXED = {  # style -> the method's name in sweeps and the arena, then its name in reports if that is different
    Style(ORANGE, "dash", "square"): ["sgd"],
    Style(ORANGE, "dot", "square"): ["nesterov"],
    Style(ORANGE, "solid", "cross"): ["aprox"],
    Style(ORANGE, "longdashdot", "square"): ["sls constant"],
    Style(ORANGE, "longdash", "circle"): ["sibp momentum cg:3", "sibp_momentum cg:3"],
    Style(ORANGE, "dashdot", "square"): ["sibp momentum exact", "sibp_momentum exact"],
    Style(PINK, "dot", "triangle-up"): ["adam"],
    Style(PINK, "dash", "triangle-left"): ["adam cosine"],
    Style(PINK, "dashdot", "triangle-up"): ["adamw"],
    Style(PINK, "longdashdot", "triangle-left"): ["adamw cosine"],
    Style(PINK, "longdash", "triangle-up"): ["prodigy"],
    Style(PINK, "solid", "square"): ["sibp adam cg:3", "sibp_adam cg:3"],
    Style(GREEN, "dashdot", "diamond"): ["proxbp", "proxbp exact"],
    Style(GREEN, "longdash", "diamond"): ["proxbp cg:5"],
    Style(GREEN, "dot", "diamond"): ["proxbp momentum", "proxbp_momentum exact", "proxprop", "proxprop exact sgd"],
    Style(GREEN, "longdashdot", "triangle-up"): ["proxprop cg:3 adam"],
    Style(GREEN, "dash", "triangle-up"): ["proxbp adam", "proxbp_adam exact"],
    Style(GREEN, "solid", "triangle-left"): ["proxbp muon", "proxbp_muon exact"],
    Style(BROWN, "longdash", "triangle-down"): ["muon"],
    Style(BROWN, "dot", "cross"): ["soap"],
    Style(BROWN, "longdashdot", "diamond"): ["kfac", "kfac categorical", "kfac bernoulli"],
    Style(BROWN, "solid", "diamond"): ["kfac adaptive", "kfac_adaptive categorical", "kfac_adaptive bernoulli"],
    Style(BROWN, "dash", "star"): ["foof"],
    Style(BROWN, "dashdot", "cross"): ["lbfgs"],
    Style(OLIVE, "dash", "triangle-down"): ["locoprop S", "locoprop softmax squared", "locoprop sigmoid squared"],
    Style(OLIVE, "dashdot", "triangle-down"): ["locoprop M", "locoprop softmax matching", "locoprop sigmoid matching"],
    Style(OLIVE, "dot", "triangle-left"): ["bcd"],
    Style(OLIVE, "longdash", "triangle-left"): ["dtp"],
    Style(GREY, "dash", "cross"): ["adagrad"],
    Style(GREY, "dot", "triangle-down"): ["rmsprop"],
    Style(GREY, "dashdot", "star"): ["schedule free", "schedule_free constant"],
    Style(BLUE, "dot", "circle"): ["sibp cg:1"],
    Style(BLUE, "solid", "circle"): ["sibp cg:3"],
    Style(BLUE, "dash", "circle"): ["sibp cg:3 old"],
    Style(BLUE, "longdashdot", "cross"): ["sibp cg:10"],
    Style(BLUE, "longdash", "cross"): ["sibp cg:20"],
    Style(BLUE, "dashdot", "circle"): ["sibp growing cg:3", "sibp_growing cg:3"],
    Style(SKY, "solid", "triangle-down"): ["sibp cg:5"],
    Style(SKY, "longdash", "pentagon"): ["sibp_momentum cg:5"],
    Style(SKY, "dot", "triangle-right"): ["sibp_adam cg:5"],
    Style(SKY, "longdashdot", "pentagon"): ["sibp_muon cg:5"],
    Style(SKY, "dashdot", "pentagon"): ["sibp_growing cg:5"],
    Style(VIOLET, "longdashdot", "circle"): ["sibp exact"],
    Style(VIOLET, "dot", "pentagon"): ["sibp foof", "sibp_foof"],
    Style(VIOLET, "dashdot", "triangle-right"): ["sibp cg:2"],
    Style(VIOLET, "dash", "triangle-right"): ["sibp cg:4"],
    Style(VIOLET, "longdash", "triangle-right"): ["sibp cg:7"],
    Style(VIOLET, "solid", "triangle-right"): ["sibp cg:15"],
    Style(RED, "dot", "star"): ["sibp paper"],
    Style(RED, "dash", "diamond"): ["sibp_auto", "sibp auto"],
    Style(RED, "longdashdot", "triangle-down"): ["sibp muon cg:3", "sibp_muon cg:3"],
}
KNOWN = {name: style for style, names in FIXED.items() for name in names}


def styles(names: Iterable[str]) -> dict[str, Style]:
    """A style for each method: its fixed style, or one that no other of these methods has.

    Example:
        >>> styles(["mine", "sgd"])["sgd"] == KNOWN["sgd"]
        True
    """
    ordered, dashes, marks = dict.fromkeys(names), list(DASHES), list(MARKS)
    used = {(KNOWN[name].colour, KNOWN[name].dash) for name in ordered if name in KNOWN}
    free = (
        Style(colour, dashes[(i + j) % len(dashes)], marks[(i + j) % len(marks)])
        for i, (j, colour) in product(range(len(dashes)), enumerate(COLOURS))
    )
    spare = (style for style in free if (style.colour, style.dash) not in used)
    return {name: KNOWN.get(name) or next(spare, Style(BLUE, "solid", "circle")) for name in ordered}
