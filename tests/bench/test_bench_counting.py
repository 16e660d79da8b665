"""The formulas agree with torch's counter on steps written out by hand, and those steps are the methods' own."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from sibp import SIBP, ProxBP
from sibp.bench.counting import Layer, Work, layers_of, operations, step_work
from sibp.bench.nets import CONVNET, Case
from sibp.bench.rates import Roof
from sibp.prox.kernels import disabled
from sibp.prox.solvers.checked import SINGLE

SPAN = Case("40-30-20-3", 7)
WIDE = Case("200-150-100-30", 5)  # low rank is cheaper in the backward pass
DIRECT = Case("6-5-4-3", 50)
MIXED = Case("60-8-9-40", 20)  # first layer in span, the others direct; the last has many neurons


def data(case):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(case.batch, *case.shape, generator=generator, dtype=torch.float64)
    return x, torch.arange(case.batch) % case.classes


def products(method, case, model):
    return operations(step_work(method, layers_of(model, case.shape, case.batch)), products_only=True)


def counted(work):
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def train(model, optimizer, case):
    x, y = data(case)
    x = x.to(next(model.parameters()).dtype)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


@pytest.mark.parametrize("case", [SPAN, DIRECT, MIXED, Case(CONVNET, 2)], ids=str)
def test_sgd(case):
    expected = products("sgd", case, case.model())
    model = case.model().double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    assert counted(lambda: train(model, optimizer, case)) == expected


def other_halves(case):
    """Counts with whole Gram matrices for linear layers."""
    layers = [layer for layer in layers_of(case.model(), case.shape, case.batch) if layer.features is None]
    sides = [(a.rows, a.inputs) if a.in_span else (a.inputs + 1, a.rows) for a in layers]
    return sum(size * (size - 1) * inner for size, inner in sides)


def by_hand(model, case, eta, lam, semi_implicit):
    """A closed-form step in plain products, in the coordinates that the formulas choose."""
    x, y = data(case)
    linears = [m for m in model if isinstance(m, nn.Linear)]
    A = [x]
    for i, layer in enumerate(linears):
        Z = A[i] @ layer.weight.T + layer.bias
        A.append(torch.relu(Z) if i < len(linears) - 1 else Z)
    D = torch.softmax(A[-1], 1) - F.one_hot(y, case.classes)
    for i in reversed(range(len(linears))):
        W, b, inputs = linears[i].weight, linears[i].bias, A[i]
        N, n = inputs.shape
        in_span = n + 1 >= N
        if in_span:
            system = inputs @ inputs.T + 1 + lam * torch.eye(N)
            R = eta * D
        else:
            phi = torch.cat([inputs, torch.ones(N, 1)], 1)
            system = phi.T @ phi + lam * torch.eye(n + 1)
            R = phi.T @ (eta * D)
        X = torch.cholesky_solve(R, torch.linalg.cholesky(system))  # not counted as a matrix product
        dW, db = (X.T @ inputs, X.sum(0)) if in_span else (X[:-1].T, X[-1])
        if i > 0:
            back = D @ W if semi_implicit and in_span else D @ (W - dW if semi_implicit else W)
            if semi_implicit and in_span:
                low_rank = N * N * (n + len(W)) < 20 * len(W) * n
                back = back - (D @ X.T) @ inputs if low_rank else D @ (W - dW)
            D = back * (inputs > 0)
        with torch.no_grad():
            W -= dW
            b -= db


@pytest.mark.parametrize("method", ["exact", "proxbp"])
@pytest.mark.parametrize("case", [WIDE, DIRECT, MIXED], ids=str)
def test_closed_forms(case, method):
    model, reference = case.model().double(), case.model().double()
    expected = products(method, case, case.model()) + other_halves(case)
    with torch.no_grad(), torch.autograd.set_grad_enabled(False):
        torch.set_default_dtype(torch.float64)
        try:
            done = counted(lambda: by_hand(model, case, 0.1, 1.0, semi_implicit=method == "exact"))
        finally:
            torch.set_default_dtype(torch.float32)
    optimizer = (SIBP if method == "exact" else ProxBP)(reference, lr=0.1, prox_weight=1.0, solver="exact")
    train(reference, optimizer, case)
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-9)
    assert done == expected


@pytest.mark.parametrize(("method", "optimizer"), [("exact", SIBP), ("proxbp", ProxBP)])
@pytest.mark.parametrize("batch", [2, 9])  # the last convolution in span, with patches; all direct, without
def test_closed_forms_of_convolutions(batch, method, optimizer):
    case = Case(CONVNET, batch)
    model = case.model().double()  # float64 solves triangular systems; float32 uses an inverse
    with disabled():
        done = counted(lambda: train(model, optimizer(model, prox_weight=1e4, solver="exact"), case))
    sizes = [(min(a.rows, a.inputs + 1), a.neurons) for a in layers_of(case.model(), case.shape, case.batch)]
    checks = sum(2 * size**2 * m for size, m in sizes if size >= SINGLE)  # residuals, in float64
    assert done == products(method, case, case.model()) + other_halves(case) + checks


@pytest.mark.parametrize("case", [SPAN, DIRECT, MIXED, Case(CONVNET, 2), Case(CONVNET, 9)], ids=str)
def test_an_iteration_of_conjugate_gradients(case):
    def done(rounds):
        model = case.model().double()
        with disabled():
            return counted(lambda: train(model, SIBP(model, solver=f"cg:{rounds}"), case))

    model = case.model()
    assert done(5) - done(3) == products("cg:5", case, model) - products("cg:3", case, model)


def test_layers_of_a_convolutional_net():
    layers = layers_of(Case(CONVNET, 2).model(), (3, 32, 32), 2)
    first = Layer(2 * 32 * 32, 3 * 25, 16, first=True, activation="relu", entries=2 * 3 * 32 * 32)
    assert replace(layers[0], features=None) == first
    assert layers[-1] == Layer(2, 20 * 8 * 8, 10, first=False, activation="", entries=2 * 20 * 8 * 8, input=3)
    assert [layer.is_linear for layer in layers] == [False, False, False, True]


def test_factorisations_are_counted_beside_products():
    N = 10
    layer = Layer(N, 40, 30, first=True, activation="", entries=400)
    work = step_work("exact", [layer])
    solve = sum(each.operations for each in work if each.name in ("Cholesky", "triangular solves"))
    assert solve == pytest.approx(N**3 / 3 + 2 * N**2 * 30)
    assert sum(each.operations for each in work if each.name == "A A^T") == N * (N + 1) * 40


@pytest.mark.parametrize(("a", "b"), list(pairwise(["sgd", "exact", "cg:5", "cg:9"])))
def test_counts_order_the_methods(a, b):
    layers = layers_of(Case("784-500-10", 100).model(), (784,), 100)
    roof = Roof(operations=1e11, bandwidth=2e10, itemsize=4)
    assert roof.seconds(step_work(a, layers)) < roof.seconds(step_work(b, layers))


def test_roof_takes_the_slower_of_arithmetic_and_traffic_for_each_operation():
    roof = Roof(operations=10.0, bandwidth=8.0, itemsize=4)
    assert roof.seconds([Work("a", 100.0, 2.0), Work("b", 10.0, 6.0)]) == pytest.approx(10.0 + 3.0)


def test_the_gram_matrix_of_a_convolution_reads_the_pixels_once():
    case = Case(CONVNET, 20)
    for layer in (layer for layer in layers_of(case.model(), case.shape, case.batch) if layer.features is not None):
        work = [each for each in step_work("exact", [layer]) if each.name in ("pixels", "Phi^T Phi")]
        assert sum(each.numbers for each in work) == layer.features.numbers_copied()


def test_layers_on_one_input_share_their_factor():
    case = Case("transformer_block", 16)
    layers = layers_of(case.model(), case.shape, case.batch)
    names = [work.name for work in step_work("exact", layers)]
    # Seven layers, of which query, key and value share: attention's three, its output, up, down, and the classes.
    assert (names.count("Phi^T Phi") + names.count("A A^T"), names.count("Cholesky")) == (5, 5)
    assert names.count("triangular solves") == 7
    apart = [replace(layer, input=place) for place, layer in enumerate(layers)]
    more = operations(step_work("exact", apart)) - operations(step_work("exact", layers))
    p = 256 + 1  # twice a half of Phi^T Phi for 1024 rows, and a factor
    assert more == pytest.approx(2 * (p * (p + 1) * 1024 + p**3 / 3))


def test_convolutions_on_one_input_share_nothing():
    """Other kernels see other patches: the first convolution of a residual block, and its shortcut."""
    case = Case("resnet8", 2)
    layers = layers_of(case.model(), case.shape, case.batch)
    assert len({layer.input for layer in layers}) == 8  # ten layers, two shortcuts
    apart = [replace(layer, input=place) for place, layer in enumerate(layers)]
    assert operations(step_work("exact", apart)) == operations(step_work("exact", layers))


@pytest.mark.parametrize("case", [Case("resnet8", 2), Case("transformer_block", 1)], ids=str)
def test_sgd_on_nets_with_other_modules(case):
    """Attention's own products are left out, as every method has them."""
    model = case.model()
    expected = products("sgd", case, model)
    x, y = torch.randn(case.batch, *case.shape), torch.arange(case.batch)
    with FlopCounterMode(display=False) as counter:
        F.cross_entropy(model(x), y).backward()
    counts = counter.get_flop_counts()["Global"]
    assert sum(number for op, number in counts.items() if "attention" not in str(op)) == expected


def test_a_smooth_activation_takes_more_operations_in_every_iteration():
    relu, gelu = (
        [operations(step_work(f"cg:{k}", layers_of(case.model(), case.shape, 9))) for k in (2, 4)]
        for case in (Case("8-7-6-3", 9), Case("8-7-6-3", 9, "gelu"))
    )
    assert gelu[1] - gelu[0] > relu[1] - relu[0]


@pytest.mark.parametrize("case", [SPAN, DIRECT, Case(CONVNET, 9)], ids=str)
def test_a_piece_contains_its_work(case):
    layers = layers_of(case.model(), case.shape, case.batch)
    for method in ("sgd", "exact", "cg:2"):
        for work in (work for work in step_work(method, layers) if work.piece is not None and work.is_product):
            assert 1 <= work.piece.operations / work.operations < 2
    solves = [work for work in step_work("exact", layers) if work.piece is not None and not work.is_product]
    pairs = zip(solves[::2], solves[1::2], strict=True)  # a factor and its solutions are one piece
    assert all(a.operations + b.operations == pytest.approx(a.piece.operations) for a, b in pairs)
