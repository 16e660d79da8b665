"""The site in a real browser, opened from files, at the widths of a desktop and of a phone."""

import html
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]

# Opens every page in a frame, makes the frame narrow, and says what it looks like inside.
LOOK = """<body style="margin:0"><iframe style="border:0;height:900px"></iframe><script>
const pages = %s, frame = document.querySelector("iframe"), said = {};
const clips = (e) => getComputedStyle(e).overflowX !== "visible";
function wide(page, width) {
  const out = [];
  for (const e of page.querySelectorAll("article *")) {
    if (e.getBoundingClientRect().right <= width + 1) continue;
    let parent = e;
    while (parent !== page.body && !clips(parent)) parent = parent.parentElement;
    if (parent === page.body) out.push(e.outerHTML.slice(0, 80));
  }
  return out;
}
async function look() {
  for (const name of pages) {
    frame.style.width = "1280px";
    await new Promise((loaded) => { frame.onload = loaded; frame.src = name; });
    const page = frame.contentDocument, say = { wide: {}, panels: {}, whole: {} };
    for (const width of [1280, 390]) {
      frame.style.width = width + "px";
      await new Promise((drawn) => setTimeout(drawn, 30));
      const shown = (e) => e.getClientRects().length > 0;
      const small = (e) => shown(e) && e.clientWidth < Math.min(e.naturalWidth, 600);
      say.small = [...page.querySelectorAll("article :not(.panels) > img")].filter(small).map((e) => e.src);
      const panels = [...page.querySelectorAll(".panels > img")];
      const full = (e) => parseFloat(getComputedStyle(e).maxWidth);
      say.panels[width] = panels.filter(shown).length;
      say.whole[width] = [...page.querySelectorAll(".whole > img")].filter(shown).length;
      say.tiny = panels.filter((e) => shown(e) && e.clientWidth < 0.55 * full(e)).map((e) => e.src);
      const shape = ({ width, height }) => width / height;
      const crooked = (e) => Math.abs(shape(e.getBoundingClientRect()) / eval(e.style.aspectRatio) - 1) > 0.01;
      say.crooked = panels.filter((e) => shown(e) && crooked(e)).map((e) => e.src);
      const scrolls = (e) => clips(e) && e.scrollWidth > e.clientWidth + 1;
      say.stacked = [...page.querySelectorAll(".stacked")].map((e) => [...e.querySelectorAll("*")].some(scrolls));
      say.wide[width] = [...wide(page, width), ...(page.documentElement.scrollWidth > width ? ["the page"] : [])];
    }
    say.formulas = page.querySelectorAll(".arithmatex").length;
    say.set = page.querySelectorAll(".arithmatex > math").length;
    const texts = [...page.querySelectorAll("math")].map((e) => e.textContent);
    say.wrong = texts.filter((text) => /\\\\[a-zA-Z]|merror/.test(text));  // an unknown command is left as it is
    const text = page.querySelector("article").cloneNode(true);
    text.querySelectorAll("code, .arithmatex").forEach((e) => e.remove());
    say.left = /\\\\\\(|\\$\\$/.test(text.textContent);
    say.pictures = [...page.querySelectorAll("article img")].filter((e) => !e.naturalWidth).map((e) => e.src);
    said[name] = say;
  }
  document.body.dataset.say = JSON.stringify(said);
}
look();
</script>"""

SEARCH = """<body><iframe src="index.html" style="width:1280px;height:900px"></iframe><script>
const frame = document.querySelector("iframe"), wait = (ms) => new Promise((done) => setTimeout(done, ms));
frame.onload = async () => {
  const page = frame.contentDocument, field = page.querySelector(".md-search__input");
  field.focus();
  await wait(500);
  field.value = "proximal subproblem";
  field.dispatchEvent(new Event("keyup", { bubbles: true }));
  let found = [];
  for (let i = 0; i < 100 && !found.length; i++) {
    await wait(100);
    found = [...page.querySelectorAll(".md-search-result__item a")].map((e) => e.getAttribute("href"));
  }
  document.body.dataset.say = JSON.stringify(found);
};
</script>"""


@pytest.fixture
def copy(site: Path, tmp_path: Path) -> Path:
    """The site without its interactive reports, which take a second each to draw, and have tests of their own."""
    others = shutil.ignore_patterns("interactive.html", "404.html")
    return Path(shutil.copytree(site, tmp_path / "copy", copy_function=os.link, ignore=others))


def look(site: Path, name: str, page: str) -> tuple[str, str]:
    """Opens a page that inspects the site; returns its findings and the browser's console."""
    assert CHROMIUM is not None
    (site / name).write_text(page)
    words = [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--dump-dom"]
    words += ["--virtual-time-budget=60000", "--allow-file-access-from-files", "--window-size=1400,1000"]
    words += [f"--user-data-dir={site.parent / (site.name + '-profile')}", (site / name).as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=250)
    found = re.search(r'data-say="([^"]*)"', done.stdout)
    assert found, done.stderr
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return json.loads(html.unescape(found[1])), "\n".join(console)


def test_pages_fit_and_formulas_are_set(copy: Path) -> None:
    names = sorted(path.relative_to(copy).as_posix() for path in copy.rglob("*.html"))
    said, console = look(copy, "look.html", LOOK % json.dumps(names))
    assert console == ""
    assert {name: say["wide"] for name, say in said.items() if any(say["wide"].values())} == {}
    assert {name: say["wrong"] for name, say in said.items() if say["wrong"]} == {}
    assert [name for name, say in said.items() if say["formulas"] != say["set"] or say["left"]] == []
    assert {name: say["pictures"] for name, say in said.items() if say["pictures"]} == {}
    assert {name: say["small"] for name, say in said.items() if say["small"]} == {}  # at the width of a phone
    on_desk, on_phone = ({name: say["panels"][width] for name, say in said.items()} for width in ("1280", "390"))
    assert set(on_desk.values()) == {0}
    assert {say["whole"]["390"] for say in said.values()} == {0}
    assert on_phone["index.html"] == 7  # four panels, three columns of the legend
    assert on_phone["arena.html"] > 4
    assert said["index.html"]["whole"]["1280"] == 1
    assert {name: say["tiny"] for name, say in said.items() if say["tiny"]} == {}
    assert {name: say["crooked"] for name, say in said.items() if say["crooked"]} == {}
    assert said["method.html"]["formulas"] > 20
    assert len(said["settings.html"]["stacked"]) > 20
    assert len(said["howto/in-your-stack.html"]["stacked"]) >= 1
    assert {name for name, say in said.items() if any(say["stacked"])} == set()  # at the width of a phone


def test_search_works_from_a_file(copy: Path) -> None:
    found, console = look(copy, "search.html", SEARCH)
    assert console == ""
    assert any("method.html" in address for address in found)
