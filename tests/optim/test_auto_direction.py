"""The direction of AutoSIBP: polar factors by products alone, of all of a matrix or of its largest singular values."""

import pytest
import torch
from torch import Tensor

from sibp.optim.direction import RANK, has_basis, orthogonal, orthogonal_rows

F64 = torch.float64


def of_spectrum(m: int, n: int, values: Tensor, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix (m, n) with these singular values, and its singular vectors by column."""
    generator = torch.Generator().manual_seed(seed)
    U, V = (torch.linalg.qr(torch.randn(k, len(values), generator=generator, dtype=F64)).Q for k in (m, n))
    return U * values @ V.T, U, V


@pytest.mark.parametrize("scale", [1e-160, 1.0, 1e160])
def test_rows_become_orthogonal_with_their_singular_vectors(scale: float):
    B, U, V = of_spectrum(6, 9, torch.tensor([1, 0.8, 0.5, 0.3, 0.2, 0.1], dtype=F64))
    found = U.T @ orthogonal_rows(scale * B) @ V
    values = found.diagonal()
    assert float((found - values.diag()).abs().max()) < 1e-10
    assert float(values.min()) > 0.65
    assert float(values.max()) < 1.25


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_nothing_is_made_of_nothing(dtype: torch.dtype):
    assert not orthogonal_rows(torch.zeros(3, 5, dtype=dtype)).any()
    M, basis = orthogonal(torch.zeros(70, 80, dtype=dtype), torch.zeros(80, RANK, dtype=dtype))
    assert not M.any()
    assert basis is not None
    assert basis.isfinite().all()


@pytest.mark.parametrize(("m", "n"), [(3, 8), (8, 3)])
def test_small_matrices_count_with_all_singular_values(m: int, n: int):
    M, U, V = of_spectrum(m, n, torch.tensor([1, 0.5, 0.2], dtype=F64))
    found, basis = orthogonal(M, None)
    assert basis is None
    assert float((U.T @ found @ V).diagonal().min()) > 0.65
    assert int(torch.linalg.matrix_rank(found, rtol=1e-6)) == 3


@pytest.mark.parametrize(("m", "n"), [(90, 120), (120, 90)])
def test_a_basis_finds_the_largest_singular_values_of_a_wide_matrix(m: int, n: int):
    """Those beyond RANK are ten times smaller, and every step of the iteration takes another factor off them."""
    values = torch.cat([torch.linspace(1, 0.8, RANK, dtype=F64), torch.full((16,), 0.08, dtype=F64)])
    M, U, V = of_spectrum(m, n, values)
    basis: Tensor | None = torch.zeros(n, RANK, dtype=F64)
    found = M
    for _ in range(8):
        found, basis = orthogonal(M, basis)
    along = (U.T @ found @ V).diagonal()
    assert float(along[:RANK].min()) > 0.65
    assert float(along[RANK:].abs().max()) < 1e-3


def test_a_basis_is_for_matrices_and_kernels_with_more_rows_and_columns():
    shapes = {(RANK, 500): False, (RANK + 1, 500): True, (500, 10): False, (128, 16, 3, 3): True, (128, 3, 3, 3): False}
    assert {shape: has_basis(torch.Size(shape)) for shape in shapes} == shapes
