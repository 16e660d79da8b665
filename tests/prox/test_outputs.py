"""A convolution's passes over outputs, compiled and plain, against the iterations on patches written out."""

import pytest
import torch
from layer_problems import randn

from sibp.activations import IDENTITY, MISH, RELU, TANH, leaky_relu
from sibp.prox import outputs
from sibp.prox.kernels import disabled
from sibp.prox.operators import ConvolutionFeatures
from sibp.prox.operators.window import Window
from sibp.prox.outputs import CompiledOutputs, Outputs, Shifted, outputs_of, share_of_nonzeros
from sibp.prox.solvers.coordinates import Direct
from sibp.prox.solvers.nonlinear import solve_nonlinear


def convolution(groups: int = 1, bias: bool = True) -> tuple[ConvolutionFeatures, torch.Tensor, torch.Tensor]:
    """Features, pre-activations and a target, (g, B, P, m)."""
    window = Window((3, 2), (2, 1), (1, 0), (1, 2), groups)
    features = ConvolutionFeatures(randn(4, 2 * groups, 7, 6), window, bias=bias)
    z = randn(4, 5 * groups, *features.positions, seed=2)
    return features, features.in_rows(z), features.in_rows(randn(*z.shape, seed=3))


@pytest.mark.parametrize("s", [RELU, leaky_relu(0.3), TANH], ids=lambda s: s.name)
@pytest.mark.parametrize("iterations", [1, 2, 6])
@pytest.mark.parametrize(("groups", "bias"), [(1, True), (1, False), (3, True)])
def test_iterations_equal_those_on_explicit_patches(both_ways, s, iterations: int, groups: int, bias: bool):
    features, Z, T = convolution(groups, bias)
    before = Z.clone(), T.clone()
    here = solve_nonlinear(Direct(features), Z, T, 0.7, s, iterations)
    with disabled():
        there = solve_nonlinear(Direct(features.dense()), Z.flatten(1, 2), T.flatten(1, 2), 0.7, s, iterations)
    torch.testing.assert_close(here.x, there.x, rtol=1e-9, atol=1e-11)
    for key in ("status", "decrease", "squared_change", "step_length"):
        assert float(getattr(here.stats, key)) == pytest.approx(float(getattr(there.stats, key)), rel=1e-9), key
    assert torch.equal(Z, before[0])
    assert torch.equal(T, before[1])


def test_outputs_in_another_memory_layout(both_ways):
    features, Z, T = convolution()
    packed = Z.contiguous()
    mixed = solve_nonlinear(Direct(features), packed, T.mT.contiguous().mT, 1.0, RELU, 3)
    assert torch.equal(packed, Z)
    torch.testing.assert_close(mixed.x, solve_nonlinear(Direct(features), Z, T, 1.0, RELU, 3).x, rtol=1e-12, atol=1e-12)


def test_a_step_of_length_0_ignores_an_infinite_direction(both_ways):
    features, Z, T = convolution()
    outputs = outputs_of(features, Z, T, RELU)
    outputs.residual()
    none = Z.new_zeros(1, 5)
    KG = Z.new_zeros(Z.shape)
    KG[..., 1] = float("inf")
    outputs.redirect(none, KG)
    t = torch.tensor([[0.5, 0.0, 0.5, 0.5, 0.5]], dtype=Z.dtype)
    outputs.attempt(t, last=False)
    outputs.move(t)
    torch.testing.assert_close(outputs.E, (Z.relu() - T) * (Z > 0), rtol=1e-14, atol=1e-14)
    outputs.redirect(none, Z.new_zeros(Z.shape))
    torch.testing.assert_close(outputs.Z, Z, rtol=0, atol=0)  # all other directions are zero


def test_a_rejected_neuron_is_unchanged(both_ways):
    """Its E and Z are those of the point kept, not of the refused one."""
    features, Z, T = convolution(2)
    outputs = outputs_of(features, Z, T, TANH)
    outputs.residual()
    KG, KG2 = randn(*Z.shape, seed=5), randn(*Z.shape, seed=6)
    outputs.redirect(Z.new_zeros(2, 5), KG.clone())
    t = torch.linspace(0.1, 1, 10, dtype=Z.dtype).reshape(2, 5)
    tried = Z - t[:, None, None] * KG
    torch.testing.assert_close(outputs.attempt(t, last=False), (tried.tanh() - T).square().sum((1, 2)))
    taken = t * torch.tensor([1, 0, 1, 1, 0], dtype=Z.dtype)
    outputs.move(taken)
    here = Z - taken[:, None, None] * KG
    E = (here.tanh() - T) * (1 - here.tanh().square())
    torch.testing.assert_close(outputs.take_E(), E)
    beta = t.flip(1)
    KP = beta[:, None, None] * -KG - KG2
    curvature = ((1 - here.tanh().square()) * KP).square().sum((1, 2))
    torch.testing.assert_close(outputs.redirect(beta, KG2.clone()), curvature)
    torch.testing.assert_close(outputs.Z, here)
    torch.testing.assert_close(outputs.KP, KP)
    last = outputs.attempt(t, last=True)
    torch.testing.assert_close(last, ((here + t[:, None, None] * KP).tanh() - T).square().sum((1, 2)))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("s", [RELU, TANH, MISH], ids=lambda s: s.name)
def test_an_implicit_target_equals_the_explicit_one(both_ways, s, layout):
    """s(Z) - eta D, on convolutions and on rows, from pre-activations in either order in memory."""
    features, Z, D = convolution(2)
    Z, D = (features.in_rows(t.permute(1, 0, 3, 2).reshape(4, 10, *features.positions).contiguous(memory_format=layout))
            for t in (Z, D))  # fmt: skip
    before = Z.clone(), D.clone()
    images = Z, D, s.value(Z) - 0.3 * D
    for given, (z, d, t) in ((features, images), (features.dense(), [image.flatten(1, 2) for image in images])):
        formed = solve_nonlinear(Direct(given), z, t, 0.7, s, 3)
        shifted = solve_nonlinear(Direct(given), z, Shifted(d, 0.3), 0.7, s, 3)
        torch.testing.assert_close(shifted.x, formed.x, rtol=1e-9, atol=1e-11)
        assert float(shifted.stats.decrease) == pytest.approx(float(formed.stats.decrease), rel=1e-9)
    assert torch.equal(Z, before[0])
    assert torch.equal(D, before[1])


def test_several_threads_give_bitwise_equal_results(monkeypatch: pytest.MonkeyPatch):
    features, Z, T = convolution(3)
    alone = solve_nonlinear(Direct(features), Z, T, 1.0, RELU, 4).x
    monkeypatch.setattr("sibp.prox.outputs._PARALLEL", 0)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        together = solve_nonlinear(Direct(features), Z, T, 1.0, RELU, 4).x
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(together, alone, rtol=0, atol=0)


def test_layers_with_compiled_passes(both_ways, request: pytest.FixtureRequest):
    features, Z, T = convolution()
    compiled = "compiled" in request.node.callspec.id
    assert (type(outputs_of(features, Z, T, RELU)) is CompiledOutputs) == compiled
    assert type(outputs_of(features, Z, T, MISH)) is Outputs
    assert type(outputs_of(features.dense(), Z.flatten(1, 2), T.flatten(1, 2), RELU)) is Outputs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("numbers", [0, 1, 17, 4096, 10_001])
def test_fraction_of_nonzero_entries(numbers, dtype):
    t = torch.arange(numbers, dtype=dtype) % 3 - 1
    expected = sum(k % 3 != 1 for k in range(numbers)) / max(numbers, 1)
    assert float(share_of_nonzeros(t)) == pytest.approx(expected, rel=1e-6)
    with disabled():
        assert float(share_of_nonzeros(t)) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("threads", [2, 7])
def test_threads_count_every_nonzero_entry_once(monkeypatch: pytest.MonkeyPatch, threads):
    monkeypatch.setattr(outputs, "_PARALLEL", 0)
    t = torch.arange(50_000.0) % 5
    torch.set_num_threads(threads)
    try:
        assert float(share_of_nonzeros(t)) == 0.8
    finally:
        torch.set_num_threads(1)


def test_fraction_of_a_part_is_of_that_part():
    whole = torch.zeros(4, 6, 8)
    whole[:, 2] = 1
    assert float(share_of_nonzeros(whole[:, 2])) == 1
    assert float(share_of_nonzeros(whole.permute(2, 0, 1))) == pytest.approx(1 / 6)


@pytest.mark.parametrize("own", [IDENTITY, RELU])
def test_a_target_leaves_the_pre_activations_as_they_are(own):
    Z, D = torch.randn(4, 3), torch.randn(4, 3)
    before = Z.clone()
    T = Shifted(D, 0.5).evaluate(Z, own)
    torch.testing.assert_close(T, own.value(before) - 0.5 * D)
    assert torch.equal(Z, before)
