"""Smooth activations in compiled code: values and slopes against exact ones, iterations against plain ones."""

import ctypes

import pytest
import torch
from layer_problems import ACTIVATIONS, SIDES, randn
from test_fused import needs_kernels

from sibp.activations import Activation, register_activation
from sibp.prox import fused, kernels
from sibp.prox.operators import ConvolutionFeatures, DenseFeatures
from sibp.prox.operators.window import Window
from sibp.prox.outputs import CompiledOutputs, _shape_type, outputs_of
from sibp.prox.solvers.coordinates import Direct
from sibp.prox.solvers.nonlinear import solve_nonlinear

pytestmark = needs_kernels
NAMES = ["tanh", "sigmoid", "silu", "gelu", "gelu_tanh"]
SMOOTH = [ACTIVATIONS[name][0] for name in NAMES]
smooth = pytest.mark.parametrize("s", SMOOTH, ids=NAMES)
DTYPES = [torch.float32, torch.float64]


def points(s: Activation, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """s(z) and s'(z) as compiled code has them."""
    library = kernels.library(z)
    assert library is not None
    shape = _shape_type(z.dtype)(N=z.numel(), M=1, threads=1, kind=kernels.kind_of(s), a=s.negative_slope or 0.0)
    value, slope = torch.empty_like(z), torch.empty_like(z)
    library.points(ctypes.byref(shape), *(ctypes.c_void_p(t.data_ptr()) for t in (z, value, slope)))
    return value, slope


def exact(s: Activation, z: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """s(z) and s'(z) in 40 digits, rounded to float64."""
    mp = pytest.importorskip("mpmath", reason="needs the package mpmath").mp.clone()
    mp.dps = 40
    root, cubic = mp.sqrt(2 / mp.pi), mp.mpf("0.044715")
    functions = {
        "tanh": mp.tanh,
        "sigmoid": lambda x: 1 / (1 + mp.exp(-x)),
        "silu": lambda x: x / (1 + mp.exp(-x)),
        "gelu": lambda x: x * mp.ncdf(x),
        "gelu_tanh": lambda x: x / (1 + mp.exp(-2 * root * (x + cubic * x**3))),
    }
    f, numbers = functions[s.kernel], [mp.mpf(x) for x in z.double().tolist()]
    values, slopes = [f(x) for x in numbers], [mp.diff(f, x) for x in numbers]
    return tuple(torch.tensor([float(x) for x in found], dtype=torch.float64) for found in (values, slopes))


def grid(dtype: torch.dtype) -> torch.Tensor:
    """From the smallest numbers to where all that is left of an activation is 0, 1 or z."""
    sizes = torch.cat([torch.logspace(-12, 0, 40, dtype=torch.float64), torch.linspace(1, 12, 90, dtype=torch.float64)])
    return torch.cat([-sizes.flip(0), torch.zeros(1, dtype=torch.float64), sizes]).to(dtype)


@smooth
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("width")
def test_values_and_slopes_to_rounding(s, dtype):
    z = grid(dtype)
    value, slope = points(s, z)
    true_value, true_slope = exact(s, z)
    eps = torch.finfo(dtype).eps
    # Relative to the value, except for the tanh form: its argument z + 0.04 z^3 rounds in the far tail.
    scale = true_value.abs() if s.kernel != "gelu_tanh" else true_value.abs() * (1 + z.double().abs() ** 3 / 8)
    assert ((value.double() - true_value).abs() <= 4 * eps * scale + 20 * torch.finfo(dtype).tiny).all()
    assert ((slope.double() - true_slope).abs() <= 4 * eps).all()


@smooth
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("width")
def test_compiled_values_and_slopes_equal_torchs(s, dtype):
    z = torch.cat([grid(dtype), randn(1000, dtype=dtype) * 3])
    value, slope = points(s, z)
    tolerance = {"rtol": 0, "atol": 40 * torch.finfo(dtype).eps}
    torch.testing.assert_close(value, s.value(z), **tolerance)
    torch.testing.assert_close(slope, s.slope(z), **tolerance)


@smooth
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.usefixtures("width")
def test_extreme_inputs(s, dtype):
    large = [30.0, 1e2, 1e4, 1e18, torch.finfo(dtype).max]
    z = torch.tensor([*large, *(-x for x in large)], dtype=dtype)
    value, slope = points(s, z)
    ones, zeros = torch.ones(len(large), dtype=dtype), torch.zeros(len(large), dtype=dtype)
    right = z[: len(large)] if s.kernel in ("silu", "gelu", "gelu_tanh") else ones
    torch.testing.assert_close(value[: len(large)], right)
    torch.testing.assert_close(value[len(large) :], -ones if s.kernel == "tanh" else zeros, rtol=1e-6, atol=1e-11)
    bounded = s.kernel in ("tanh", "sigmoid")
    torch.testing.assert_close(slope[: len(large)], zeros if bounded else ones, rtol=1e-6, atol=1e-11)
    torch.testing.assert_close(slope[len(large) :], zeros, rtol=0, atol=1e-11)
    assert points(s, torch.tensor([float("nan")], dtype=dtype))[0].isnan().all()
    assert points(s, torch.tensor([float("nan")], dtype=dtype))[1].isnan().all()
    infinite = torch.tensor([float("inf")], dtype=dtype)
    torch.testing.assert_close(points(s, infinite)[0], s.value(infinite))


def problem(groups: int, N: int, n: int, m: int, dtype: torch.dtype, side):
    features = DenseFeatures(randn(groups, N, n, dtype=dtype))
    return side(features), randn(groups, N, m, seed=1, dtype=dtype), randn(groups, N, m, seed=2, dtype=dtype)


@smooth
@pytest.mark.parametrize("shape", [(1, 5, 9, 3), (1, 37, 60, 34), (1, 60, 70, 5), (2, 7, 11, 33), (3, 1, 4, 70)])
@pytest.mark.parametrize("iterations", [1, 3, 8])
@pytest.mark.parametrize("side", SIDES)
def test_iterations_equal_torchs(s, shape, iterations: int, side):
    coordinates, Z, T = problem(*shape, dtype=torch.float64, side=side)
    before = Z.clone(), T.clone()
    assert fused.usable(coordinates, Z, s)
    compiled = solve_nonlinear(coordinates, Z, T, 0.3, s, iterations)
    with kernels.disabled():
        plain = solve_nonlinear(coordinates, Z, T, 0.3, s, iterations)
    torch.testing.assert_close(compiled.x, plain.x, rtol=1e-7, atol=1e-9)
    for key in ["status", "decrease", "squared_change"] + ["step_length"] * (iterations == 1):
        a, b = getattr(compiled.stats, key), getattr(plain.stats, key)
        assert float(a) == pytest.approx(float(b), rel=1e-6, abs=1e-9), key
    assert torch.equal(before[0], Z)
    assert torch.equal(before[1], T)


@smooth
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.usefixtures("width")
def test_iterations_in_single_precision(s, side):
    coordinates, Z, T = problem(1, 21, 50, 40, torch.float32, side)
    found = solve_nonlinear(coordinates, Z, T, 1.0, s, 3)
    with kernels.disabled():
        wide = problem(1, 21, 50, 40, torch.float64, side)
        exactly = solve_nonlinear(*wide, 1.0, s, 3)
    assert (found.x - exactly.x).norm() < 1e-3 * exactly.x.norm()
    assert float(found.stats.decrease) == pytest.approx(float(exactly.stats.decrease), rel=1e-4)


@smooth
@pytest.mark.parametrize("iterations", [1, 4])
@pytest.mark.parametrize(("groups", "bias"), [(1, True), (3, False)])
def test_convolutions(s, iterations: int, groups: int, bias: bool):
    window = Window((3, 2), (2, 1), (1, 0), (1, 2), groups)
    features = ConvolutionFeatures(randn(4, 2 * groups, 7, 6), window, bias=bias)
    z = randn(4, 5 * groups, *features.positions, seed=2)
    Z, T = features.in_rows(z), features.in_rows(randn(*z.shape, seed=3))
    assert type(outputs_of(features, Z, T, s)) is CompiledOutputs
    compiled = solve_nonlinear(Direct(features), Z, T, 0.7, s, iterations)
    with kernels.disabled():
        plain = solve_nonlinear(Direct(features), Z, T, 0.7, s, iterations)
    torch.testing.assert_close(compiled.x, plain.x, rtol=1e-8, atol=1e-10)
    assert float(compiled.stats.decrease) == pytest.approx(float(plain.stats.decrease), rel=1e-9)


@smooth
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", ["Z", "T"])
def test_non_finite_inputs_keep_the_weights(s, bad: float, where: str):
    coordinates, Z, T = problem(1, 6, 9, 4, torch.float32, SIDES[0])
    if where == "Z" and bad == float("inf") and s.kernel in ("tanh", "sigmoid"):
        pytest.skip("a finite value and a slope of 0: nothing is lost")
    (Z if where == "Z" else T)[0, 2, 1] = bad
    solution = solve_nonlinear(coordinates, Z, T, 1.0, s, 3)
    assert not solution.x.any()
    assert float(solution.stats.status) == 4


def test_a_user_activation_with_a_known_name_keeps_its_function():
    def tanh(z):
        return torch.tanh(z) + z

    register_activation(tanh, tanh)
    own = Activation("tanh", tanh, lambda z: 2 - torch.tanh(z).square())
    coordinates, Z, T = problem(1, 6, 9, 4, torch.float64, SIDES[0])
    assert not fused.usable(coordinates, Z, own)
    assert solve_nonlinear(coordinates, Z, T, 1.0, own, 3).stats.decrease > 0
