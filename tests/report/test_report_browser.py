"""The page in a real browser."""

import html as html_text
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from fake_runs import SIBP, write_run

from sibp.report.__main__ import main

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")

# The page in a frame as wide as a phone, narrower than a window can be; says what it looks like inside.
PHONE = """<body style="margin:0">
<iframe src="report.html" style="width:390px;height:30000px;border:0"></iframe><script>
onload = () => setTimeout(() => {
  const page = document.querySelector("iframe").contentDocument, all = [...page.querySelectorAll("section *")];
  const wide = all.filter((e) => !e.closest(".scroll, .plot, details") && e.getBoundingClientRect().right > 390);
  const plots = [...page.querySelectorAll(".plot")].filter((e) => !e.closest("details:not([open])"));
  const say = {
    width: page.documentElement.scrollWidth,
    wide: wide.map((e) => e.outerHTML.slice(0, 80)),
    plots: plots.length,
    drawn: plots.filter((e) => e.querySelector(".main-svg")).length,
    legends: [...page.querySelectorAll(".legendtext")].map((e) => e.textContent),
    font: Math.min(...[...page.querySelectorAll("p, td, th")].map((e) => parseFloat(getComputedStyle(e).fontSize))),
  };
  document.body.dataset.say = JSON.stringify(say);
}, 1000);
</script>"""


def look(page: Path, *options: str) -> tuple[str, str]:
    """Open a page; its final markup and everything that the browser said."""
    assert CHROMIUM is not None
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    words += [
        "--virtual-time-budget=20000",
        "--allow-file-access-from-files",
        f"--user-data-dir={page.parent / 'profile'}",
    ]
    done = subprocess.run([*words, *options, page.as_uri()], capture_output=True, text=True, timeout=120)
    return done.stdout, "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)


def test_page_draws_everything_without_a_word_on_the_console(study, tmp_path):
    assert main([str(study), "--out", str(tmp_path / "report.html")]) == 0
    markup, console = look(tmp_path / "report.html", "--window-size=1280,20000")
    assert console == ""
    assert markup.count('data-drawn="yes"') == 7  # the solver's two are folded away
    assert "main-svg" in markup
    buttons = set(re.findall(r'data-title="([^"]*)"', markup))
    assert "Zoom in" in buttons
    assert not any("hare" in button or "loud" in button for button in buttons)  # nothing is sent anywhere


def test_page_fits_a_phone(study, tmp_path):
    assert main([str(study), "--out", str(tmp_path / "report.html")]) == 0
    (tmp_path / "phone.html").write_text(PHONE)
    markup, console = look(tmp_path / "phone.html", "--window-size=800,30000")
    assert console == ""
    found = re.search(r'data-say="([^"]*)"', markup)
    assert found
    say = json.loads(html_text.unescape(found[1]))
    assert say["width"] <= 390
    assert say["wide"] == []
    assert say["plots"] == say["drawn"] == 7
    assert say["font"] >= 12


def test_names_are_text_in_figures_too(tmp_path):
    name = "<b>bold</b><script>alert(1)</script>&amp;"
    for seed in (0, 1):
        write_run(tmp_path / "runs" / str(seed), {**SIBP, "name": name}, seed)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")]) == 0
    (tmp_path / "phone.html").write_text(PHONE)
    markup, console = look(tmp_path / "phone.html", "--window-size=800,30000")
    assert console == ""
    found = re.search(r'data-say="([^"]*)"', markup)
    assert found
    legends = json.loads(html_text.unescape(found[1]))["legends"]
    assert legends
    assert all(legend.startswith(name) for legend in legends)
