"""Every shipped method has a style of its own, whatever else is in the picture, and also without colour."""

from collections import Counter

import numpy as np
import pytest
import yaml

from sibp.experiment.compose import CONFIGS, compose
from sibp.report.blocks import Figure, Line
from sibp.report.pictures import picture
from sibp.report.styles import DASHES, FIXED, KNOWN, MARKS, styles
from sibp.runs.identity import method_name

OPTIMIZERS = sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml"))
SWEEPS = [yaml.safe_load(path.read_text()) for path in sorted((CONFIGS / "sweep").glob("*.yaml"))]
NAMED = [(name, node) for sweep in SWEEPS for name, node in sweep.get("methods", {}).items() if node]
TUNED = {(name, *node["overrides"]) for name, node in NAMED if "overrides" in node}


def reported(*overrides: str) -> str:
    return method_name(compose(["optimizer.lr=1", *overrides])["optimizer"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizer_has_a_fixed_style(optimizer):
    assert reported(f"optimizer={optimizer}") in KNOWN


def test_every_method_of_a_sweep_has_one_fixed_style_under_both_its_names():
    assert len(TUNED) > 40
    assert {name for name, _ in NAMED} <= set(KNOWN)
    for name, *overrides in sorted(TUNED):
        found = reported(*overrides)
        if (name, found) != ("proxprop", "proxprop cg:3 adam"):  # ProxProp's other outer optimizer
            assert KNOWN[found] == KNOWN[name], (name, found)


def test_styles_are_distinct_with_and_without_colour():
    names = Counter(name for each in FIXED.values() for name in each)
    assert max(names.values()) == 1
    assert all(style.dash in DASHES and style.mark in MARKS for style in FIXED)
    assert len({(style.colour, style.dash) for style in FIXED}) == len(FIXED)
    assert len({(style.dash, style.mark) for style in FIXED}) == len(FIXED)


def luminance(colour: str) -> float:
    red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
    return 0.299 * red + 0.587 * green + 0.114 * blue


@pytest.mark.parametrize(
    "together",
    [
        ("sgd", "adam", "proxbp", "sibp cg:3", "sibp cg:5", "sibp exact"),
        ("sgd", "sibp_auto", "sibp cg:3", "sibp cg:5"),
        ("muon", "proxbp muon", "sibp muon cg:3", "sibp_auto"),
    ],
)
def test_lines_most_shown_together_differ_in_grey_by_dash_or_plainly_by_lightness(together):
    found = [KNOWN[name] for name in together]
    for i, first in enumerate(found):
        for second in found[:i]:
            assert first.dash != second.dash or abs(luminance(first.colour) - luminance(second.colour)) > 40


def test_a_fixed_style_does_not_change_with_the_company():
    strangers = [f"mine {i}" for i in range(9)]
    found = styles([*strangers, *KNOWN])
    assert {name: found[name] for name in KNOWN} == KNOWN
    assert len({(style.colour, style.dash) for style in found.values()}) == len(FIXED) + len(strangers)


def test_long_curves_carry_about_ten_markers(monkeypatch):
    from matplotlib.axes import Axes

    drawn = []
    monkeypatch.setattr(Axes, "plot", lambda self, *_, **options: drawn.append(options))
    x = np.arange(300.0)
    picture([(Figure("name", "title", "x", "y", [Line("sgd", "sgd", x, x)]), "x")], "svg")
    assert [(each["marker"], each["markevery"]) for each in drawn] == [("s", 30)]
