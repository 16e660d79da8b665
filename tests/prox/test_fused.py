"""The compiled iterations equal the plain ones up to rounding; without kernels everything still works."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from sibp.activations import IDENTITY, MISH, RELU, leaky_relu
from sibp.prox import fused, kernels
from sibp.prox.kernels import disabled
from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Direct, Span
from sibp.prox.solvers.nonlinear import solve_nonlinear

needs_kernels = pytest.mark.skipif(not kernels.available(), reason="needs kernels: python setup.py build_ext --inplace")


def problem(groups: int, N: int, n: int, m: int, dtype: torch.dtype, seed: int = 0, side=Span):
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    return side(DenseFeatures(randn(groups, N, n))), randn(groups, N, m), randn(groups, N, m)


@needs_kernels
@pytest.mark.parametrize("s", [RELU, IDENTITY, leaky_relu(0.2)], ids=lambda s: s.name)
@pytest.mark.parametrize(
    "shape",
    [(1, 5, 9, 3), (1, 37, 60, 34), (1, 60, 70, 5), (1, 12, 40, 32), (2, 7, 11, 33), (3, 1, 4, 70), (1, 20, 30, 1)],
)
@pytest.mark.parametrize("iterations", [1, 2, 5, 12])
@pytest.mark.parametrize("lam", [0.01, 1.0])
@pytest.mark.parametrize("side", [Span, Direct])
def test_equals_the_ordinary_iterations(side, s, shape, iterations: int, lam: float):
    coordinates, Z, T = problem(*shape, dtype=torch.float64, side=side)
    before = Z.clone(), T.clone()
    assert fused.usable(coordinates, Z, s)
    compiled = solve_nonlinear(coordinates, Z, T, lam, s, iterations)
    with disabled():
        assert not fused.usable(coordinates, Z, s)
        ordinary = solve_nonlinear(coordinates, Z, T, lam, s, iterations)
    torch.testing.assert_close(compiled.x, ordinary.x, rtol=1e-7, atol=1e-9)
    # Rounding decides whether a nearly converged neuron takes one more step, which shows in the step lengths.
    keys = ["status", "decrease", "squared_change"] + ["step_length"] * (iterations == 1)
    for key in keys:
        a, b = getattr(compiled.stats, key), getattr(ordinary.stats, key)
        assert float(a) == pytest.approx(float(b), rel=1e-6, abs=1e-9), key
    assert torch.equal(before[0], Z)
    assert torch.equal(before[1], T)


@needs_kernels
def test_float32_and_strided_arguments():
    coordinates, Z, T = problem(1, 20, 50, 40, torch.float32)
    Z, T = Z.mT.contiguous().mT, T.mT.contiguous().mT
    assert not Z.is_contiguous()
    compiled = solve_nonlinear(coordinates, Z, T, 1.0, RELU, 5)
    wide, Z64, T64 = problem(1, 20, 50, 40, torch.float64)
    with disabled():
        reference = solve_nonlinear(wide, Z64, T64, 1.0, RELU, 5)
    assert compiled.x.dtype == torch.float32
    assert (compiled.x - reference.x).norm() < 1e-3 * reference.x.norm()


@needs_kernels
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_non_finite_values_keep_the_weights(bad: float):
    coordinates, Z, T = problem(1, 6, 9, 4, torch.float32)
    T[0, 2, 1] = bad
    solution = solve_nonlinear(coordinates, Z, T, 1.0, RELU, 3)
    assert not solution.x.any()
    assert float(solution.stats.status) == 4


def both(coordinates, Z, T, iterations: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """The solutions of the compiled and the plain iterations."""
    compiled = solve_nonlinear(coordinates, Z, T, 1.0, RELU, iterations).x
    with disabled():
        return compiled, solve_nonlinear(coordinates, Z, T, 1.0, RELU, iterations).x


@needs_kernels
@pytest.mark.parametrize("side", [Span, Direct])
def test_alternating_layer_sizes(side):
    """Buffers are kept between calls: they must be large enough for each, and their old content must not matter."""
    vars(kernels._buffers).clear()
    for shape in [(1, 4, 6, 3), (1, 9, 5, 8), (1, 30, 20, 25), (1, 4, 6, 3), (2, 9, 5, 8)]:
        compiled, ordinary = both(*problem(*shape, dtype=torch.float64, side=side))
        torch.testing.assert_close(compiled, ordinary, rtol=1e-9, atol=1e-11)
        for kept in vars(kernels._buffers).values():
            kept.fill_(float("nan"))  # as a layer with a non-finite input does


@needs_kernels
def test_every_group_has_its_own_rounding_threshold():
    """A group of inputs a thousand million times larger does not make the other's steps look like rounding."""
    coordinates, Z, T = problem(2, 6, 4, 3, torch.float64)
    A = coordinates.features.A.clone()
    A[0] *= 1e9
    compiled, ordinary = both(Span(DenseFeatures(A)), Z, T)
    torch.testing.assert_close(compiled[1], ordinary[1], rtol=1e-9, atol=1e-11)
    assert compiled[1].any()


@needs_kernels
@pytest.mark.parametrize("side", [Span, Direct])
def test_results_do_not_depend_on_the_number_of_threads(side, monkeypatch: pytest.MonkeyPatch):
    coordinates, Z, T = problem(2, 9, 7, 50, torch.float64, side=side)
    alone = solve_nonlinear(coordinates, Z, T, 1.0, RELU, 3).x
    monkeypatch.setattr(fused, "_PARALLEL", 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = solve_nonlinear(coordinates, Z, T, 1.0, RELU, 3).x
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


@needs_kernels
def test_concurrent_solves_do_not_interfere():
    problems = [problem(1, 40, 50, 60, torch.float64, seed=seed) for seed in range(4)]
    expected = [both(*given)[1] for given in problems]

    def solve(k: int) -> torch.Tensor:
        coordinates, Z, T = problems[k % 4]
        return solve_nonlinear(coordinates, Z, T, 1.0, RELU, 3).x

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(solve, range(200)))
    for k, x in enumerate(found):
        torch.testing.assert_close(x, expected[k % 4], rtol=1e-9, atol=1e-11)


def test_unsupported_inputs_use_the_torch_implementation():
    coordinates, Z, _ = problem(1, 6, 9, 4, torch.float32)
    assert not fused.usable(coordinates, Z, MISH)
    assert not fused.usable(coordinates, Z.half(), RELU)
    assert not fused.usable(coordinates, Z[:, :0], RELU)
