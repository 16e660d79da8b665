"""Hooks of MkDocs: typeset formulas, add files from outside docs/ to the site, and adapt links to them.

Formulas become MathML, which browsers render.

Pages link to files of the repository by their path on disk (`../../results/mnist_mlp/report.md`), which also works in
a checkout. On the site, docs/ is the root, and results/ and the rest are below it.

A page of results begins with its interactive report, generated here from the kept runs and cached in build/ until the
runs or the code change.
"""

import contextlib
import hashlib
import html
import io
import itertools
import os
import posixpath
import re
import shlex
import shutil
import tempfile
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from sibp.analysis.clock import KEPT, OWN_CLOCK
from sibp.report.__main__ import main as report

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"

# Code, which is left unchanged, or a link with a relative target.
CODE = r"```.*?```|`[^`\n]*`"
LINK = re.compile(CODE + r"|\[(?P<text>[^]]*)\]\((?![a-z]+:|#|/)(?P<path>[^)#\s]+)(?P<rest>[^)]*)\)", re.DOTALL)

RESULT = re.compile(r"results/(\w+)/report\.md")
MADE_BY = "Made by: python -m sibp.report "
INTERACTIVE = "interactive.html"
EMBEDDED = f"""<iframe class="report" src="{INTERACTIVE}" title="Interactive report" loading="lazy"></iframe>

<a href="{INTERACTIVE}">The report on a separate page</a>; below, its verdicts as plain tables.
"""
TABLE = re.compile(r"<!-- results/.*?-->\n(.*?)<!-- end of table -->", re.DOTALL)

TABLE_OF_PAGE = re.compile(r"<table>.*?</table>", re.DOTALL)
LONG = 60  # characters of a cell that leaves no room for its neighbours on a phone

PICTURE = re.compile(r'<p>(<img alt="([^"]*)" src="([^"#]*\.svg)" />)</p>')
VIEW = re.compile(r'<view id="([^"]*)" viewBox="\S+ \S+ (\S+) (\S+)"/>')  # of sibp.report.pictures

# The output of pymdownx.arithmatex for $...$ and $$...$$.
FORMULA = re.compile(r'(<(?:span|div) class="arithmatex">)\\(?:\((.*?)\\\)|\[(.*?)\\\])(?=</(?:span|div)>)', re.DOTALL)
UNKNOWN = {
    "{aligned}": "{align*}",
    r"\arg": r"\operatorname{arg}",
    r"\min_": r"\min\limits_",
    r"\ln ": r"\ln\, ",
    "'": "\u2032",
}
"""Commands that the converter lacks -> commands that it has; a test detects others on the finished site.

A prime would become a superscript, but most fonts already raise it.
"""


def on_page_content(content: str, page: Page, files: Files, **_: Any) -> str:
    """Typeset a page's formulas, and let rows of text and panels of pictures stack on a phone (docs/site.css).

    Args:
        content: the page in HTML.
        page: its location.
        files: of the site.
    """

    def panels(picture: re.Match[str]) -> str:
        place = posixpath.normpath(posixpath.join(posixpath.dirname(page.file.src_uri), picture[3]))
        return one_by_one(picture[0], picture[2], picture[3], Path(files.src_uris[place].abs_src_path or ""))

    content = PICTURE.sub(panels, content)
    if page.file.src_uri == "settings.md":
        content = content.replace("<table>", '<div class="stacked"><table>').replace("</table>", "</table></div>")
    else:
        content = TABLE_OF_PAGE.sub(lambda table: stacked(table[0]), content)

    def typeset(formula: re.Match[str]) -> str:
        inline, block = formula[2], formula[3]
        tex = html.unescape(inline or block)
        for word, known in UNKNOWN.items():
            tex = tex.replace(word, known)
        return formula[1] + convert(tex, display="inline" if inline else "block")

    return FORMULA.sub(typeset, content)


def one_by_one(whole: str, text: str, address: str, file: Path) -> str:
    """Add a picture's panels and legend, each as wide as a phone, to the picture, which a phone does not show.

    Args:
        whole: the picture's paragraph in HTML.
        text: its alternative text.
        address: its address.
        file: the SVG.

    Returns:
        The paragraph alone if the picture is a diagram without panels.
    """
    views = VIEW.findall(file.read_text())
    if not views:
        return whole
    shown = "\n".join(
        f'<img alt="{text}: {name.replace("-", " ")}" src="{address}#{name}" '
        f'style="aspect-ratio: {width} / {height}; max-width: {width}pt">'
        for name, width, height in views
    )
    return f'{whole.replace("<p>", """<p class="whole">""")}\n<p class="panels">\n{shown}\n</p>'


def stacked(table: str) -> str:
    """Mark a table of long texts, whose cells stand below one another on a phone, each below its column's name.

    Args:
        table: in HTML.

    Returns:
        The same; unchanged if it holds aligned numbers, or texts that are short.
    """

    def texts(tag: str) -> list[str]:
        found = re.findall(rf"<{tag}\b[^>]*>(.*?)</{tag}>", table, re.DOTALL)
        return [html.unescape(re.sub(r"<.*?>", "", each)) for each in found]

    names, cells = texts("th"), texts("td")
    if "text-align: right" in table or len(names) < 2 or max(map(len, cells), default=0) < LONG:
        return table
    columns = itertools.cycle(names)
    named = re.sub("<td", lambda _: f'<td data-column="{html.escape(next(columns))}"', table)
    return f'<div class="stacked named">{named}</div>'


def on_files(files: Files, config: MkDocsConfig, **_: Any) -> Files:
    """Add the pages that are not in docs/: those of results/, and those beside README.md.

    Args:
        files: of docs/.
        config: of the site.
    """
    results = [path for name in ("README.md", "report.md") for path in sorted((ROOT / "results").rglob(name))]
    for path in [ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *results]:
        files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace a page's links to paths on disk by links to the site.

    Args:
        markdown: the page.
        page: its location.
        config: of the site.
        files: of the site; linked files that are missing are added. A link to a folder becomes its text.
    """
    folder = Path(page.file.abs_src_path or DOCS).parent
    if page.file.src_uri.startswith("results/"):
        page.meta["search"] = {"exclude": True}
    if RESULT.fullmatch(page.file.src_uri):
        page.meta["hide"] = ["navigation", "toc"]
        title, _, rest = markdown.partition("\n")
        markdown = f"{title}\n\n{EMBEDDED}\n{rest}"
    markdown = TABLE.sub(lambda found: f"<div markdown data-search-exclude>\n\n{found[1]}\n</div>", markdown)

    def turned(link: re.Match[str]) -> str:
        if link["path"] is None:
            return link[0]
        target = Path(os.path.normpath(folder / link["path"]))
        if target.is_dir():
            return link["text"]
        if not target.is_relative_to(ROOT):
            return link[0]
        place = target.relative_to(DOCS if target.is_relative_to(DOCS) else ROOT).as_posix()
        if target.is_file() and files.get_file_from_path(place) is None:
            files.append(File.generated(config, place, abs_src_path=str(target)))
        path = posixpath.relpath(place, posixpath.dirname(page.file.src_uri))
        return f"[{link['text']}]({path}{link['rest']})"

    return LINK.sub(turned, markdown)


def on_post_build(config: MkDocsConfig, **_: Any) -> None:
    """Write the interactive reports beside the pages of results, with the runs that they link to.

    The theme's 404.html is removed: it finds its style sheets only at the root of a server.

    Args:
        config: of the site.
    """
    (Path(config.site_dir) / "404.html").unlink()
    for path in sorted((ROOT / "results").glob("*/report.md")):
        folder = Path(config.site_dir) / path.parent.relative_to(ROOT)
        shutil.copyfile(_interactive(path), folder / INTERACTIVE)
        for runs in path.parent.rglob("runs.jsonl"):
            place = folder / runs.relative_to(path.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(runs, place)


def _interactive(path: Path) -> Path:
    """The interactive report for a report.md.

    Raises:
        RuntimeError: its command fails.
    """
    (line,) = (line for line in path.read_text().splitlines() if line.startswith(MADE_BY))
    sources = [
        *path.parent.rglob("runs.jsonl"),
        ROOT / "results" / KEPT,
        *path.parent.glob(OWN_CLOCK),
        *(ROOT / "sibp").glob("analysis/*.py"),
        *(ROOT / "sibp/report").glob("*.*"),
    ]
    digest = hashlib.sha256(line.encode())
    for source in sorted(sources):
        digest.update(source.read_bytes())
    made = ROOT / "build" / "reports" / f"{path.parent.name}-{digest.hexdigest()[:16]}.html"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        words = [*shlex.split(line.removeprefix(MADE_BY)), "--out", INTERACTIVE, "--format", "html"]
        with tempfile.TemporaryDirectory() as folder:
            copy = shutil.copytree(path.parent, Path(folder) / path.parent.name)
            shutil.copytree((ROOT / "results" / KEPT).parent, (Path(folder) / KEPT).parent)
            with contextlib.chdir(copy), contextlib.redirect_stdout(io.StringIO()):
                if report(words) != 0:
                    raise RuntimeError(f"the command of {path} fails: {line}")
            shutil.move(copy / INTERACTIVE, made)
    return made
