"""Five tasks of a newcomer, done in the built site from its first screen, and the clicks that each takes."""

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from code_blocks import ROOT
from test_site_browser import CHROMIUM

pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: apt-get install chromium")]
SCREEN = 900  # pixels of a desktop window
TASKS = {
    "does it help on a ConvNet": ([], "Do not when the net is mostly convolutional"),
    "which variant for a ConvNet": (["howto/which-method.html"], "convolutions, wall-clock time matters"),
    "install": ([], 'pip install "sibp @ git+URL"'),
    "reproduce one figure": (["howto/reproduce-a-figure.html"], "scripts/reproduce.py"),
    "add a method": (["howto/add-an-optimizer.html"], "registers"),
    "who won": ([], "Does it beat SGD?"),
    "who won, over all methods": (["summary.html", "arena.html"], "score"),
    "one interactive report": (["results.html", "results/mnist_mlp/report.html"], "Final train loss"),
}
"""Task -> the links that are clicked, and what is then read."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    spec = importlib.util.spec_from_file_location("screenshots", ROOT / "scripts" / "screenshot_tensorboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with module.Page(1280, SCREEN) as page:
        yield page


def loaded(name: str) -> str:
    return f"document.readyState === 'complete' && location.pathname.endsWith('/{name}')"


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_two_clicks_at_most(browser: Any, site: Path, task: str) -> None:
    links, read = TASKS[task]
    assert len(links) <= 2
    browser.open((site / "index.html").as_uri(), loaded("index.html"))
    for link in links:
        depth = browser.ask("location.href").removeprefix(site.as_uri()).count("/") - 1
        address = "../" * depth + link
        found = (
            f"[...document.querySelectorAll('article a, nav a')].find((a) => a.getAttribute('href') === '{address}')"
        )
        target = browser.ask(f"{found}.href")
        assert target, f"{task}: no link to {address}"
        browser.open(target, loaded(Path(link).name))  # equivalent to a click, without racing the page's unload
    text = browser.ask("document.querySelector('article').innerText.replace(/\\s+/g, ' ')")
    assert read in text, task


@pytest.mark.parametrize("read", ["Does it beat SGD?", "Use it when", "Do not when"])
def test_the_first_screen_answers_without_scrolling(browser: Any, site: Path, read: str) -> None:
    browser.open((site / "index.html").as_uri(), loaded("index.html"))
    found = f"[...document.querySelectorAll('article strong')].find((e) => e.textContent === '{read}')"
    assert browser.ask(f"{found}.getBoundingClientRect().bottom") < SCREEN
