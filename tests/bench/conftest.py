"""Small measurements: what is tested is what is measured and said, never how fast it is."""

import pytest
import torch

from sibp.bench import rates, scaling, timing


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch):
    """Single steps instead of stretches, small products instead of large ones; torch's threads as before."""
    monkeypatch.setattr(timing, "_STRETCH", 0.0)
    monkeypatch.setattr(rates, "_SIZES", {"cpu": (64,), "cuda": (64,)})
    monkeypatch.setattr(rates, "_SECONDS", 0.0)
    monkeypatch.setattr(rates, "_ALONE", 0.0)
    monkeypatch.setattr(scaling, "FACTORS", (0.5, 1, 2))
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
