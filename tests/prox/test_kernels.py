"""Kernels present, missing or broken; every vector width gives the same numbers."""

import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_fused import needs_kernels, problem

from sibp.activations import RELU
from sibp.prox import fused, kernels
from sibp.prox.solvers.nonlinear import solve_nonlinear


@pytest.fixture
def anew() -> Iterator[None]:
    """Makes kernels be searched for anew, before and after the test."""
    kept = (kernels._chosen, kernels._file, kernels._warn)
    for function in kept:
        function.cache_clear()
    yield
    for function in kept:
        function.cache_clear()


@pytest.mark.parametrize("trouble", ["not built", "truncated"])
def test_without_kernels_everything_works_and_one_warning_says_what_to_install(
    trouble: str, anew, monkeypatch: pytest.MonkeyPatch, tmp_path
):
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"\x7fELF of which only the beginning is left")
    found = None if trouble == "not built" else SimpleNamespace(origin=str(broken))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: found)
    coordinates, Z, T = problem(1, 6, 9, 4, torch.float32)
    with pytest.warns(RuntimeWarning, match=r"gcc or clang.*pip install"):
        assert not fused.usable(coordinates, Z, RELU)
    assert not fused.usable(coordinates, Z.double(), RELU)  # no second warning, which would be an error here
    assert solve_nonlinear(coordinates, Z, T, 1.0, RELU, 3).stats.decrease > 0
    assert not kernels.available()
    assert kernels.description() == "none"


@needs_kernels
def test_kernels_of_another_version_count_as_missing(anew, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Neither a library built from other sources is used, nor one that does not say from which."""
    found = importlib.util.find_spec(f"{kernels.__name__}._native")
    assert found is not None
    assert found.origin is not None
    library = Path(found.origin).read_bytes()
    told = kernels._sources().encode()
    assert library.count(told) == 1
    for number, other in enumerate((library.replace(told, b"0" * 8), library.replace(b"\0sources\0", b"\0nothing\0"))):
        assert other != library
        older = tmp_path / f"{number}.so"
        older.write_bytes(other)
        monkeypatch.setattr(importlib.util, "find_spec", lambda name, older=older: SimpleNamespace(origin=str(older)))
        kernels._file.cache_clear()
        assert not kernels.available()


def test_disabled_kernels_give_no_warning(anew, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with kernels.disabled(), warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kernels.library(torch.ones(1)) is None
        assert kernels.description() == "none"


@needs_kernels
def test_the_description_names_the_instruction_set(anew, monkeypatch: pytest.MonkeyPatch):
    assert kernels.description() in ("native (AVX-512)", "native (AVX2)", "native (baseline)")
    monkeypatch.setattr(kernels, "widest", lambda: "avx2")
    assert kernels.description() == "native (AVX2)"


@needs_kernels
@pytest.mark.parametrize("width", ["baseline", "avx2", "avx512"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(1, 37, 60, 34), (1, 5, 9, 3), (2, 1, 4, 70), (1, 64, 17, 1)])
def test_every_vector_width_gives_the_same_result(width, dtype, shape, anew, monkeypatch: pytest.MonkeyPatch):
    narrower = ["baseline", "avx2", "avx512"]
    if narrower.index(width) > narrower.index(kernels.widest()):
        pytest.skip("not on this processor")
    coordinates, Z, T = problem(*shape, dtype=dtype)
    with kernels.disabled():
        expected = solve_nonlinear(coordinates, Z, T, 1.0, RELU, 3).x
    monkeypatch.setattr(kernels, "widest", lambda: width)
    kernels._chosen.cache_clear()
    chosen = kernels.library(Z)
    assert chosen is not None
    assert chosen._suffix.endswith(width)
    found = solve_nonlinear(coordinates, Z, T, 1.0, RELU, 3).x
    torch.testing.assert_close(found, expected, **({"rtol": 1e-3, "atol": 1e-4} if dtype == torch.float32 else {}))


@needs_kernels
def test_torch_compile_traces_the_torch_implementation(monkeypatch: pytest.MonkeyPatch):
    coordinates, Z, _ = problem(1, 6, 9, 4, torch.float32)
    assert fused.usable(coordinates, Z, RELU)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert not fused.usable(coordinates, Z, RELU)
