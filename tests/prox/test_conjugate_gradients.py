"""The iterations of `solve_nonlinear` against a version written out neuron by neuron, and their invariants."""

import itertools

import numpy as np
import pytest
import torch
from layer_problems import ACTIVATIONS, MOVES, SIDES, features_matrix, moved, objective, randn, ridge
from reference_cg import Trace, reference_cg
from torch import Tensor

from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Span
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.solvers.nonlinear import solve_nonlinear
from sibp.prox.status import Status

pytestmark = pytest.mark.usefixtures("both_ways")

LAM = 0.05


def hard_problem(name: str, seed: int = 0, g: int = 1, N: int = 8, n: int = 5, m: int = 6) -> tuple[Tensor, ...]:
    """A, Z, T: far from a minimum, so that steps are refused and directions replaced."""
    _, s = ACTIVATIONS[name]
    A, Z = 2 * randn(g, N, n, seed=seed), 2 * randn(g, N, m, seed=seed + 100)
    return A, Z, s(Z) - 3 * randn(g, N, m, seed=seed + 200)


def reference(
    features: DenseFeatures, Z: Tensor, T: Tensor, name: str, iterations: int
) -> tuple[np.ndarray, list[Trace]]:
    """The reference solver on all neurons of all groups in turn."""
    P, z, t = features_matrix(features), Z.numpy(), T.numpy()
    groups, traces = [], []
    for i in range(len(P)):
        answers = [
            reference_cg(P[i], z[i, :, j], t[i, :, j], LAM, ACTIVATIONS[name][1], iterations)
            for j in range(z.shape[-1])
        ]
        groups.append(np.stack([x for x, _ in answers], 1))
        traces += [trace for _, trace in answers]
    return np.stack(groups), traces


@pytest.mark.parametrize("iterations", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_iterations_are_those_of_each_neuron_alone(name, seed, iterations):
    A, Z, T = hard_problem(name, seed)
    features = DenseFeatures(A)
    expected, traces = reference(features, Z, T, name, iterations)
    start, end = sum(t.f[0] for t in traces), sum(t.f[-1] for t in traces)
    for side in SIDES:
        coordinates = side(features)
        solution = solve_nonlinear(coordinates, Z, T, LAM, ACTIVATIONS[name][0], iterations)
        np.testing.assert_allclose(moved(solution), expected, rtol=1e-10, atol=1e-10)
        stats = solution.stats
        assert stats.status == Status.SOLVED
        assert stats.iterations == iterations
        assert float(stats.decrease) == pytest.approx(1 - end / start, rel=1e-10)
        assert float(stats.squared_change) == pytest.approx(np.square(expected).sum(), rel=1e-10)
        assert float(stats.step_length) == pytest.approx(np.mean([t.steps for t in traces]), rel=1e-10)


def test_the_problems_exercise_every_rule():
    traces = []
    for name in ACTIVATIONS:
        for seed in range(3):
            A, Z, T = hard_problem(name, seed)
            traces += reference(DenseFeatures(A), Z, T, name, 5)[1]
    assert sum(t.refused for t in traces) > 50
    assert sum(t.restarts for t in traces) > 50
    assert sum(t.ascents for t in traces) > 10


@pytest.mark.parametrize(("weight", "bias"), MOVES)
@pytest.mark.parametrize("shape", [(1, 3, 6), (1, 9, 2), (3, 4, 5), (2, 1, 4), (1, 5, 1)])
def test_every_shape_and_every_parameter(shape, weight, bias):
    A, Z, T = hard_problem("relu", 3, *shape, m=4)
    features = DenseFeatures(A, weight, bias)
    expected, _ = reference(features, Z, T, "relu", 4)
    for side in SIDES:
        coordinates = side(features)
        solution = solve_nonlinear(coordinates, Z, T, LAM, ACTIVATIONS["relu"][0], 4)
        np.testing.assert_allclose(moved(solution), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_iteration_raises_a_neurons_objective(name):
    """The objective never rises with the number of iterations, neuron by neuron, and is what `stats` says."""
    for seed in range(4):
        A, Z, T = hard_problem(name, 10 + seed)
        features = DenseFeatures(A)
        P, coordinates = features_matrix(features), SIDES[seed % 2](features)
        s, torch_s = ACTIVATIONS[name]
        before = start = objective(P, Z, T, LAM, torch_s, np.zeros((1, P.shape[-1], Z.shape[-1])))
        for iterations in range(1, 13):
            solution = solve_nonlinear(coordinates, Z, T, LAM, s, iterations)
            X = moved(solution)
            now = objective(P, Z, T, LAM, torch_s, X)
            assert (now <= before * (1 + 1e-12)).all()
            assert float(solution.stats.decrease) == pytest.approx(1 - (now.sum() / start.sum()).item(), rel=1e-9)
            assert float(solution.stats.squared_change) == pytest.approx(np.square(X).sum(), rel=1e-9)
            before = now
        assert (before < start).all()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("weight", "bias"), MOVES)
@pytest.mark.parametrize("shape", [(1, 4, 7), (1, 7, 3), (2, 5, 5)])
def test_without_activation_it_reaches_the_closed_form_in_as_many_iterations_as_dimensions(shape, weight, bias, side):
    features = DenseFeatures(randn(*shape), weight, bias)
    Z, T = randn(*shape[:2], 4, seed=1), randn(*shape[:2], 4, seed=2)
    coordinates = side(features)
    iterations = min(shape[1], features.size)
    solution = solve_nonlinear(coordinates, Z, T, 0.5, ACTIVATIONS["identity"][0], iterations)
    P = features_matrix(features)
    expected = np.stack([ridge(p, r, 0.5) for p, r in zip(P, (Z - T).numpy(), strict=True)])
    np.testing.assert_allclose(moved(solution), expected, rtol=1e-8, atol=1e-8)
    closed = solve_linear(coordinates, Z - T, 0.5)
    assert float(solution.stats.decrease) == pytest.approx(float(closed.stats.decrease), rel=1e-9)


def test_a_refused_step_is_reported_and_then_shortened():
    """Far in tanh's tail the slope is tiny and the Gauss-Newton step leads far beyond the minimum."""
    features = DenseFeatures(torch.ones(1, 1, 1, dtype=torch.float64), bias=False)
    Z, T = torch.full((1, 1, 1), 4.0, dtype=torch.float64), torch.full((1, 1, 1), 0.8, dtype=torch.float64)
    s, torch_s = ACTIVATIONS["tanh"]
    for side in SIDES:
        refused = solve_nonlinear(side(features), Z, T, 1e-9, s, 1)
        assert refused.stats.status == Status.STALLED
        assert refused.stats.decrease == refused.stats.squared_change == refused.stats.step_length == 0
        assert not refused.x.any()
        later = solve_nonlinear(side(features), Z, T, 1e-9, s, 12)
        assert later.stats.status == Status.SOLVED
        assert torch_s(Z + later.x).item() == pytest.approx(0.8, abs=1e-6)


def test_a_step_that_changes_nothing_is_not_taken():
    """At the minimum f cannot decrease: the point stays bit-identical, and the status is not a failure."""
    features = DenseFeatures(randn(1, 4, 3))
    Z = randn(1, 4, 2, seed=1)
    solution = solve_nonlinear(SIDES[0](features), Z, Z.relu(), 1.0, ACTIVATIONS["relu"][0], 5)
    assert not solution.x.any()
    assert solution.stats.status == Status.SOLVED
    assert solution.stats.decrease == solution.stats.step_length == 0


@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("side", SIDES)
def test_a_residual_of_mere_rounding_changes_nothing(side, scale):
    features = DenseFeatures(scale * randn(1, 4, 3))
    Z = randn(1, 4, 2, seed=1)
    T = torch.nextafter(Z.relu(), Z.relu() + 1)
    solution = solve_nonlinear(side(features), Z, T, 1.0, ACTIVATIONS["relu"][0], 5)
    assert not solution.x.any()
    assert solution.stats.status == Status.SOLVED


@pytest.mark.parametrize("side", SIDES)
def test_a_step_that_does_not_decrease_the_objective_is_not_taken(side):
    """From relu(2) with target -13 the Gauss-Newton step is -8: 15^2 = 13^2 + 7/8 8^2, all exact in binary."""
    features = DenseFeatures(torch.ones(1, 1, 1, dtype=torch.float64), bias=False)
    Z, T = torch.full((1, 1, 1), 2.0, dtype=torch.float64), torch.full((1, 1, 1), -13.0, dtype=torch.float64)
    X = np.full((1, 1, 1), -8.0)
    assert objective(np.ones((1, 1, 1)), Z, T, 0.875, torch.relu, X) == 15**2
    solution = solve_nonlinear(side(features), Z, T, 0.875, ACTIVATIONS["relu"][0], 1)
    assert not solution.x.any()
    assert solution.stats.status == Status.STALLED


@pytest.mark.parametrize("side", SIDES)
def test_dead_neurons_are_unchanged_and_do_not_affect_the_others(side):
    features = DenseFeatures(randn(1, 6, 4))
    Z, T = randn(1, 6, 3, seed=1), randn(1, 6, 3, seed=2)
    Z[..., 1] = -50.0
    coordinates = side(features)
    X = moved(solve_nonlinear(coordinates, Z, T, 0.5, ACTIVATIONS["relu"][0], 6))
    assert not X[..., 1].any()
    others = [0, 2]
    alone = moved(solve_nonlinear(coordinates, Z[..., others], T[..., others], 0.5, ACTIVATIONS["relu"][0], 6))
    assert np.abs(alone).max() > 0.01
    np.testing.assert_allclose(X[..., others], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("side", SIDES)
def test_a_layer_of_dead_neurons_is_solved(side):
    features = DenseFeatures(randn(1, 6, 4))
    Z, T = torch.full((1, 6, 3), -1.0, dtype=torch.float64), randn(1, 6, 3, seed=2)
    solution = solve_nonlinear(side(features), Z, T, 0.5, ACTIVATIONS["relu"][0], 5)
    assert not solution.x.any()
    assert solution.stats.status == Status.SOLVED
    assert solution.stats.decrease == 0


def test_a_unit_at_exactly_zero_is_not_active():
    features = DenseFeatures(randn(1, 6, 4))
    Z = torch.zeros(1, 6, 3, dtype=torch.float64)
    solution = solve_nonlinear(SIDES[0](features), Z, Z + 1, 0.5, ACTIVATIONS["relu"][0], 3)
    assert not solution.x.any()


@pytest.mark.parametrize("side", SIDES)
def test_an_empty_batch_changes_nothing(side):
    coordinates = side(DenseFeatures(randn(1, 0, 4)))
    Z = randn(1, 0, 3)
    solution = solve_nonlinear(coordinates, Z, Z, 1.0, ACTIVATIONS["relu"][0], 3)
    assert not moved(solution).any()
    assert solution.stats.status == Status.SOLVED
    assert solution.stats.decrease == solution.stats.step_length == solution.stats.squared_change == 0


REPEATS = {
    "all inputs zero": lambda A: 0 * A,
    "all samples equal": lambda A: A[:, :1].expand_as(A).contiguous(),
    "three different samples": lambda A: A[:, torch.arange(A.shape[1]) % 3],
    "rank two": lambda A: A[..., :2] @ A[:, :2],
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("name", ["identity", "relu", "tanh"])
@pytest.mark.parametrize("kind", REPEATS)
def test_rounding_is_not_used_as_a_direction(kind, name, dtype):
    """Dependent samples: many coefficients that move nothing, and iterations left over after the minimum is reached."""
    s, torch_s = ACTIVATIONS[name]
    for lam, iterations, seed in itertools.product((1e-3, 0.1, 1.0), (3, 5, 9), (0, 1)):
        A = REPEATS[kind](randn(3, 20, 40, seed=seed))
        Z = randn(3, 20, 10, seed=seed + 50)
        T = torch_s(Z) - randn(3, 20, 10, seed=seed + 99)
        features = DenseFeatures(A.to(dtype))
        coordinates = Span(features)
        solution = solve_nonlinear(coordinates, Z.to(dtype), T.to(dtype), lam, s, iterations)
        X, P = moved(solution), features_matrix(features)
        start, end = (objective(P, Z, T, lam, torch_s, point) for point in (0 * X, X))
        assert (end <= start * (1 + 1e-5)).all()
        assert float(solution.stats.decrease) == pytest.approx(1 - (end.sum() / start.sum()).item(), abs=1e-4)
