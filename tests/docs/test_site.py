"""The site is built without warnings, opens from a file, and needs no network."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from code_blocks import PAGES, ROOT

pytestmark = pytest.mark.slow

SCRIPT = re.compile(r"(<script[^>]*>).*?</script>", re.DOTALL)
LINK = re.compile(r"```.*?```|`[^`\n]*`|\]\((?P<target>[^)\s]+)", re.DOTALL)


def test_the_site_is_built_without_warnings(build: Path) -> None:
    failed = build / "failed"
    assert not failed.exists(), failed.read_text()


class _Loaded(HTMLParser):
    """What a browser loads to show a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.addresses: list[str] = []
        self.feed(SCRIPT.sub(r"\1</script>", page.read_text()))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        loads = tag in ("script", "img", "iframe", "source", "object") or given.get("rel") in ("stylesheet", "icon")
        self.addresses += [value for key in ("src", "href", "data") if loads and (value := given.get(key))]


def test_every_page_loads_only_local_files(site: Path) -> None:
    pages = [page for page in site.rglob("*.html") if page.name != "404.html"]  # for servers: its paths are absolute
    assert len(pages) >= 10
    for page in pages:
        for address in _Loaded(page).addresses:
            if not address.startswith("data:"):
                assert (page.parent / urlsplit(address).path).is_file(), f"{page.name} loads {address}"
    for style in site.rglob("*.css"):
        fetched = re.findall(r"url\(['\"]?((?:https?:)?//[^)]*)|@import[^;]*", style.read_text())
        assert fetched == [], style


def test_all_pages_are_on_the_site(site: Path) -> None:
    for page in PAGES:
        place = page.relative_to(ROOT / "docs" if page.is_relative_to(ROOT / "docs") else ROOT)
        assert page == ROOT / "README.md" or (site / place.with_suffix(".html")).is_file(), page


def test_no_sentence_is_shown_as_code(site: Path) -> None:
    """A paragraph that is indented too far becomes a block of code, with its formulas unset."""
    formula = re.compile(r"\$[^$\n]*\\[a-z]+[^$\n]*\$")
    for page in site.rglob("*.html"):
        for block in re.findall(r"<pre>.*?</pre>", page.read_text(), re.DOTALL):
            assert not formula.search(block), f"{page.name}: {block[:200]}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_are_valid(page: Path) -> None:
    """Anchors are checked by the build (validation in mkdocs.yml), addresses on the web for their form alone."""
    for match in LINK.finditer(page.read_text()):
        target = match["target"]
        if target is None or target.startswith("#"):
            continue
        parts = urlsplit(target)
        if parts.scheme:
            assert parts.scheme == "https", f"{page.name}: {target}"
            assert re.fullmatch(r"[\w.-]+\.\w+", parts.netloc), f"{page.name}: {target}"
        else:
            assert (page.parent / parts.path).exists(), f"{page.name}: {target}"


def index_of(site: Path) -> list[dict[str, str]]:
    return json.loads((site / "search" / "search_index.json").read_text())["docs"]


def test_generated_tables_are_not_in_the_search(site: Path) -> None:
    found = index_of(site)
    places = [entry["location"] for entry in found]
    assert not [place for place in places if place.startswith("results/")]
    assert "findings.html" in places
    text = "\n".join(entry["text"] for entry in found)
    assert "test accuracy, %" not in text  # a heading of the tables of results


def test_pages_of_results_begin_with_their_interactive_report(site: Path) -> None:
    reports = sorted((ROOT / "results").glob("*/report.md"))
    assert len(reports) >= 10
    for report in reports:
        page = site / report.relative_to(ROOT).with_suffix(".html")
        markup = page.read_text().split("<article")[1]
        frame = markup.index('<iframe class="report" src="interactive.html"')
        assert frame < markup.index("<table")
        interactive = (page.parent / "interactive.html").read_text()
        assert "default-src 'none'" in interactive
        assert str(ROOT) not in interactive
        links = re.findall(r'<a href="(?!#)([^"]*)"', re.sub(r"<script.*?</script>", "", interactive, flags=re.DOTALL))
        assert links
        for link in set(links):
            assert (page.parent / unquote(link)).exists(), f"{page}: {link}"


def test_phones_get_the_panels_of_a_picture_one_by_one(site: Path) -> None:
    """The first screen's picture: four panels and three columns of the legend, as parts of one file."""
    markup = (site / "index.html").read_text()
    (panels,) = re.findall(r'<p class="whole"><img [^>]*></p>\s*<p class="panels">(.*?)</p>', markup, re.DOTALL)
    shown = re.findall(r'<img alt="([^"]*)" src="([^"]*)" style="aspect-ratio: (\d+) / (\d+)', panels)
    views = re.findall(r'<view id="([^"]*)" viewBox="\S+ \S+ (\S+) (\S+)"', (site / "images/mnist_mlp.svg").read_text())
    assert [(source, width, height) for _, source, width, height in shown] == [
        (f"images/mnist_mlp.svg#{name}", width, height) for name, width, height in views
    ]
    assert len(views) == 7
    assert shown[0][0].endswith(": panel 1")
    assert 'class="panels"' not in (site / "tutorial/02-forward.html").read_text()  # diagrams have no panels


def test_tabs_are_few_and_every_page_is_below_one() -> None:
    text = (ROOT / "mkdocs.yml").read_text().split("\nnav:\n")[1]
    assert [line for line in text.splitlines() if line.startswith("  - ")] == [
        "  - Home: index.md",
        "  - Learn:",
        "  - Use:",
        "  - Experiments:",
        "  - Results:",
        "  - Reference:",
    ]
    listed = re.findall(r"[\w/-]+\.md", text)
    assert len(listed) == len(set(listed))
    assert {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")} <= set(listed)
