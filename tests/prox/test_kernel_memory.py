"""Kernels on odd shapes, each in memory of just the size it asks for: `scripts/sanitize.sh` watches every access."""

import itertools

import pytest
import torch
from layer_problems import SIDES, randn
from test_fused import needs_kernels

from sibp.activations import IDENTITY, RELU, SIGMOID
from sibp.prox import kernels
from sibp.prox.operators import ConvolutionFeatures, DenseFeatures, patches
from sibp.prox.operators.window import Window
from sibp.prox.outputs import CompiledOutputs, outputs_of
from sibp.prox.solvers.nonlinear import solve_nonlinear

pytestmark = needs_kernels
SIZES = [1, 3, 7, 8, 17, 33]


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("s", [RELU, SIGMOID], ids=lambda s: s.name)
def test_dense_layers_of_all_sizes(s, side, dtype):
    for N, n, m in itertools.product(SIZES, [0, *SIZES], SIZES):
        features = DenseFeatures(randn(1, N, n, dtype=dtype), bias=False)
        Z, T = randn(1, N, m, seed=1, dtype=dtype), randn(1, N, m, seed=2, dtype=dtype)
        vars(kernels._buffers).clear()
        solution = solve_nonlinear(side(features), Z, T, 0.5, s, 2)
        assert solution.x.isfinite().all()
        assert n or not solution.x.any()


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_arrays_without_rows_or_output_units(dtype):
    for N, m in [(0, 3), (3, 0), (0, 0)]:
        features = DenseFeatures(randn(1, N, 4, dtype=dtype))
        for side in SIDES:
            Z = randn(1, N, m, dtype=dtype)
            assert not solve_nonlinear(side(features), Z, Z + 1, 0.5, IDENTITY, 2).x.any()


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_convolutions_of_all_sizes(dtype):
    for B, m, side in itertools.product([0, 1, 3], [1, 5, 8], SIZES):
        features = ConvolutionFeatures(randn(B, 2, side, 3, dtype=dtype), Window((1, 3), (1, 1), (0, 1), (1, 1), 1))
        Z = features.in_rows(randn(B, m, *features.positions, seed=2, dtype=dtype))
        outputs = outputs_of(features, Z, Z + 1, RELU)
        assert isinstance(outputs, CompiledOutputs)
        t, KG = torch.ones(1, m, dtype=dtype), torch.ones_like(Z)
        for sums in (outputs.residual(), outputs.redirect(t, KG), outputs.attempt(t, last=False)):
            assert sums.isfinite().all()
        outputs.move(t)
        assert outputs.redirect(t, torch.ones_like(Z)).isfinite().all()
        torch.testing.assert_close(outputs.Z, Z - 1)


@pytest.mark.usefixtures("width")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gram_matrices_of_convolutions_of_all_sizes(dtype, monkeypatch):
    monkeypatch.setattr(patches, "is_dense", lambda *_: False)
    for channels, side, groups in itertools.product(SIZES, [1, 2, 5], [1, 2]):
        x = randn(2, groups * channels, side, 3, dtype=dtype)
        features = ConvolutionFeatures(x, Window((3, 2), (1, 2), (1, 1), (1, 1), groups))
        phi = features.materialize()
        torch.testing.assert_close(features.gram(), phi.mT @ phi, rtol=1e-5, atol=1e-4)
