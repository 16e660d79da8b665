"""Promises of ``solve_layer`` beyond the golden cases: skipped calls, lam, invalid inputs, dtypes."""

import pytest
import torch

from sibp.prox.solvers.paper import ITERATIONS, POWERS, RHO, SIGMA, _hidden_power, _line_search, solve_layer


def problem(dtype=torch.float64, batch=9, n_in=7, n_out=4, seed=0):
    """Return A, Z, T, W, b of a random layer."""
    generator = torch.Generator().manual_seed(seed)
    A, T, W, b = (
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
        for shape in [(batch, n_in), (batch, n_out), (n_out, n_in), (n_out,)]
    )
    return A, A @ W.T + b, T, W, b


@pytest.mark.parametrize("relu", [True, False])
def test_weights_then_bias_each_with_its_own_lam(relu):
    A, Z, T, W, b = problem()
    both = solve_layer(A, Z, T, W, b, 0.5, 2.0, relu=relu)
    only_W = solve_layer(A, Z, T, W, b, 0.5, 1e9, relu=relu, train_b=False)
    only_b = solve_layer(A, A @ only_W.W.T + b, T, only_W.W, b, 1e9, 2.0, relu=relu, train_W=False)
    assert only_W.b is b
    assert only_W.trace_b is None
    assert only_b.W is only_W.W
    assert only_b.trace_W is None
    assert both.b is not None
    torch.testing.assert_close(both.W, only_W.W, rtol=0, atol=0)
    torch.testing.assert_close(both.b, only_b.b, rtol=1e-12, atol=1e-12)
    assert not torch.equal(both.W, W)
    assert not torch.equal(both.b, b)


@pytest.mark.parametrize("relu", [True, False])
def test_layer_without_bias_equals_a_frozen_zero_bias(relu):
    A, _, T, W, b = problem()
    Z = A @ W.T
    without = solve_layer(A, Z, T, W, None, 0.5, 0.5, relu=relu)
    frozen = solve_layer(A, Z, T, W, torch.zeros_like(b), 0.5, 0.5, relu=relu, train_b=False)
    assert without.b is None
    assert without.trace_b is None
    assert torch.equal(without.W, frozen.W)


def test_nothing_trainable_changes_nothing():
    A, Z, T, W, b = problem()
    solution = solve_layer(A, Z, T, W, b, 1.0, 1.0, relu=True, train_W=False, train_b=False)
    assert solution.W is W
    assert solution.b is b


@pytest.mark.parametrize("relu", [True, False])
def test_arguments_are_not_modified_and_the_objective_decreases(relu):
    arguments = problem()
    copies = [tensor.clone() for tensor in arguments]
    solution = solve_layer(*arguments, 0.5, 0.5, relu=relu)
    assert all(torch.equal(a, c) for a, c in zip(arguments, copies, strict=True))
    A, _, T, W, b = arguments
    activation = torch.relu if relu else (lambda P: P)
    f_W = (activation(A @ solution.W.T + b) - T).square().sum() + 0.5 * (solution.W - W).square().sum()
    assert solution.trace_W is not None
    assert solution.trace_b is not None
    assert solution.trace_W.f_end == pytest.approx(f_W.item(), rel=1e-12)
    assert solution.trace_b.iterations[0].f < solution.trace_W.iterations[0].f
    torch.testing.assert_close(solution.C, A @ solution.W.T)


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("where", [0, 1, 2])
def test_non_finite_values_never_reach_the_parameters(relu, bad, where):
    arguments = list(problem())
    arguments[where][0, 0] = bad
    solution = solve_layer(*arguments, 1.0, 1.0, relu=relu)
    assert solution.b is not None
    assert solution.W.isfinite().all()
    assert solution.b.isfinite().all()


def test_a_dead_layer_keeps_its_parameters():
    A, _, T, W, b = problem(seed=3)
    Z = A @ W.T + b
    b = b - Z.max() - 1
    solution = solve_layer(A, A @ W.T + b, T, W, b, 1.0, 1.0, relu=True)
    assert solution.trace_W is not None
    assert solution.b is not None
    assert [r.m for r in solution.trace_W.iterations] == [-1] * ITERATIONS
    assert torch.equal(solution.W, W)
    assert torch.equal(solution.b, b)


def test_a_unit_at_exactly_zero_is_not_active():
    A, Z, T, W, b = problem()
    A, Z, b = torch.zeros_like(A), torch.zeros_like(Z), torch.zeros_like(b)
    solution = solve_layer(A, Z, T.abs() + 1, W, b, 1.0, 1.0, relu=True)
    assert solution.trace_b is not None
    assert torch.equal(solution.trace_b.g1, torch.zeros_like(b))
    assert torch.equal(solution.b, b)


def search(*accepted_powers, m0):
    """Run the line search on an objective that falls enough at the given powers only."""
    steps = [RHO**m for m in accepted_powers]
    return _line_search(lambda t: -1.0 if t in steps else 1.0, lambda t: 0.0, f=2.0, gd=-1.0, m0=m0)


def test_an_accepted_full_step_of_a_hidden_layer_turns_into_m0_untested():
    assert search(0, m0=3) == 3
    assert search(0, 1, 2, 3, 4, m0=0) == 0


def test_a_hidden_layer_searches_beyond_m0():
    assert search(1, 3, 5, 6, m0=3) == 5
    assert search(1, 2, 3, m0=3) == -1


def test_the_output_layer_searches_all_powers_from_zero():
    assert search(0, 4, m0=-1) == 0
    assert search(4, 5, m0=-1) == 4


@pytest.mark.parametrize("m0", [-1, 0, 7])
def test_powers_end_at_49(m0):
    assert POWERS == 50
    assert search(49, m0=m0) == 49
    assert search(50, m0=m0) == -1


@pytest.mark.parametrize("m0", [-1, 0])
def test_acceptance_is_strict(m0):
    assert _line_search(lambda t: -SIGMA * t, lambda t: 0.0, f=0.0, gd=-1.0, m0=m0) == -1
    assert _line_search(lambda t: -SIGMA * t, lambda t: -1e-9, f=0.0, gd=-1.0, m0=m0) == 0


def test_m0_depends_only_on_the_size_of_the_slope():
    assert _hidden_power(1.0, -10.0) == _hidden_power(1.0, 10.0) == 9  # 0.6^9 = 0.01008
    assert _hidden_power(1.0, 0.0) == _hidden_power(0.0, 0.0) == _hidden_power(1.0, float("nan")) == 0
    assert _hidden_power(1.0, 0.01) == 0
    assert _hidden_power(0.0, 1.0) >= POWERS


def test_an_empty_batch_keeps_the_parameters():
    A, Z, T, W, b = problem(batch=0)
    solution = solve_layer(A, Z, T, W, b, 1.0, 1.0, relu=True)
    assert torch.equal(solution.W, W)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    A, Z, T, W, b = problem(dtype)
    arguments = [A, Z, 3000 * T, W, b]  # ||Z - T||^2 overflows float16
    half = solve_layer(*arguments, 1.0, 1.0, relu=True)
    single = solve_layer(*(tensor.float() for tensor in arguments), 1.0, 1.0, relu=True)
    assert half.W.dtype == dtype
    assert torch.equal(half.W, single.W.to(dtype))
    assert not torch.equal(half.W, W)


@pytest.mark.parametrize("transposed", range(4))
def test_memory_layout_does_not_matter(transposed):
    arguments = list(problem())
    expected = solve_layer(*arguments, 1.0, 1.0, relu=True)
    arguments[transposed] = arguments[transposed].T.contiguous().T
    found = solve_layer(*arguments, 1.0, 1.0, relu=True)
    torch.testing.assert_close(found.W, expected.W, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.b, expected.b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("index", "shape"), [(0, (9, 6)), (0, (9,)), (1, (9, 1)), (2, (1, 4)), (3, (4, 8)), (4, (1,))])
def test_shapes_that_do_not_fit_are_refused(index, shape):
    arguments = list(problem())
    arguments[index] = torch.zeros(shape, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"do not fit|must be"):
        solve_layer(*arguments, 1.0, 1.0, relu=True)


def test_works_inside_a_backward_pass():
    class Solve(torch.autograd.Function):
        @staticmethod
        def forward(ctx, A, W, b):
            Z = A @ W.T + b
            ctx.save_for_backward(A, Z, W, b)
            return Z

        @staticmethod
        def backward(ctx, *grads):
            A, Z, W, b = ctx.saved_tensors
            solution = solve_layer(A, Z, Z - grads[0], W, b, 1.0, 1.0, relu=False)
            return None, W - solution.W, b - solution.b

    A, Z, _, W, b = problem()
    W.requires_grad_()
    b.requires_grad_()
    Solve.apply(A, W, b).square().sum().backward()
    expected = solve_layer(A, Z, -Z, W, b, 1.0, 1.0, relu=False)
    assert not expected.W.requires_grad
    assert W.grad is not None
    torch.testing.assert_close(W - W.grad, expected.W)
