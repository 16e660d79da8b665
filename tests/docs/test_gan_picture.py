"""The picture of why a GAN needs `paused()`: a short game shows what its page says."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def picture(monkeypatch: pytest.MonkeyPatch):
    """scripts/gan_picture.py as a module."""
    spec = importlib.util.spec_from_file_location("gan_picture", ROOT / "scripts" / "gan_picture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gan_picture", module)
    spec.loader.exec_module(module)
    return module


def test_the_runs_differ_only_by_the_pause_and_both_are_drawn(picture, tmp_path):
    (with_pause, _), (without, _) = (picture.play(paused, 0, 20) for paused in (True, False))
    assert with_pause[0] == without[0]  # the same first weights and the same noise
    assert with_pause[-1] != without[-1]
    out = tmp_path / "gan.svg"
    ends = picture.draw(1, 10, out)
    assert set(ends) == {True, False}
    assert out.read_text().count("generated points") >= 2 or "<path" in out.read_text()


def test_the_kept_picture_is_on_both_pages():
    assert (ROOT / "docs" / "images" / "gan_paused.svg").read_text().startswith("<?xml")
    for page in ("gradients.md", "in-your-stack.md"):
        assert "(../images/gan_paused.svg)" in (ROOT / "docs" / "howto" / page).read_text()
