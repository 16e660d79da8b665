"""Pictures of benchmarks: each method's own colour, and rows of few enough groups to read their names."""

import math

import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure as Canvas

from sibp.analysis.statistics import Estimate
from sibp.bench.bars import Bars, save_bars
from sibp.report.styles import KNOWN


@pytest.fixture
def draw(monkeypatch, tmp_path):
    """Draws bars and returns their axes."""
    canvases = []
    monkeypatch.setattr(Canvas, "savefig", lambda self, *_, **__: canvases.append(self))

    def drawn(figure):
        save_bars(figure, tmp_path / "bars.png")
        return canvases[-1].axes

    return drawn


def bars(groups, **heights):
    places = [f"net {group}" for group in range(groups)]
    return Bars("name", "title", "", "x SGD", [], places=places, bars=heights, marks={})


def at(value):
    return Estimate(value, value, value, 1)


def test_each_method_has_its_own_colour(draw):
    solvers = {"exact": [at(1.0)], "cg:3": [at(2.0)]}
    (axes,) = draw(bars(1, **solvers, adam=[at(3.0)], proxbp=[at(4.0)]))
    colours = {c.get_label(): to_hex(c.patches[0].get_facecolor()) for c in axes.containers if c.get_label()[0] != "_"}
    methods = {"exact": "sibp exact", "cg:3": "sibp cg:3", "adam": "adam", "proxbp": "proxbp"}
    assert colours == {name: KNOWN[method].colour for name, method in methods.items()}


@pytest.mark.parametrize(("groups", "rows"), [(1, [1]), (5, [5]), (6, [3, 3]), (11, [4, 4, 3])])
def test_groups_are_drawn_once_in_short_rows(draw, groups, rows):
    axes = draw(bars(groups, exact=[at(float(group)) for group in range(groups)]))
    assert [len(each.get_xticklabels()) for each in axes] == rows
    labels = [label.get_text() for each in axes for label in each.get_xticklabels()]
    assert labels == [f"net {group}" for group in range(groups)]
    heights = [patch.get_height() for each in axes for patch in each.patches]
    assert heights == [float(group) for group in range(groups)]


def test_a_missing_height_leaves_a_gap(draw):
    axes = draw(bars(6, exact=[at(1.0), None, at(3.0), at(math.inf), at(5.0), at(6.0)]))
    found = [(patch.get_x() + patch.get_width() / 2, patch.get_height()) for each in axes for patch in each.patches]
    assert found == [(0.0, 1.0), (2.0, 3.0), (1.0, 5.0), (2.0, 6.0)]
