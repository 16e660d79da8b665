"""Minimal feature operators support everything a solver needs, and give the same solution."""

import pytest
import torch
from layer_problems import MOVES, randn
from torch import Tensor

from sibp.activations import RELU, TANH
from sibp.prox.operators import DenseFeatures, FeatureOperator
from sibp.prox.solvers.coordinates import Direct, Span, smaller_side
from sibp.prox.solvers.linear import solve_linear
from sibp.prox.solvers.nonlinear import solve_nonlinear


def dense(x: Tensor, weight: bool, bias: bool) -> Tensor:
    """[A, 1] of a sliding window of two entries over the rows of x (g, B, P + 1), (g, B * P, size)."""
    A = x.unfold(-1, 2, 1).flatten(1, 2)
    return torch.cat([A] * weight + [torch.ones_like(A[..., :1])] * bias, -1)


class Matrix(FeatureOperator):
    """The window, defined by its matrix alone."""

    def __init__(self, x: Tensor, weight: bool = True, bias: bool = True) -> None:
        g, B, width = x.shape
        super().__init__(x, 2, (B, width - 1), (g,), weight=weight, bias=bias)

    def materialize(self) -> Tensor:
        return dense(self.x, self.weight, self.bias)


class Products(FeatureOperator):
    """The window, defined by its products alone; with one axis of rows, so that span coordinates work too."""

    def __init__(self, x: Tensor, weight: bool = True, bias: bool = True) -> None:
        super().__init__(x, 2, (x.shape[1] * (x.shape[2] - 1),), (x.shape[0],), weight=weight, bias=bias)

    def matmat(self, V: Tensor) -> Tensor:
        change = torch.zeros(*self.leading, *self.row_shape, V.shape[-1], dtype=V.dtype)
        if self.weight:
            left, right = self.x[..., :-1].flatten(1, 2), self.x[..., 1:].flatten(1, 2)
            change += left.unsqueeze(-1) * V[:, None, 0] + right.unsqueeze(-1) * V[:, None, 1]
        return change + V[:, None, -1] if self.bias else change

    def rmatmat(self, E: Tensor) -> Tensor:
        sides = self.x[..., :-1].flatten(1, 2), self.x[..., 1:].flatten(1, 2)
        rows = [(side.unsqueeze(-1) * E).sum(1) for side in sides] if self.weight else []
        return torch.stack(rows + ([E.sum(1)] if self.bias else []), 1)


FORMS = [Matrix, Products]
CLOSE = {"rtol": 1e-10, "atol": 1e-12}


@pytest.mark.parametrize(("weight", "bias"), MOVES)
@pytest.mark.parametrize("form", FORMS)
def test_all_operations_follow_from_the_matrix_or_the_products(form, weight, bias):
    features, phi = form(randn(3, 4, 6), weight, bias), dense(randn(3, 4, 6), weight, bias)
    E, V = randn(3, *features.row_shape, 5, seed=1), randn(3, features.size, 5, seed=2)
    flat = E.reshape(3, 20, 5)
    assert (features.rows, features.inputs, features.size, features.groups) == (20, 2, 2 * weight + bias, 3)
    torch.testing.assert_close(features.materialize(), phi, **CLOSE)
    torch.testing.assert_close(features.matmat(V).reshape(3, 20, 5), phi @ V, **CLOSE)
    torch.testing.assert_close(features.rmatmat(E), phi.mT @ flat, **CLOSE)
    torch.testing.assert_close(features.gram(), phi.mT @ phi, **CLOSE)
    torch.testing.assert_close(features.outer_gram(), phi @ phi.mT, **CLOSE)
    torch.testing.assert_close(features.squared_norm(), phi.square().sum((1, 2)), **CLOSE)
    torch.testing.assert_close(features.over_rows(E), flat.sum(1), **CLOSE)
    torch.testing.assert_close(features.flat(E), flat, rtol=0, atol=0)
    torch.testing.assert_close(features.unflat(flat), E, rtol=0, atol=0)
    per_unit = randn(3, 5, seed=3)
    torch.testing.assert_close((features.spread(per_unit) * E).reshape(3, 20, 5), per_unit[:, None] * flat, **CLOSE)


@pytest.mark.parametrize("form", [*FORMS, lambda x, *moves: Matrix(x, *moves).moving(weight=False, bias=True)])
def test_the_layers_map_does_not_depend_on_the_trained_parts(form):
    x, W, b = randn(3, 4, 6), randn(3, 5, 2, seed=1), randn(3, 5, seed=2)
    expected = dense(x, True, False) @ W.mT
    for moves in MOVES:
        features = form(x, *moves)
        torch.testing.assert_close(features.flat(features.forward(W, None)), expected, **CLOSE)
        torch.testing.assert_close(features.flat(features.forward(W, b)), expected + b[:, None], **CLOSE)


@pytest.mark.parametrize("leading", [(), (2,)])
@pytest.mark.parametrize("moves", MOVES)
def test_a_dense_form_has_the_same_map_and_displacement(leading, moves):
    A, W, b, E = (randn(*leading, *s, seed=i) for i, s in enumerate([(6, 4), (3, 4), (3,), (6, 3)]))
    features = DenseFeatures(A, *moves)
    torch.testing.assert_close(features.forward(W, b), A @ W.mT + b.unsqueeze(-2), **CLOSE)
    torch.testing.assert_close(features.forward(W, None), A @ W.mT, **CLOSE)
    dW, db = features.displacement(E)
    for change, expected, moves_it in ((dW, E.mT @ A, moves[0]), (db, E.sum(-2), moves[1])):
        assert (change is not None) == moves_it
        if change is not None:
            torch.testing.assert_close(change, expected, **CLOSE)


@pytest.mark.parametrize("form", FORMS)
def test_other_parts_and_dtypes_belong_to_the_same_layer(form):
    features = form(randn(3, 4, 6), True, True)
    before = features.materialize()
    bias = features.moving(weight=False, bias=True)
    assert type(bias) is form
    torch.testing.assert_close(bias.materialize(), dense(randn(3, 4, 6), False, True))
    single = features.to(torch.float32)
    assert single.materialize().dtype == torch.float32
    assert features.to(torch.float64) is features
    torch.testing.assert_close(features.materialize(), before, rtol=0, atol=0)


def test_cached_results_are_not_copied():
    features = DenseFeatures(randn(6, 4))
    assert features.materialize().shape == (6, 5)
    assert features.moving(weight=True, bias=False).materialize().shape == (6, 4)
    assert features.to(torch.float32).materialize().dtype == torch.float32


@pytest.mark.parametrize(("lam", "dtype"), [(0.5, torch.float64), (1e-4, torch.float32)])
@pytest.mark.parametrize("moves", MOVES)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("positions", [1, 7])  # rows fewer and more than columns
def test_the_closed_form_equals_that_of_the_matrix(form, moves, positions, lam, dtype):
    x = randn(3, 2, positions + 1, dtype=dtype)
    features, R = form(x, *moves), randn(3, 2 * positions, 4, seed=1, dtype=dtype)
    phi = DenseFeatures(dense(x, *moves), bias=False)
    found = solve_linear(smaller_side(features), features.unflat(R), lam)
    expected = solve_linear(smaller_side(phi), R, lam)
    parts = [part for part in found.coordinates.displacement(found.x) if part is not None]
    columns = torch.cat([part.unsqueeze(-1) if part.dim() == 2 else part for part in parts], -1)
    change, _ = expected.coordinates.displacement(expected.x)
    single = dtype == torch.float32
    torch.testing.assert_close(columns, change, **({"rtol": 2e-2, "atol": 2e-3} if single else CLOSE))
    assert found.stats.status == expected.stats.status
    assert float(found.stats.decrease) == pytest.approx(float(expected.stats.decrease), abs=1e-6 if single else 1e-9)


@pytest.mark.parametrize("s", [RELU, TANH])
@pytest.mark.parametrize("form", FORMS)
def test_conjugate_gradients_equal_those_of_the_matrix(form, s):
    x = randn(3, 4, 6)
    features, Z, T = form(x), randn(3, 20, 4, seed=1), randn(3, 20, 4, seed=2)
    found = solve_nonlinear(Direct(features), features.unflat(Z), features.unflat(T), 0.4, s, 4)
    expected = solve_nonlinear(Direct(DenseFeatures(dense(x, True, True), bias=False)), Z, T, 0.4, s, 4)
    torch.testing.assert_close(found.x, expected.x, rtol=1e-9, atol=1e-11)


def test_rows_along_several_axes_are_solved_for_directly():
    """Span coordinates multiply with an N x N matrix from the left: rows have to be along one axis."""
    x = randn(1, 2, 2)
    assert type(smaller_side(Matrix(x))) is Direct
    assert type(smaller_side(Products(x))) is Span


def test_a_form_without_products_is_refused_when_it_is_defined():
    with pytest.raises(TypeError, match="Half needs a `materialize`, or both `matmat` and `rmatmat`"):

        class Half(FeatureOperator):
            def matmat(self, V: Tensor) -> Tensor:
                return V
