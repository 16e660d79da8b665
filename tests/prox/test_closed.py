"""The closed form in C against float64: shapes that fill no vector, what has no inverse, many threads."""

import pytest
import torch

from sibp.prox import closed, kernels
from sibp.prox.operators import DenseFeatures

pytestmark = pytest.mark.skipif(not kernels.available(), reason="the kernels are not installed")
EPS = torch.finfo(torch.float32).eps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("N", [1, 2, 3, 4, 5, 31, 100, 256])
@pytest.mark.parametrize("n", [0, 1, 7, 16, 17, 1025])
def test_gram_matrices_of_all_shapes(dtype: torch.dtype, N: int, n: int):
    A = torch.randn(N, n, dtype=dtype, generator=torch.Generator().manual_seed(N + n))
    K = closed.outer_gram(A, 1.0)
    exact = A.double() @ A.double().T + 1
    assert K is not None
    assert torch.equal(K, K.T)
    torch.testing.assert_close(K.double(), exact, rtol=0, atol=float(16 * torch.finfo(dtype).eps * exact.diag().max()))


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


@pytest.mark.parametrize("A", [torch.zeros(0, 3), torch.zeros(257, 3), torch.zeros(3, 4, 5), torch.zeros(5, 4).T])
def test_other_matrices_are_left_to_torch(A: torch.Tensor):
    assert closed.outer_gram(A, 1.0) is None
    gram = DenseFeatures(A).outer_gram()
    torch.testing.assert_close(gram, A @ A.mT + 1)


@pytest.mark.parametrize("r", [1, 2, 3, 4, 5, 6, 7, 8, 63, 100, 256])
@pytest.mark.parametrize("gap", [1.0, 1e3])
def test_inverses_are_those_of_double_precision(r: int, gap: float):
    Q, _ = torch.linalg.qr(torch.randn(r, r, dtype=torch.float64, generator=torch.Generator().manual_seed(r)))
    G = ((Q * torch.logspace(0, -torch.tensor(gap).log10(), r, dtype=torch.float64)) @ Q.T).float()
    G = (G + G.T) / 2
    found = closed.minus_inverse(G, 0.01, 0.0)
    assert found is not None
    inverse, norm = found
    exact = torch.linalg.inv(G.double() + 0.01 * torch.eye(r, dtype=torch.float64))
    assert norm == pytest.approx(G.double().norm().item(), rel=1e-12)
    assert inverse is not None
    assert torch.equal(inverse, inverse.T)
    torch.testing.assert_close(-inverse.double(), exact, rtol=EPS, atol=EPS * 1e-3)


def test_there_is_no_inverse_of_what_is_not_positive_definite():
    G = torch.eye(6)
    G[4, 4] = -2.0
    assert closed.minus_inverse(G, 1.0, 0.0) == (None, pytest.approx(3.0))


def test_there_is_no_inverse_below_the_resolution_that_is_asked_for():
    G = torch.eye(4)  # of norm 2
    assert closed.minus_inverse(G, 1.0, 0.51) == (None, 2.0)
    found = closed.minus_inverse(G, 1.0, 0.49)
    assert found is not None
    assert torch.equal(found[0], -torch.eye(4) / 2)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_has_no_inverse(bad: float):
    G = torch.eye(5)
    G[3, 1] = G[1, 3] = bad
    found = closed.minus_inverse(G, 1.0, 0.0)
    assert found is not None
    assert found[0] is None


def test_double_precision_is_left_to_torch():
    assert closed.minus_inverse(torch.eye(3, dtype=torch.float64), 1.0, 0.0) is None
