"""The page in a real browser: operated like a reader would, and read back."""

import html as html_text
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fake_runs import PROXBP, SGD, SIBP, write_run

from sibp.report.__main__ import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]

# The page in a frame as wide as a phone or a window; runs what a test asks for inside, and says what came of it.
FRAME = """<body style="margin:0">
<iframe src="report.html" style="width:WIDTHpx;height:30000px;border:0"></iframe><script>
onload = () => setTimeout(async () => {
  const frame = document.querySelector("iframe"), page = frame.contentDocument, view = frame.contentWindow;
  const all = (selector) => [...page.querySelectorAll(selector)];
  const pause = () => new Promise((done) => setTimeout(done, 300));
  const press = (field, value) => page.querySelector(`[data-switch=${field}] [data-value="${value}"]`).click();
  const curves = () => all(".curves .plot");
  const read = (plot) => ({ title: plot.layout.yaxis.title.text, x: plot.layout.xaxis.title.text,
    type: plot.layout.yaxis.type,
    lines: plot.data.map((t) => ({ name: t.name, x: t.x, y: t.y, width: t.line?.width })) });
  const say = {};
  try { SCRIPT } catch (error) { say.error = String(error.stack); }
  document.body.dataset.say = JSON.stringify(say);
}, 1500);
</script>"""
LOOKS = """
  const free = all("section *").filter((e) => !e.closest(".scroll, .plot, details"));
  const wide = free.filter((e) => e.getBoundingClientRect().right > WIDTH);
  const open = all(".plot").filter((e) => !e.closest("details:not([open])"));
  say.width = page.documentElement.scrollWidth;
  say.wide = wide.map((e) => e.outerHTML.slice(0, 80));
  say.plots = open.length;
  say.drawn = open.filter((e) => e.querySelector(".main-svg")).length;
  say.empty = open.filter((e) => !e.querySelector(".trace")).map((e) => e.ariaLabel);
  say.methods = all(".methods button").map((e) => e.textContent.trim());
  say.font = Math.min(...all("p, td, th").map((e) => parseFloat(view.getComputedStyle(e).fontSize)));
"""


def look(page: Path, *options: str) -> tuple[str, str]:
    """Open a page; return its final markup and the browser's console output."""
    assert CHROMIUM is not None
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    words += [
        "--virtual-time-budget=20000",
        "--allow-file-access-from-files",
        f"--user-data-dir={page.parent / 'profile'}",
    ]
    done = subprocess.run([*words, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def ask(folder: Path, script: str, width: int) -> dict[str, Any]:
    """The result of a script run in a folder's ``report.html``, at a given width."""
    frame = FRAME.replace("SCRIPT", script).replace("WIDTH", str(width))
    (folder / "frame.html").write_text(frame)
    markup, console = look(folder / "frame.html", "--window-size=1400,30000")
    assert console == ""
    found = re.search(r'data-say="([^"]*)"', markup)
    assert found
    say = json.loads(html_text.unescape(found[1]))
    assert "error" not in say, say["error"]
    return say


@pytest.fixture(scope="module")
def folder(study, tmp_path_factory):
    out = tmp_path_factory.mktemp("page")
    assert main([str(study), "--out", str(out / "report.html")]) == 0
    return out


def test_page_draws_everything_without_console_messages(folder):
    markup, console = look(folder / "report.html", "--window-size=1280,20000")
    assert console == ""
    assert markup.count('data-drawn="yes"') == 7  # the solver's two are folded away
    assert "main-svg" in markup
    buttons = set(re.findall(r'data-title="([^"]*)"', markup))
    assert {"Zoom in", "Download as SVG"} <= buttons
    assert not any("hare" in button or "loud" in button for button in buttons)  # nothing is sent anywhere


@pytest.mark.parametrize("width", [1280, 390])
def test_page_fits(folder, width):
    say = ask(folder, LOOKS, width)
    assert say["width"] <= width
    assert say["wide"] == []
    assert say["plots"] == say["drawn"] == 7
    assert say["empty"] == []
    assert say["methods"] == ["sgd", "proxbp exact", "sibp cg:5"]
    assert say["font"] >= 12


def test_the_matrices_of_six_methods_stand_in_one_row_above_their_dots(tmp_path):
    methods = {name: {**SIBP, "solver": name} for name in ("cg:3", "cg:5", "exact")}
    methods |= {"sgd": SGD, "adam": {**SGD, "name": "adam"}, "proxbp": PROXBP}
    for i, (name, optimizer) in enumerate(methods.items()):
        for seed in range(5):  # the same losses, paired differently: nobody is better, and time decides nothing
            losses = (2.3, 1.0, 0.1 + 0.01 * ((seed + i) % 5))
            write_run(tmp_path / "runs" / f"{name}-{seed}", optimizer, seed, losses)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")]) == 0
    script = """
      const box = (element) => element.getBoundingClientRect();
      say.tops = all(".matrix .scroll").map((e) => box(e).top);
      say.scrolls = all(".matrix .scroll").map((e) => e.scrollWidth - e.clientWidth);
      say.words = [...new Set(all(".matrix td[title]").map((e) => e.textContent))];
      say.dots = Math.max(...all(".plot.rows").map((e) => box(e).bottom));
    """
    say = ask(tmp_path, script, 1280)
    assert len(say["tops"]) == 3
    assert len(set(say["tops"])) == 1
    assert say["scrolls"] == [0, 0, 0]
    assert set(say["words"]) == {"no differ\u00adence", "within the noise"}
    assert say["dots"] < 1000


def medians(figure: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["name"]: line for line in figure["lines"] if line["width"] == 2.5}


def test_one_switch_acts_on_every_curve(folder):
    script = """
      press("axis", "training seconds"); press("scale", "linear"); press("accuracy", "accuracy");
      await pause(); say.linear = curves().map(read);
      press("scale", "log"); press("accuracy", "error"); press("smooth", "0.9");
      await pause(); say.log = curves().map(read);
      press("smooth", "0"); press("spread", "seeds"); press("axis", "epochs");
      await pause(); say.seeds = curves().map(read);
    """
    say = ask(folder, script, 1280)
    assert [(f["title"], f["type"], f["x"]) for f in say["linear"]] == [
        (name, "linear", "training seconds") for name in ("train loss", "val loss", "val acc")
    ]
    loss = [2.3 + 0.02, 1.0, 0.3, 0.05 * 1.02]  # of seed 2, which is the median's
    assert medians(say["linear"][0])["sgd"]["y"] == pytest.approx(loss, rel=1e-5)
    assert medians(say["linear"][0])["sgd"]["x"] == pytest.approx([0, 0.01, 0.02, 0.03])
    assert medians(say["linear"][2])["sgd"]["y"] == pytest.approx(np.exp(-np.array(loss)), rel=1e-5)
    assert [(f["title"], f["type"]) for f in say["log"]] == [
        ("train loss", "log"),
        ("val loss", "log"),
        ("1 − val acc", "log"),
    ]
    smooth = [loss[0]]
    for value in loss[1:]:
        smooth.append(0.9 * smooth[-1] + 0.1 * value)
    assert medians(say["log"][0])["sgd"]["y"] == pytest.approx(smooth, rel=1e-5)
    assert medians(say["seeds"][2])["sgd"]["y"] == pytest.approx(1 - np.exp(-np.array(loss)), rel=1e-4)
    assert medians(say["seeds"][0])["sgd"]["x"] == pytest.approx([0, 0.1, 0.2, 0.3])
    thin = [line for line in say["seeds"][0]["lines"] if line["width"] == 1]
    assert len(thin) == 3 * 5
    assert not any(line["width"] == 0 for line in say["seeds"][0]["lines"])  # no band


@pytest.mark.parametrize("width", [1280, 390])
def test_a_method_switched_off_disappears_from_every_chart_of_the_problem(folder, width):
    script = """
      const names = (plot) => [...new Set(plot.data.map((trace) => trace.name).filter(Boolean))];
      const shown = () => all("#part-0 > .figures .plot").map(names);
      const button = page.querySelector('[data-group="proxbp exact"]');
      button.click(); await pause(); say.off = shown(); say.pressed = button.getAttribute("aria-pressed");
      button.click(); await pause(); say.on = shown();
    """
    say = ask(folder, script, width)
    assert say["pressed"] == "false"
    assert len(say["off"]) == 7
    assert all(set(names) == {"sgd", "sibp cg:5"} for names in say["off"])
    assert all(set(names) == {"sgd", "sibp cg:5", "proxbp exact"} for names in say["on"])


def test_a_point_names_method_setting_seed_step_and_value(folder):
    script = """
      const hover = async (plot, width, point) => {
        const curve = plot.data.findIndex((trace) => trace.name === "sibp cg:5" && trace.line.width === width);
        view.Plotly.Fx.hover(plot, [{ curveNumber: curve, pointNumber: point }]);
        await pause();
        return plot.querySelector(".hoverlayer").textContent;
      };
      say.median = await hover(curves()[2], 2.5, 3);
      say.marked = curves()[2].data.map((trace) => trace.marker?.maxdisplayed).filter(Boolean);
      press("spread", "seeds"); await pause();
      say.seed = await hover(curves()[0], 1, 3);
    """
    say = ask(folder, script, 1280)
    assert say["marked"] == [10] * 3  # of a curve's points carry the method's marker
    for part in ("sibp cg:5", "lr=0.3 prox_weight=1", "step 30, 0.12 s", f"val acc {np.exp(-0.0255):.5f}"):
        assert part in say["median"]
    for part in ("sibp cg:5", "lr=0.3 prox_weight=1, seed 0", "step 30, 0.12 s", "train loss 0.025"):
        assert part in say["seed"]


@pytest.mark.parametrize("form", ["PNG", "SVG"])
def test_a_downloaded_picture_has_title_legend_and_units(folder, form):
    script = f"""
      press("axis", "training seconds"); await pause();
      view.Plotly.downloadImage = async (figure, options) => {{
        const made = await view.Plotly.toImage(figure, {{ ...options, format: "svg" }});
        say.svg = decodeURIComponent(made.slice(made.indexOf(",") + 1)); say.options = options;
      }};
      curves()[0].querySelector('[data-title="Download as {form}"]').click();
      for (let i = 0; i < 20 && !say.svg; i++) await pause();
    """
    say = ask(folder, script, 1280)
    assert say["options"]["format"] == form.lower()
    assert say["options"]["filename"] == "01-train-loss"
    words = re.sub(r"<[^>]*>", " ", say["svg"])
    for part in ("train loss", "training seconds", "sgd (lr=0.3)", "sibp cg:5 (lr=0.3 prox_weight=1)", "proxbp exact"):
        assert part in words


def test_tables_sort_filter_and_download(folder):
    script = """
      const box = page.querySelector('.table[data-name="settings"]'), heads = [...box.querySelectorAll("th")];
      const i = heads.findIndex((head) => head.textContent === "final train loss");
      const rows = () => [...box.querySelectorAll("tbody tr")].filter((row) => !row.hidden);
      const cells = () => rows().map((row) => row.cells[i].dataset.value ?? row.cells[i].textContent);
      const head = heads[i].querySelector("button");
      head.click(); say.up = cells(); head.click(); say.down = cells(); say.sort = heads[i].getAttribute("aria-sort");
      box.querySelector("input").value = "PROXBP"; box.querySelector("input").dispatchEvent(new view.Event("input"));
      say.filtered = cells();
      view.Blob = class { constructor(parts) { say.csv = parts.join(""); } }; view.URL.createObjectURL = () => "data:,";
      view.HTMLAnchorElement.prototype.click = function () { say.file = this.download; };
      box.querySelector(".csv").click();
    """
    say = ask(folder, script, 1280)
    up = [float(value) for value in say["up"][:-1]]
    assert say["up"][-1] == "–"  # the unfinished run has no loss, and comes last
    assert up == sorted(up)
    assert up[-1] == np.inf
    assert [float(value) for value in say["down"][:-1]] == up[::-1]
    assert say["sort"] == "descending"
    assert len(say["filtered"]) == 4
    assert say["file"] == "settings.csv"
    lines = say["csv"].splitlines()
    assert lines[0].startswith('"method","setting","chosen","seeds","final train loss"')
    assert len(lines) == 1 + 4
    assert all(line.startswith('"proxbp exact"') for line in lines[1:])


def test_dark_mode_applies_to_page_and_figures(folder):
    script = """
      const colours = () => [view.getComputedStyle(page.body).backgroundColor, curves()[0].layout.font.color];
      say.light = colours(); page.getElementById("theme").click(); await pause(); say.dark = colours();
    """
    say = ask(folder, script, 390)

    def brightness(colour: str) -> float:
        rgb = (
            re.findall(r"\d+", colour) if colour.startswith("rgb") else [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        )
        return sum(map(float, rgb[:3])) / 765

    assert brightness(say["light"][0]) > 0.9 > 0.3 > brightness(say["light"][1])
    assert brightness(say["dark"][0]) < 0.2 < 0.8 < brightness(say["dark"][1])


def test_a_report_inside_a_page_of_the_site_follows_its_palette(folder):
    site = json.dumps((Path(__file__).parents[2] / "docs" / "site.js").read_text())
    script = f"""
      const theme = () => page.documentElement.dataset.theme, body = document.body.dataset;
      frame.className = "report";
      document.body.append(Object.assign(document.createElement("script"), {{ textContent: {site} }}));
      body.mdColorScheme = "slate"; await pause(); say.slate = theme();
      page.getElementById("theme").click(); say.own = theme();
      frame.dispatchEvent(new Event("load")); await pause(); say.loaded = theme();
      body.mdColorScheme = "default"; await pause(); say.default = theme();
    """
    assert ask(folder, script, 390) == {"slate": "dark", "own": "light", "loaded": "dark", "default": "light"}


def test_colours_are_accompanied_by_words(folder):
    script = """say.cells = all(".matrix:first-child td[class]").map((e) => [e.className, e.textContent, e.title]);"""
    cells = ask(folder, script, 1280)["cells"]
    assert [name for name, *_ in cells] == [
        "self",
        "worse",
        "worse",
        "better",
        "self",
        "worse",
        "better",
        "better",
        "self",
    ]
    assert all(name == word for name, word, _ in cells if name != "self")
    assert cells[1][2] == "sgd minus proxbp exact: 0.0204 [0.02, 0.0208]"


def test_names_are_text_in_charts_too(tmp_path):
    name = "<b>bold</b><script>alert(1)</script>&amp;"
    for seed in (0, 1):
        write_run(tmp_path / "runs" / str(seed), {**SIBP, "name": name}, seed)
        write_run(tmp_path / "runs" / f"sgd{seed}", SGD, seed)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")]) == 0
    hover = """
      const plot = curves()[0], curve = plot.data.findIndex((trace) => trace.mode === "lines+markers");
      view.Plotly.Fx.hover(plot, [{ curveNumber: plot.data.length - 1, pointNumber: 1 }]);
      await pause(); say.hover = plot.querySelector(".hoverlayer").textContent;
      say.rows = page.querySelector(".rows .yaxislayer-above").textContent;
    """
    say = ask(tmp_path, LOOKS + hover, 390)
    assert say["methods"] == ["sgd", f"{name} cg:5"]
    assert f"{name} cg:5" in say["hover"]
    assert f"{name} cg:5" in say["rows"]
