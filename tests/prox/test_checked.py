"""Which answers are accepted as accurate enough in the layer's precision, against float64 throughout."""

import math

import pytest
import torch
from layer_problems import SIDES, features_matrix, moved, randn, ridge

from sibp.prox import closed
from sibp.prox.kernels import disabled
from sibp.prox.operators import ConvolutionFeatures, DenseFeatures, Window
from sibp.prox.solvers import checked, linear
from sibp.prox.solvers.coordinates import Direct, Span
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.status import Status

EPS = torch.finfo(torch.float32).eps


def ends(features, R, lam, X) -> tuple[float, float]:
    """The objective at the displacement X, and the least there is, in float64."""
    P, wide = torch.from_numpy(features_matrix(features)), R.double()

    def objective(X: torch.Tensor) -> float:
        return float((wide + P @ X).square().sum() + lam * X.square().sum())

    return objective(torch.from_numpy(X)), objective(torch.from_numpy(ridge(P.numpy(), wide.numpy(), lam)))


@pytest.fixture
def never_wide(monkeypatch):
    """Fails if the solve is repeated in float64."""

    def refuse(*_):
        raise AssertionError("everything in float64")

    monkeypatch.setattr(linear, "_in_double_precision", refuse)


@pytest.mark.usefixtures("never_wide")
@pytest.mark.parametrize("units", [0.1, 3.0, 300.0])
def test_rich_features_are_solved_in_their_precision_for_any_lam(units):
    """3000 rows of 40 independent features: the smallest eigenvalue of G is nearly its largest."""
    features = DenseFeatures(randn(3000, 40, dtype=torch.float32))
    R = randn(3000, 6, seed=1, dtype=torch.float32)
    lam = units * EPS * float(features.gram().double().norm())
    solution = solve_linear(Direct(features), R, lam)
    end, best = ends(features, R, lam, moved(solution))
    start = float(R.double().square().sum())
    assert end - best <= 1e-4 * (start - best)
    assert solution.stats.status == Status.SOLVED
    assert float(solution.stats.decrease) == pytest.approx(1 - best / start, rel=1e-2)


HOSTILE = {
    "equal columns but for noise": lambda N, n: 0.1 + 1e-3 * randn(N, n),
    "one direction but for noise": lambda N, n: randn(N, 1) @ randn(1, n, seed=1) + 1e-5 * randn(N, n, seed=2),
    "columns of a thousand to a thousandth": lambda N, n: randn(N, n) * torch.logspace(3, -3, n),
    "every column twice": lambda N, n: randn(N, n // 2).repeat(1, 2),
    "a smooth basis": lambda N, n: torch.cos(math.pi * torch.linspace(0, 1, N)[:, None] * torch.arange(n)[None] / 8),
    "sparse": lambda N, n: randn(N, 20).relu() @ randn(20, n, seed=1).relu(),
}


@pytest.mark.parametrize("share", [1e-7, 1e-6, 1e-5, 1e-4])
@pytest.mark.parametrize("kind", HOSTILE)
@pytest.mark.parametrize("fitted", [True, False])
def test_accepted_answers_are_near_the_minimum(kind, share, fitted):
    """In direct coordinates, whatever the columns and the residual have in common; lam: a share of ||G||."""
    A = HOSTILE[kind](2000, 100).float()
    R = (A @ randn(100, 7, seed=3, dtype=torch.float32)) if fitted else randn(2000, 7, seed=3, dtype=torch.float32)
    features, wide, P = DenseFeatures(A, bias=False), R.double(), A.double()
    G = P.T @ P
    lam = share * float(G.norm())
    solution = solve_linear(Direct(features), R, lam)
    best = torch.linalg.solve(G + lam * torch.eye(100), -P.T @ wide)

    def objective(X: torch.Tensor) -> float:
        return float((wide + P @ X).square().sum() + lam * X.square().sum())

    start, least = float(wide.square().sum()), objective(best)
    assert solution.coordinates.direct
    assert objective(solution.x.double()) - least <= 1e-5 * (start - least)


def test_one_large_eigenvalue_costs_no_refinement(monkeypatch):
    """As of positive inputs: the rounding of its entries hardly concerns the others, which are of the size of lam."""
    monkeypatch.setattr(checked._Task, "refine", lambda *_: pytest.fail("refined"))
    A = 0.1 + 4e-3 * randn(4000, 400)
    features, R = DenseFeatures(A.float(), bias=False), randn(4000, 6, seed=1, dtype=torch.float32)
    lam = 40 * EPS * float((A.T @ A).norm())
    solution = solve_linear(Direct(features), R, lam)
    end, best = ends(features, R, lam, moved(solution))
    start = float(R.double().square().sum())
    assert end - best <= 1e-5 * (start - best)


@pytest.mark.usefixtures("never_wide")
def test_smooth_images_with_a_residual_of_noise_are_solved_in_their_precision():
    """As in a first layer: 76 unknowns fit a thousandth of the noise, and G's smallest eigenvalues are those of lam."""
    place, phase = torch.linspace(0, 6, 32), 6 * torch.rand(60, 1, generator=torch.Generator().manual_seed(0))
    smooth = (1 + torch.sin(place + phase))[:, None, :, None] * (2 + torch.cos(place - phase))[:, None, None]
    images = smooth / 3 + 0.02 * randn(60, 3, 32, 32)
    features = ConvolutionFeatures(images.float(), Window((5, 5), (1, 1), (2, 2), (1, 1), 1))
    R = 0.01 * randn(1, 60, 1024, 8, dtype=torch.float32)
    solution = solve_linear(Direct(features), R, 1.0)
    P, wide = torch.from_numpy(features_matrix(features.dense()))[0], R.double().flatten(1, 2)[0]
    G = P.T @ P + torch.eye(76)
    best, X = torch.linalg.solve(G, -P.T @ wide), solution.coordinates.entries(solution.x)[0].double()
    decrease = -float((P.T @ wide * best).sum())
    assert decrease < 2e-3 * float(wide.square().sum())
    assert float(((X - best) * (G @ (X - best))).sum()) <= 1e-5 * decrease


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_weighted_trace_of_the_inverse_is_an_upper_bound(dtype):
    """Exact for small systems, estimated for large ones."""
    for size, factor in ((40, 1.0), (checked.SINGLE + 20, checked._SAFETY)):
        coordinates = Direct(DenseFeatures(randn(2 * size, size - 1, dtype=dtype) * torch.logspace(0, 1, size - 1)))
        system = checked._System.of(coordinates, 0.5, dtype)
        assert system is not None
        G = coordinates.gram.double()
        inverse = torch.linalg.inv(G + 0.5 * torch.eye(size, dtype=torch.float64))
        trace = float((G.diagonal() * inverse.diagonal()).sum())
        found = system.weighted_trace(G.diagonal())
        assert found == pytest.approx(factor * trace, rel=1e-4 if factor == 1 else 0.3)


@pytest.mark.usefixtures("never_wide")
@pytest.mark.parametrize("side", SIDES)
def test_inaccurate_solutions_are_refined(side, monkeypatch):
    """A lam of few times the rounding of G, and a residual that nearly dependent features hardly fit."""
    refine, found = checked._Task.refine, []
    monkeypatch.setattr(checked._Task, "refine", lambda *given: found.append(refine(*given)) or found[-1])
    A = randn(100, 120, seed=3)[torch.arange(200) % 100] * torch.logspace(0, -3, 120)
    features = DenseFeatures(A.float())
    Phi = torch.from_numpy(features_matrix(features))
    lam = (1 if side is Direct else 30) * EPS * float((Phi.T @ Phi).norm())
    R = (0.1 * Phi @ randn(121, 5, seed=4) + 3 * randn(200, 5, seed=5)).float()
    solution = solve_linear(side(features), R, lam)
    assert found == [solution]
    end, best = ends(features, R, lam, moved(solution))
    start = float(R.double().square().sum())
    assert end - best <= 1e-4 * (start - best)
    assert float(solution.stats.decrease) == pytest.approx(1 - end / start, abs=1e-5)


@pytest.mark.usefixtures("never_wide")
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize(("rows", "inputs"), [(512, 640), (700, 511), (1024, 1024)])
@pytest.mark.parametrize("units", [100.0, 3000.0])
def test_large_systems_are_factored_in_single_precision(side, rows, inputs, units, monkeypatch):
    seen = []
    of = checked._System.of

    def watched(coordinates, lam, dtype):
        seen.append(dtype)
        return of(coordinates, lam, dtype)

    monkeypatch.setattr(checked._System, "of", watched)
    features = DenseFeatures(randn(rows, inputs, dtype=torch.float32).relu())
    R = randn(rows, 7, seed=1, dtype=torch.float32)
    coordinates = side(features)
    lam = units * EPS * float(coordinates.gram.double().norm())
    with disabled():
        solution = solve_linear(coordinates, R, lam)
    assert seen == ([torch.float32] if coordinates.size >= checked.SINGLE else [torch.float64] * (units < 1000))
    end, best = ends(features, R, lam, moved(solution))
    start = float(R.double().square().sum())
    assert end - best <= 1e-4 * (start - best)
    assert float(solution.stats.decrease) == pytest.approx(1 - best / start, abs=2e-3)


def test_a_system_indefinite_in_single_precision_is_factored_in_double(monkeypatch):
    """600 rows in pairs: single precision finds no positive pivot."""
    features = DenseFeatures(randn(300, 400, dtype=torch.float32).repeat_interleave(2, 0))
    R = randn(600, 3, seed=1, dtype=torch.float32)
    lam = 2 * EPS * float(features.outer_gram().double().norm())
    found = []
    of = checked._System.of
    monkeypatch.setattr(checked._System, "of", lambda *given: found.append(of(*given)) or found[-1])
    solution = solve_linear(Span(features), R, lam)
    end, best = ends(features, R, lam, moved(solution))
    assert [system is None or system.L.dtype for system in found][-1] is torch.float64
    start = float(R.double().square().sum())
    assert end - best <= 0.02 * start
    assert end <= start


@pytest.mark.parametrize("side", SIDES)
def test_an_inaccurate_answer_is_recomputed_in_float64(side):
    """Rows in pairs with residuals that cancel: float32 can fit only its own rounding."""
    features = DenseFeatures(randn(30, 20, dtype=torch.float32).repeat_interleave(2, 0))
    half = randn(30, 4, seed=1, dtype=torch.float32)
    R = torch.stack([half, -half], 1).flatten(0, 1)
    coordinates = side(features)
    norm = float(coordinates.gram.norm())
    lam = 20 * EPS * norm
    assert checked.checked(coordinates, R, coordinates.adjoint(R), lam, norm) is None
    solution = solve_linear(coordinates, R, lam)
    end, _ = ends(features, R, lam, moved(solution))
    assert end <= float(R.double().square().sum()) * (1 + 1e-9)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_non_finite_systems_are_left_to_the_caller(bad):
    features = DenseFeatures(randn(8, 5, dtype=torch.float32))
    R = randn(8, 3, seed=1, dtype=torch.float32)
    R[3, 1] = bad
    coordinates = Direct(features)
    assert checked.checked(coordinates, R, coordinates.adjoint(R), 1.0, 10.0) is None
    assert checked.checked(coordinates, R.nan_to_num(0, 0), coordinates.adjoint(R), 1.0, bad) is None


def test_the_norm_of_a_residual_is_estimated_from_random_signs():
    """Unbiased, and hardly ever below the true error; errors of units that cancel one another count, too."""
    features, found = DenseFeatures(randn(60, 30)), []
    coordinates = Direct(features)
    for units in range(40, 100, 2):
        R = randn(60, units, seed=units)
        task = checked._Task(coordinates, R, coordinates.adjoint(R), 1.0, 1.0, 1.0)
        column = randn(31, 1, seed=units + 1)
        x = linear_solution(coordinates, R) + torch.cat([column, -column, torch.zeros(31, units - 2)], 1)
        e = (coordinates.gram + torch.eye(31)) @ torch.cat([column, -column], 1)
        found.append(task._squared_error(x) / float(e.square().sum()))
    assert min(found) > 0.5
    assert sum(found) / len(found) == pytest.approx(checked._SAFETY, rel=0.15)


def test_a_few_units_are_judged_by_the_residual_itself():
    coordinates = Direct(DenseFeatures(randn(60, 30)))
    R = randn(60, 5, seed=1)
    task = checked._Task(coordinates, R, coordinates.adjoint(R), 1.0, 1.0, 1.0)
    off = randn(31, 5, seed=2)
    e = (coordinates.gram + torch.eye(31)) @ off
    assert task._squared_error(linear_solution(coordinates, R) + off) == pytest.approx(float(e.square().sum()))


@pytest.mark.parametrize("size", [20, 200])
def test_the_estimated_norm_of_the_inverse_is_an_upper_bound(size):
    coordinates = Direct(DenseFeatures(randn(2 * size, size - 1)))
    system = checked._System.of(coordinates, 0.1, torch.float64)
    assert system is not None
    least = float(torch.linalg.eigvalsh(coordinates.gram)[0]) + 0.1
    inverse = torch.linalg.inv(coordinates.gram + 0.1 * torch.eye(size))
    assert 1 / least <= system._norm_of_inverse <= 3 * float(inverse.norm())


def linear_solution(coordinates, R):
    """The x with (G + I) x = -rhs."""
    return -torch.linalg.solve(coordinates.gram + torch.eye(coordinates.size), coordinates.adjoint(R))


@pytest.mark.usefixtures("never_wide")
@pytest.mark.parametrize("units", [3, 90])
def test_span_coordinates_are_first_solved_in_single_precision(units, monkeypatch):
    """The residual shows that this suffices here, with a lam of 300 times the rounding of G."""
    if closed.minus_solve(torch.eye(2), torch.ones(2, 1), 1.0, 0.0) is None:
        pytest.skip("there are no kernels")
    monkeypatch.setattr(checked._System, "of", lambda *given: pytest.fail("factored again"))
    features = DenseFeatures(randn(60, 300, dtype=torch.float32))
    R = randn(60, units, seed=1, dtype=torch.float32)
    lam = 300 * EPS * float(features.outer_gram().double().norm())
    solution = solve_linear(Span(features), R, lam)
    end, best = ends(features, R, lam, moved(solution))
    start = float(R.double().square().sum())
    assert end - best <= 1e-4 * (start - best)
    assert float(solution.stats.decrease) == pytest.approx(1 - end / start, abs=1e-5)


def answer(error, *, norm=1.0, RR=3.0, RX=-1.0, XX=0.0):
    """With lam = 2, the decrease is RR + 2 RX = 1, of which an error of 1e-5 is tolerated."""
    return closed.Answer(torch.zeros(1, 1), norm, norm, 1.0, XX, closed.ResidualSums(RR, RX, error))


@pytest.mark.parametrize(
    ("looked_at", "units", "right"),
    [
        (answer(0.9e-5), 16, True),
        (answer(1.1e-5), 16, False),
        (answer(0.9e-5 * 16 / 4), 17, True),  # a mean of 16 samples, and a safety factor of 4
        (answer(1.1e-5 * 16 / 4), 17, False),
        (answer(0.0, norm=30.0, XX=1e6), 16, True),  # rounding of G: (1e-7 30)^2 1e6 = 0.9e-5
        (answer(0.0, norm=33.5, XX=1e6), 16, False),
        (answer(0.0, RX=-1.6), 16, False),  # no decrease
        (answer(0.0, norm=1e13), 16, False),  # lam is below the floor
        (answer(math.inf, RR=math.inf), 16, False),
        (answer(math.nan), 16, False),
        (closed.Answer(torch.zeros(1, 1), 1e13, 1e13, 1.0, 0.0, None), 16, True),  # lam was large enough
    ],
)
def test_a_check_detects_inaccurate_single_precision_answers(looked_at, units, right):
    assert checked.is_accurate(looked_at, 2.0, 1e-7, units) == right
