"""Pictures: accuracies as errors, which separate .960 from .976."""

import re

import numpy as np
import pytest
from fake_runs import SGD, SIBP, write_run
from matplotlib.figure import Figure as Canvas

from sibp.analysis.comparison import compare
from sibp.report.blocks import Figure
from sibp.report.curves import curves
from sibp.report.pictures import panels_of, picture
from sibp.runs.collect import collect


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draws a curve of runs with these final losses; the accuracy is exp(-loss)."""

    def drawn(title, ends, **options):
        for seed, end in enumerate(ends):
            write_run(tmp_path / f"sgd-{seed}", SGD, seed, (2.0, 1.0, end))
            write_run(tmp_path / f"sibp-{seed}", SIBP, seed, (2.0, 1.0, 0.5))
        (problem,) = compare(collect([tmp_path]).runs, None, None)
        figures = [block for block in curves(problem, "") if isinstance(block, Figure)]
        (figure,) = (figure for figure in figures if figure.title == title)
        shown = []
        monkeypatch.setattr(Canvas, "savefig", lambda canvas, *_, **__: shown.extend(canvas.axes))
        picture(panels_of(figure), "svg", **options)
        return shown

    return drawn


def test_accuracies_are_drawn_as_errors_on_a_logarithmic_axis(draw):
    for axes in draw("val acc", [0.3, 0.2, 0.1]):
        assert (axes.get_title(), axes.get_ylabel(), axes.get_yscale()) == ("val acc", "1 − val acc", "log")
        sgd = next(line for line in axes.lines if "sgd" in str(line.get_label()))
        assert sgd.get_ydata() == pytest.approx(1 - np.exp([-2.0, -1.0, -0.2]))
        band = axes.collections[0].get_paths()[0].vertices[:, 1]
        assert band.min() == pytest.approx(1 - np.exp(-0.1))


def test_no_error_at_all_is_half_the_smallest_one_there(draw):
    first, _ = draw("val acc", [0.1, 0.0, 0.0])
    sgd = next(line for line in first.lines if "sgd" in str(line.get_label()))
    assert sgd.get_ydata()[-1] == pytest.approx((1 - np.exp(-0.1)) / 2)


def test_losses_are_drawn_as_they_are(draw):
    for axes in draw("val loss", [0.3, 0.2, 0.1]):
        assert (axes.get_ylabel(), axes.get_yscale()) == ("val loss", "log")
        sgd = next(line for line in axes.lines if "sgd" in str(line.get_label()))
        assert sgd.get_ydata() == pytest.approx([2.0, 1.0, 0.2])


def test_pictures_do_not_depend_on_the_last_bits_of_a_logarithm(tmp_path):
    """Which differ from processor to processor."""

    def svg(name, factor):
        write_run(tmp_path / name / "sgd", SGD, 0, tuple(factor * 2 * 0.95**k for k in range(80)))
        (problem,) = compare(collect([tmp_path / name]).runs, None, None)
        figure = next(block for block in curves(problem, "") if isinstance(block, Figure) and block.title == "val loss")
        return picture(panels_of(figure), "svg")

    once = svg("once", 1.0)
    assert svg("again", 1 + 1e-9) == once
    assert svg("elsewhere", 1.01) != once
    assert b"scale(0.015625)" in once  # the size of letters is not a position


def test_every_word_is_in_one_view_of_a_panel_or_of_the_legend(tmp_path):
    """A narrow page shows these views one by one, so that nothing may be missing or shown twice."""
    for seed in range(3):
        write_run(tmp_path / f"sgd-{seed}", SGD, seed, (2.0, 1.0, 0.5))
        write_run(tmp_path / f"sibp-{seed}", SIBP, seed, (2.0, 1.0, 0.25))
    (problem,) = compare(collect([tmp_path]).runs, None, None)
    figures = [block for block in curves(problem, "") if isinstance(block, Figure)][:2]
    svg = picture([panel for figure in figures for panel in panels_of(figure)], "svg").decode()
    views = {
        name: tuple(map(float, area.split())) for name, area in re.findall(r'<view id="(.*?)" viewBox="(.*?)"', svg)
    }
    assert list(views) == ["panel-1", "legend-1", "legend-2", "panel-2", "panel-3", "panel-4"]
    words: dict[str, list[str]] = {name: [] for name in views}
    for word, *place in re.findall(r"<!-- (.*?) -->\s*<g [^>]*translate\(([-\d.]+) ([-\d.]+)\)", svg):
        x, y = map(float, place)
        inside = [name for name, (left, top, w, h) in views.items() if left <= x <= left + w and top <= y <= top + h]
        assert len(inside) == 1, f"{word} is in {inside}"
        words[inside[0]].append(word)
    for name in ("panel-1", "panel-3"):
        assert "training steps" in words[name]
    for name in ("panel-2", "panel-4"):
        assert "training seconds" in words[name]
    assert [len(words[f"legend-{i}"]) for i in (1, 2)] == [1, 1]
