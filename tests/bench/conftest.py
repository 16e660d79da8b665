"""Small measurements: tests check what is measured and reported, never speed."""

import pytest
import torch

from sibp.bench import rates, scaling, timing


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    """Single steps and small products; restores torch's number of threads."""
    monkeypatch.setattr(timing, "_STRETCH", 0.0)
    monkeypatch.setattr(rates, "_SIZES", {"cpu": (64,), "cuda": (64,)})
    monkeypatch.setattr(rates, "_SECONDS", 0.0)
    monkeypatch.setattr(rates, "_ALONE", 0.0)
    monkeypatch.setattr(scaling, "FACTORS", (0.5, 1, 2))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
