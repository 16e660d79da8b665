"""The closed form in C against float64: odd shapes, singular matrices, many threads."""

import math

import pytest
import torch

from sibp.prox import closed, kernels
from sibp.prox.operators import DenseFeatures

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not installed")


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 8, 9, 31, 100])
@pytest.mark.parametrize("n", [0, 1, 7, 16, 17, 799, 1601])
def test_gram_matrices_of_all_shapes(dtype: torch.dtype, N: int, n: int):
    A = torch.randn(N, n, dtype=dtype, generator=torch.Generator().manual_seed(N + n))
    K = closed.outer_gram(A, 1.0)
    exact = A.double() @ A.double().T + 1
    assert K is not None
    assert torch.equal(K, K.T)
    units = 16 if dtype is torch.float32 else 32  # the reference is rounded, too
    torch.testing.assert_close(
        K.double(), exact, rtol=0, atol=float(units * torch.finfo(dtype).eps * exact.diag().max())
    )


def test_gram_matrices_do_not_depend_on_the_number_of_threads():
    A, before = torch.randn(200, 300, generator=torch.Generator().manual_seed(0)), torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(closed.outer_gram(A, 0.0))
    finally:
        torch.set_num_threads(before)
    assert found[0] is not None
    assert all(torch.equal(found[0], other) for other in found[1:])


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", [301, 514])
def test_factors_do_not_depend_on_the_number_of_threads(dtype: torch.dtype, r: int):
    G, R = spectrum(r, 1e3, dtype), torch.randn(r, 40, dtype=dtype, generator=torch.Generator().manual_seed(1))
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(closed.minus_solve(G, R, 1e-3, 0.0))
    finally:
        torch.set_num_threads(before)
    exact = -torch.linalg.solve(G.double() + 1e-3 * torch.eye(r, dtype=torch.float64), R.double())
    for answer in found:
        assert answer is not None
        assert answer.x is not None
        assert torch.equal(answer.x, found[0].x)
        assert (answer.x.double() - exact).norm() <= 1e3 * r * torch.finfo(dtype).eps * exact.norm()


def test_rows_at_any_address_have_the_same_gram_matrix():
    """Rows that are not aligned to a cache line are copied, and nothing outside them is read."""
    numbers = torch.randn(33 * 64 + 1)
    A = numbers[1:].view(33, 64)
    torch.testing.assert_close(closed.outer_gram(A, 1.0), closed.outer_gram(A.clone(), 1.0), rtol=0, atol=0)


@pytest.mark.parametrize("A", [torch.zeros(0, 3), torch.zeros(1025, 3), torch.zeros(3, 4, 5), torch.zeros(5, 4).T])
def test_unsupported_matrices_are_left_to_torch(A: torch.Tensor):
    assert closed.outer_gram(A, 1.0) is None
    gram = DenseFeatures(A).outer_gram()
    torch.testing.assert_close(gram, A @ A.mT + 1)


def spectrum(r: int, gap: float, dtype: torch.dtype) -> torch.Tensor:
    """A symmetric matrix whose eigenvalues fall from 1 to 1/gap."""
    Q, _ = torch.linalg.qr(torch.randn(r, r, dtype=torch.float64, generator=torch.Generator().manual_seed(r)))
    G = ((Q * torch.logspace(0, -math.log10(gap), r, dtype=torch.float64)) @ Q.T).to(dtype)
    return (G + G.T) / 2


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", [1, 2, 3, 4, 5, 8, 63, 64, 65, 100, 257])
@pytest.mark.parametrize("gap", [1.0, 1e6])
def test_solutions_are_those_of_double_precision(r: int, gap: float, dtype: torch.dtype):
    """Backward stability: the factorisation solves the system of a matrix a few units of rounding away."""
    G, lam, eps = spectrum(r, gap, dtype), 0.01, torch.finfo(dtype).eps
    for m in (0, 1, 7, 16, 64, 65, 130):
        R = torch.randn(r, m, dtype=dtype, generator=torch.Generator().manual_seed(m))
        found = closed.minus_solve(G, R, lam, 0.0)
        assert found is not None
        x, energy = found.x, found.energy
        assert x is not None
        assert found.norm == pytest.approx(float(G.double().norm()), rel=10 * eps)
        assert found.largest == float(G.diagonal().max())
        squares = float(x.double().square().sum())
        assert float(found.XX) == pytest.approx(squares, rel=1e3 * eps)
        assert found.residual_sums is None  # lam was large enough
        system = G.double() + lam * torch.eye(r, dtype=torch.float64)
        residual = system @ x.double() + R.double()
        assert residual.norm() <= 8 * eps * float(torch.linalg.matrix_norm(system, 2)) * x.double().norm()
        assert energy == pytest.approx(float((x.double() * (system @ x.double())).sum()), rel=1e3 * eps, abs=0)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", [1, 3, 4, 66, 257])
def test_a_factor_solves_its_system(r: int, dtype: torch.dtype):
    """Backward stability; nothing above the diagonal of the factor is read."""
    system, eps = spectrum(r, 100.0, dtype) + torch.eye(r, dtype=dtype), torch.finfo(dtype).eps
    L = torch.linalg.cholesky(system).contiguous()
    size = float(torch.linalg.matrix_norm(system.double(), 2))
    for m in (0, 1, 16, 65, 300):
        R = torch.randn(r, m, dtype=dtype, generator=torch.Generator().manual_seed(m))
        x = closed.minus_substitute(L + torch.ones_like(L).triu(1), R)
        assert x is not None
        residual = system.double() @ x.double() + R.double()
        assert residual.norm() <= 10 * eps * r**0.5 * size * x.double().norm()


def test_solutions_do_not_depend_on_the_number_of_threads(monkeypatch: pytest.MonkeyPatch):
    G, R, before = spectrum(70, 10.0, torch.float32), torch.randn(70, 700), torch.get_num_threads()
    monkeypatch.setattr(closed, "_PARALLEL", 0)
    L = torch.linalg.cholesky(G + 0.1 * torch.eye(70)).contiguous()
    found, substituted = [], []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            found.append(closed.minus_solve(G, R, 0.1, 0.0))
            substituted.append(closed.minus_substitute(L, R))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(found[0].x, other.x) for other in found[1:])
    assert all(torch.equal(substituted[0], other) for other in substituted[1:])
    assert [other.energy for other in found[1:]] == pytest.approx([found[0].energy] * 2, rel=1e-6)
    assert [other.XX for other in found[1:]] == pytest.approx([found[0].XX] * 2, rel=1e-6)


def test_matrices_of_a_batch_of_one_and_right_hand_sides_of_any_stride():
    G, R = spectrum(6, 10.0, torch.float32), torch.randn(5, 6).T
    x, same = closed.minus_solve(G, R, 0.1, 0.0).x, closed.minus_solve(G[None], R[None], 0.1, 0.0).x
    assert torch.equal(x, same[0])
    torch.testing.assert_close(x, -torch.linalg.solve(G + 0.1 * torch.eye(6), R))
    L = torch.linalg.cholesky(G + 0.1 * torch.eye(6)).contiguous()
    torch.testing.assert_close(closed.minus_substitute(L, R), x)
    torch.testing.assert_close(closed.minus_substitute(L[None], R[None])[0], x)


def test_a_matrix_that_is_not_positive_definite_has_no_solution():
    for place in range(6):
        G = torch.eye(6)
        G[place, place] = -2.0
        assert closed.minus_solve(G, torch.ones(6, 1), 1.0, 0.0).x is None


def test_a_lam_below_the_requested_resolution_has_no_solution():
    G, R = torch.eye(4), torch.ones(4, 2)  # of norm 2
    assert closed.minus_solve(G, R, 1.0, 0.51).x is None
    found = closed.minus_solve(G, R, 1.0, 0.49)
    torch.testing.assert_close(found.x, -R / 2)
    assert found.energy == pytest.approx(8 * 0.5)
    assert closed.minus_solve(G, R, 1.0, 0.49, torch.eye(2, 16)).residual_sums is None
    assert closed.minus_solve(G, R, 1.0, 0.51, torch.eye(2, 16)).residual_sums is not None


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("r", [2, 3, 4, 30, 65])
@pytest.mark.parametrize("threads", [1, 3])
def test_residual_sums_are_those_of_what_was_computed(
    r: int, dtype: torch.dtype, threads: int, monkeypatch: pytest.MonkeyPatch
):
    """The factorisation reads one triangle and the residual all of G, so an asymmetric G has a visible error."""
    monkeypatch.setattr(closed, "_PARALLEL", 0)
    G, lam, before = spectrum(r, 10.0, dtype), 0.1, torch.get_num_threads()
    G = G + torch.ones(r, r, dtype=dtype).triu(1)
    for m in (1, 16, 65, 300):
        R, S = (torch.randn(rows, m, dtype=dtype, generator=torch.Generator().manual_seed(m)) for rows in (r, 16))
        try:
            torch.set_num_threads(threads)
            found = closed.minus_solve(G, R, lam, math.inf, S.T.contiguous())
        finally:
            torch.set_num_threads(before)
        R, X, S = R.double(), found.x.double(), S.T.double()
        e = (R + G.double() @ X + lam * X) @ S
        expected = [float(sums) for sums in (R.square().sum(), (R * X).sum(), e.square().sum())]
        assert list(found.residual_sums) == pytest.approx(expected, rel=2e4 * torch.finfo(dtype).eps, abs=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_system_has_no_solution(bad: float):
    G = torch.eye(5)
    G[3, 1] = G[1, 3] = bad
    assert closed.minus_solve(G, torch.ones(5, 1), 1.0, 0.0).x is None


@pytest.mark.parametrize("shape", [(0, 3), (1025, 1), (2, 3, 4)])
def test_unsupported_systems_are_left_to_torch(shape: tuple[int, ...]):
    *leading, r, _ = shape
    assert closed.minus_solve(torch.eye(r).expand(*leading, -1, -1), torch.ones(shape), 1.0, 0.0) is None
    assert closed.minus_solve(torch.ones(3, 2).T, torch.ones(2, 1), 1.0, 0.0) is None
    assert closed.minus_substitute(torch.eye(r).expand(*leading, -1, -1), torch.ones(shape)) is None
