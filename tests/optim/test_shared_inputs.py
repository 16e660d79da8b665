"""Layers with one input share its Gram matrix: same steps, fewer matrices, nothing retained."""

import gc
import threading
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sibp import SIBP, ProxBP
from sibp.capture.geometry import LinearGeometry
from sibp.capture.passes import ForwardPass
from sibp.capture.shared import SharedInput
from sibp.prox.kernels import disabled
from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers import linear


class Branches(nn.Module):
    """Three layers on one input, which `between` may change between them."""

    def __init__(self, inputs: int = 12, between=lambda h: h, bias: tuple[bool, ...] = (True, True, True)) -> None:
        super().__init__()
        self.first = nn.Linear(8, inputs)
        self.q, self.k, self.v = (nn.Linear(inputs, 6, bias=given) for given in bias)
        self.last, self.between, self.checkpointed = nn.Linear(6, 3), between, False

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        branch = self.branch
        return self.last(checkpoint(branch, h, use_reentrant=False) if self.checkpointed else branch(h))

    def branch(self, h: Tensor) -> Tensor:
        q, k = self.q(h), self.k(self.between(h))
        return torch.relu(q) * torch.sigmoid(k) + self.v(h)


def trained(apart: bool, monkeypatch, solver="exact", method=SIBP, steps=3, rows=40, dtype=torch.float32, **options):
    """Weights after some steps, and the Gram matrices that were built."""
    built = []
    with monkeypatch.context() as patch:
        for name in ("gram", "outer_gram"):
            whole = getattr(DenseFeatures, name)
            patch.setattr(DenseFeatures, name, lambda self, whole=whole: built.append(self.inputs) or whole(self))
        if apart:
            patch.setattr(SharedInput, "matches", lambda *_: False)
        torch.manual_seed(0)
        checkpointed = options.pop("checkpointed", False)
        groups = options.pop("groups", None)
        model = Branches(**options).to(dtype)
        model.checkpointed = checkpointed
        given = groups(model) if groups else None
        optimizer = method(model, lr=0.1, prox_weight=2.0, solver=solver, **({"params": given} if given else {}))
        x, y = torch.randn(rows, 8, dtype=dtype), torch.arange(rows) % 3
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return [p.detach() for p in model.parameters()], built.count(model.q.in_features)


@pytest.mark.parametrize("solver", ["exact", "cg:3"])
@pytest.mark.parametrize("method", [SIBP, ProxBP])
@pytest.mark.parametrize(("rows", "inputs"), [(40, 12), (10, 50), (300, 280), (600, 520)])
def test_steps_equal_those_without_sharing(solver, method, rows, inputs, monkeypatch):
    together, few = trained(False, monkeypatch, solver, method, rows=rows, inputs=inputs)
    apart, many = trained(True, monkeypatch, solver, method, rows=rows, inputs=inputs)
    assert all(map(torch.equal, together, apart))
    if solver == "exact":
        assert (few, many) == (3, 9)


def test_a_changed_input_is_not_shared(monkeypatch):
    def changed(h: Tensor) -> Tensor:
        return h * 1.5

    together, built = trained(False, monkeypatch, between=changed)
    apart, _ = trained(True, monkeypatch, between=changed)
    assert all(map(torch.equal, together, apart))
    assert built == 2 * 3  # one matrix for q and v, one for k


def test_an_input_changed_in_place_is_not_shared():
    """Autograd refuses to differentiate the layer that saw the earlier value; later layers share nothing with it."""
    one, h = ForwardPass(), torch.ones(3, 2)
    before = one.input(h)
    assert one.input(h) is before
    h.mul_(2)
    assert one.input(h) is not before


def test_layers_without_bias_share_only_with_each_other(monkeypatch):
    bias = (True, False, False)
    together, built = trained(False, monkeypatch, bias=bias)
    apart, _ = trained(True, monkeypatch, bias=bias)
    assert all(map(torch.equal, together, apart))
    assert built == 2 * 3


@pytest.mark.parametrize("inputs", [50, 300])
def test_another_prox_weight_has_its_own_factor(inputs, monkeypatch):
    def groups(model):
        rest = [p for name, p in model.named_parameters() if not name.startswith("k.")]
        return [{"params": rest}, {"params": list(model.k.parameters()), "prox_weight": 0.3}]

    with disabled():  # compiled code factors for every layer
        together, built = trained_groups(False, groups, inputs, monkeypatch)
        apart, _ = trained_groups(True, groups, inputs, monkeypatch)
    assert all(map(torch.equal, together, apart))
    assert built == 3


def trained_groups(apart, groups, inputs, monkeypatch):
    """As `trained`, with the prox weight of one layer changed after the optimizer was made."""
    built = []
    with monkeypatch.context() as patch:
        whole = DenseFeatures.outer_gram
        patch.setattr(DenseFeatures, "outer_gram", lambda self: built.append(self.inputs) or whole(self))
        gram = DenseFeatures.gram
        patch.setattr(DenseFeatures, "gram", lambda self: built.append(self.inputs) or gram(self))
        if apart:
            patch.setattr(SharedInput, "matches", lambda *_: False)
        torch.manual_seed(0)
        model = Branches(inputs)
        optimizer = SIBP(model, lr=0.1, prox_weight=2.0, solver="exact", params=groups(model))
        x, y = torch.randn(330, 8), torch.arange(330) % 3
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    return [p.detach() for p in model.parameters()], built.count(inputs)


def test_checkpoints_share_recomputed_results(monkeypatch):
    together, built = trained(False, monkeypatch, checkpointed=True)
    plain, _ = trained(True, monkeypatch)
    assert all(map(torch.equal, together, plain))
    assert built == 3


def test_a_second_backward_pass_recomputes_it(monkeypatch):
    torch.manual_seed(0)
    model = Branches()
    optimizer = SIBP(model, lr=0.1, prox_weight=2.0, solver="exact")
    built, gram = [], DenseFeatures.gram
    monkeypatch.setattr(DenseFeatures, "gram", lambda self: built.append(self.inputs) or gram(self))
    loss = F.cross_entropy(model(torch.randn(40, 8)), torch.arange(40) % 3)
    loss.backward(retain_graph=True)
    first = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.zero_grad()
    loss.backward()
    assert built.count(12) == 2
    assert all(p.grad is not None and torch.equal(p.grad, g) for p, g in zip(model.parameters(), first, strict=True))


def test_nothing_is_kept_after_the_last_layer(monkeypatch):
    """The loss, and with it the graph, is still alive."""
    factors, of = [], linear._Factor.of

    def watched(*given):
        found = of(*given)
        factors.append(weakref.ref(found))
        return found

    monkeypatch.setattr(linear._Factor, "of", watched)
    torch.manual_seed(0)
    model = Branches(400)
    optimizer = SIBP(model, lr=0.1, prox_weight=1e4, solver="exact")
    loss = F.cross_entropy(model(torch.randn(200, 8)), torch.arange(200) % 3)
    with disabled():
        loss.backward()
    gc.collect()
    assert len(factors) == 3  # one each for the first layer, the three that share an input, and the last
    assert all(factor() is None for factor in factors)
    assert optimizer.solver_stats()


def test_a_kind_with_custom_features_shares_only_if_declared():
    class Shrinking(LinearGeometry):
        def features(self, x: Tensor, *, weight: bool, bias: bool) -> DenseFeatures:
            return DenseFeatures(0.5 * x, weight, bias)

    assert LinearGeometry.features_key is not None
    assert Shrinking.features_key is None


def test_threads_do_not_share(monkeypatch):
    """Two threads train two models at once: each comes out as it does alone."""
    alone = [p for p in trained(False, monkeypatch, steps=5)[0]]
    found: dict[int, list[Tensor]] = {}
    models = []
    for _ in range(2):
        torch.manual_seed(0)
        model = Branches()
        x = torch.randn(40, 8)
        models.append((model, SIBP(model, lr=0.1, prox_weight=2.0, solver="exact"), x))

    def train(place: int) -> None:
        model, optimizer, x = models[place]
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.arange(40) % 3).backward()
            optimizer.step()
        found[place] = [p.detach() for p in model.parameters()]

    threads = [threading.Thread(target=train, args=(place,)) for place in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(map(torch.equal, found[0], alone))
    assert all(map(torch.equal, found[1], alone))
