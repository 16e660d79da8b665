"""The tutorial's pages: their code runs and prints what they show, their excerpts and pictures are the real ones."""

import re
import sys
from pathlib import Path

import pytest

from sibp.tutorial.pages import blocks, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs" / "tutorial").glob("0*.md"))
PICTURES = ROOT / "docs" / "images" / "tutorial"


PAGE = """Text.

```python
x = 2
print(x)
```

```text
2
```

```python
y = 3 * x
```

```text
```

??? note "Answer"

    ```python title="a/b.py"
    if y:
        print(y)
    ```

    ```text
    6
    ```

It prints no more than this:

```text
no
```
"""


@pytest.fixture(scope="module")
def artists():
    folder = str(ROOT / "scripts" / "tutorial_figures")
    sys.path.insert(0, folder)
    import artists

    yield artists.ARTISTS
    sys.path.remove(folder)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_block_prints_what_the_page_shows_and_the_pictures_are_its_own(page, artists, same_pictures):
    """One run serves both: pictures are drawn from the names that the page's code defined, the same to the byte."""
    names, printed = run(page)
    assert printed
    for block, out in printed:
        assert out == block.output, f"{page.name}, line {block.line}"
    pictures = artists[page.stem](names)
    assert pictures
    for name, svg in pictures.items():
        assert len(svg) < 100_000
        same = svg == (PICTURES / name).read_text()
        assert same or not same_pictures, f"{name}: draw it anew with python scripts/tutorial_figures"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_excerpts_are_from_the_files_they_name(page):
    for block in blocks(page):
        if block.title:
            assert block.code in (ROOT / block.title).read_text(), f"{page.name}, line {block.line}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_ends_with_what_was_learnt_and_an_exercise(page):
    text = page.read_text()
    learnt = text.split("\n## What was learnt\n")[1].split("\n## ")[0]
    assert len(re.findall(r"^- ", learnt, re.MULTILINE)) == 3
    assert text.split("\n## Exercise\n")[1].count('??? note "Answer"') == 1


def test_every_picture_is_shown_and_every_picture_shown_is_there():
    assert len(PAGES) == 8
    shown = {
        name for page in PAGES for name in re.findall(r"!\[[^\]]+\]\(\.\./images/tutorial/(\S+)\)", page.read_text())
    }
    assert shown == {path.name for path in PICTURES.iterdir()}


def test_blocks_are_found_with_their_output(tmp_path):
    """Also inside an admonition; a page's blocks share their names."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert [(b.line, b.title, b.output) for b in blocks(page)] == [
        (4, None, "2\n"),
        (13, None, ""),
        (22, "a/b.py", "6\n"),
    ]
    names, printed = run(page)
    assert names["y"] == 6
    assert [out for _, out in printed] == ["2\n", "", "6\n"]
