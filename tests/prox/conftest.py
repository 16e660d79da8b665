"""Settings of the numerical tests."""

from collections.abc import Iterator

import pytest
import torch

from sibp.prox import kernels


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Handing out tensors of this size to threads takes longer than computing with them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["compiled", "plain"])
def both_ways(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compiled and plain iterations."""
    if request.param == "compiled":
        if not kernels.available():
            pytest.skip("needs kernels: python setup.py build_ext --inplace")
        yield
    else:
        with kernels.disabled():
            yield


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every vector width that this processor has."""
    order = ["baseline", "avx2", "avx512"]
    if order.index(request.param) > order.index(kernels.widest()):
        pytest.skip("not on this processor")
    monkeypatch.setattr(kernels, "widest", lambda: request.param)
    kernels._chosen.cache_clear()
    yield
    kernels._chosen.cache_clear()
