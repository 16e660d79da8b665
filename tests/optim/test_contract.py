"""The contract of torch.optim, for both methods."""

import copy
import gc
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP, Preconditioned, ProxBP
from sibp.optim.proximal import ProximalOptimizer

F64 = torch.float64
METHODS = [SIBP, ProxBP]
COMPILED = "cannot be compiled|Observed exception"  # the second alternative is torch 2.6's message


def net(dtype: torch.dtype = F64) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 6, dtype=dtype), nn.ReLU(), nn.LayerNorm(6, dtype=dtype), nn.Linear(6, 3, dtype=dtype)
    )


def batch(seed: int = 1, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 5, generator=generator, dtype=F64).to(dtype)
    return x, torch.randint(3, (6,), generator=generator)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range, dtype: torch.dtype = F64) -> None:
    for seed in seeds:
        x, y = batch(seed, dtype)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    for x, y in zip(a, b, strict=True):
        assert torch.equal(x, y)


@dataclass(frozen=True)
class Row:
    """A way to make the optimizer."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)
    groups: Callable[[nn.Sequential], Any] = lambda model: None

    def make(self, method: type[ProximalOptimizer], model: nn.Sequential) -> ProximalOptimizer:
        return method(model, params=self.groups(model), **self.options)  # pyright: ignore[reportCallIssue]


ROWS = [
    Row("defaults"),
    Row("cg", {"solver": "cg:3", "lr": 0.3, "prox_weight": 3.0}),
    Row("weight decay", {"weight_decay": 0.1}),
    Row("fallback with momentum", {"fallback": partial(torch.optim.SGD, lr=0.01, momentum=0.9)}),
    Row("sum", {"loss_average": False}),
    Row(
        "groups",
        {"lr": 0.2},
        lambda m: [
            {"params": m[0].parameters(), "lr": 0.5, "prox_weight": 2.0},
            {"params": m[2].parameters(), "lr": 0.01},
            {"params": m[3].parameters(), "solver": "exact"},
        ],
    ),
    Row("named parameters", groups=lambda m: m.named_parameters()),
    Row("a part of the model", groups=lambda m: m[3].parameters()),
]


@pytest.fixture(params=METHODS, ids=lambda method: method.__name__)
def method(request: pytest.FixtureRequest) -> type[ProximalOptimizer]:
    return request.param


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
class TestEveryRow:
    """One generic test a property, over all rows."""

    def test_learns(self, method, row: Row):
        model = net()
        optimizer = row.make(method, model)
        x, y = batch()
        start = F.cross_entropy(model(x), y).item()
        for _ in range(25):
            train(model, optimizer, range(1, 2))
        assert F.cross_entropy(model(x), y).item() < 0.7 * start

    def test_state_dict_resumes_bitwise(self, method, row: Row, tmp_path):
        model = net()
        optimizer = row.make(method, model)
        train(model, optimizer, range(3))
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
        train(model, optimizer, range(3, 6))
        other = net()
        again = row.make(method, other)
        saved = torch.load(tmp_path / "c.pt", weights_only=True)
        other.load_state_dict(saved["model"])
        again.load_state_dict(saved["optimizer"])
        train(other, again, range(3, 6))
        assert_equal(weights(model), weights(other))

    def test_a_loaded_state_shares_no_tensors(self, method, row: Row):
        model, other = net(), net()
        optimizer, again = row.make(method, model), row.make(method, other)
        train(model, optimizer, range(3))
        other.load_state_dict(model.state_dict())
        again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        train(other, again, range(3, 8))
        train(model, optimizer, range(3, 5))
        expected = net()
        reference = row.make(method, expected)
        train(expected, reference, range(5))
        assert_equal(weights(model), weights(expected))

    @pytest.mark.parametrize("how", ["deepcopy", "pickle", "save"])
    def test_copies_are_independent(self, method, row: Row, how: str, tmp_path):
        model = net()
        optimizer = row.make(method, model)
        train(model, optimizer, range(2))
        if how == "deepcopy":
            twin, copied = copy.deepcopy((model, optimizer))
        elif how == "pickle":
            twin, copied = pickle.loads(pickle.dumps((model, optimizer)))
        else:
            torch.save((model, optimizer), tmp_path / "both.pt")
            twin, copied = torch.load(tmp_path / "both.pt", weights_only=False)
        assert copied.model is twin
        before = weights(model)
        train(twin, copied, range(2, 5))
        assert_equal(weights(model), before)
        train(model, optimizer, range(2, 5))
        assert_equal(weights(model), weights(twin))

    def test_schedulers_change_the_step(self, method, row: Row):
        model = net()
        optimizer = row.make(method, model)
        warm_up = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=4)
        rates = []
        for seed in range(4):
            rates.append([group["lr"] for group in optimizer.param_groups])
            train(model, optimizer, range(seed, seed + 1))
            warm_up.step()
        assert all(late > early for early, late in zip(rates[0], rates[-1], strict=True))

    def test_zero_learning_rate_changes_no_proximal_layer(self, method, row: Row):
        model = net()
        optimizer = row.make(method, model)
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        before = weights(model)
        train(model, optimizer, range(2))
        assert_equal(weights(model), before)

    def test_removal_leaves_the_model_as_it_was(self, method, row: Row):
        model = net()
        attributes = [dict(vars(m)) for m in model.modules()]
        optimizer = row.make(method, model)
        train(model, optimizer, range(1))
        optimizer.remove()
        model.zero_grad()
        assert [set(vars(m)) for m in model.modules()] == [set(a) for a in attributes]
        assert all(not p._backward_hooks for p in model.parameters())
        x, y = batch()
        F.cross_entropy(model(x), y).backward()
        plain = net()
        plain.load_state_dict(model.state_dict())
        F.cross_entropy(plain(x), y).backward()
        assert_equal([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])  # pyright: ignore
        with pytest.raises(RuntimeError, match="no longer belongs"):
            optimizer.step()

    def test_float32(self, method, row: Row):
        model, reference = net(torch.float32), net()
        reference.load_state_dict(model.state_dict())
        train(model, optimizer := row.make(method, model), range(3), torch.float32)
        train(reference, expected := row.make(method, reference), range(3))
        assert optimizer.solver_stats().keys() == expected.solver_stats().keys()
        for p, q in zip(weights(model), weights(reference), strict=True):
            torch.testing.assert_close(p.double(), q, rtol=1e-3, atol=1e-4)


BAD_OPTIONS = [
    ({"lr": -0.1}, "Invalid lr: -0.1"),
    ({"lr": float("nan")}, "Invalid lr: nan"),
    ({"lr": float("inf")}, "Invalid lr: inf"),
    ({"lr": "0.1"}, "Invalid lr: '0.1'"),
    ({"prox_weight": 0.0}, "Invalid prox_weight: 0.0"),
    ({"prox_weight": -1.0}, "Invalid prox_weight: -1.0"),
    ({"prox_weight": True}, "Invalid prox_weight: True"),
    ({"weight_decay": -1e-3}, "Invalid weight_decay: -0.001"),
    ({"solver": "newton"}, "Invalid solver: 'newton'; choose one of"),
    ({"solver": "cg"}, "Invalid solver: 'cg'"),
    ({"solver": "cg:0"}, "Invalid solver: 'cg:0'"),
    ({"solver": "cg:-1"}, "Invalid solver: 'cg:-1'"),
    ({"solver": "exact:3"}, "Invalid solver: 'exact:3'"),
    ({"solver": 5}, "Invalid solver: 5"),
    ({"solver": ["cg:5"]}, r"Invalid solver: \['cg:5'\]"),
    ({"solver": "cg:1001"}, r"Invalid solver: 'cg:1001'; .*1 <= K <= 1000\)"),
    ({"solver": "cg:99999999999999999999"}, "Invalid solver: 'cg:99999999999999999999'"),
    ({"lr": 10**400}, "Invalid lr: 1000"),
    ({"loss_average": -1}, "Invalid loss_average: -1"),
    ({"loss_average": "mean"}, "Invalid loss_average: 'mean'"),
    ({"loss_average": 0}, "Invalid loss_average: 0; .* 1 or more"),  # weights would silently stay put
    ({"loss_average": 10**400}, "Invalid loss_average: 1000"),
]


@pytest.mark.parametrize(("options", "message"), BAD_OPTIONS)
def test_invalid_options_are_refused_with_their_value(method, options: dict[str, Any], message: str):
    model = net()
    with pytest.raises(ValueError, match=f"^{message}"):
        method(model, **options)
    assert "forward" not in vars(model[0])  # and the failed constructor leaves the model unchanged
    optimizer = method(net())
    optimizer.param_groups[0].update(options)
    optimizer.loss_average = options.get("loss_average", True)
    x, y = batch()
    with pytest.raises(ValueError, match=f"^{message}"):  # a schedule may set an invalid value
        F.cross_entropy(optimizer.model(x), y).backward()


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        (lambda: net().parameters(), TypeError, "takes the model itself"),
        (lambda: torch.compile(net()), TypeError, "is compiled"),
        (lambda: nn.DataParallel(net()), TypeError, "copies its layers"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), ValueError, "layer '0' .* is lazy"),
        (lambda: nn.Sequential(), ValueError, "no parameters"),
    ],
)
def test_models_that_cannot_work_are_refused(method, wrong, error, message):
    with pytest.raises(error, match=message):
        method(wrong())


def test_a_fallback_that_evaluates_the_loss_is_refused(method):
    with pytest.raises(TypeError, match="LBFGS evaluates the loss in its step"):
        method(net(), fallback=torch.optim.LBFGS)


def test_an_input_of_inference_mode_is_refused_with_the_way_out(method):
    model, (x, y) = net(), batch()
    optimizer = method(model)
    with torch.inference_mode():
        x = x + 0
    with pytest.raises(RuntimeError, match=r"layer '0': its input was made under torch.inference_mode\(\)"):
        model(x)
    F.cross_entropy(model(x.clone()), y).backward()
    optimizer.step()


def test_a_layer_sharded_afterwards_is_refused_by_that_name(method):
    model, (x, y) = net(), batch()
    optimizer = method(model)
    model[0].weight = nn.Parameter(model[0].weight.detach())
    model[0].weight.device_mesh = None  # what fully_shard's parameters have
    for train in (F.cross_entropy(model(x), y).backward, optimizer.step):
        with pytest.raises(RuntimeError, match=r"layer '0': its weight was sharded .*data_parallel=True"):
            train()


def test_in_place_compiled_module_is_refused(method):
    model = net()
    model[0].compile()
    with pytest.raises(TypeError, match=r"layer '0' .* is compiled"):
        method(model)


def test_invalid_groups_are_refused(method):
    model = net()
    with pytest.raises(ValueError, match="layer '0': its weight and bias form one subproblem"):
        method(model, params=[{"params": [model[0].weight]}, {"params": [model[0].bias]}])
    with pytest.raises(ValueError, match="not the model's"):
        method(model, params=net().parameters())
    with pytest.raises(ValueError, match="more than one parameter group"):
        method(model, params=[{"params": model[2].parameters()}, {"params": model[2].parameters()}])
    with pytest.raises(TypeError, match="param_group must be a dict"):
        method(model).add_param_group(list(model.parameters()))


def test_groups_have_their_own_settings(method):
    """A layer with its own lr and prox_weight takes the step of an optimizer with those alone."""
    x, y = batch()
    together, alone = nn.Sequential(*net()[:2], net()[3]), nn.Sequential(*net()[:2], net()[3])
    optimizer = method(
        together, 0.2, params=[{"params": together[0].parameters(), "lr": 0.7}, {"params": together[2].parameters()}]
    )
    single = method(alone, 0.2, 1.0)
    for model in (together, alone):
        F.cross_entropy(model(x), y).backward()
    assert torch.equal(together[2].weight.grad, alone[2].weight.grad)
    assert not torch.allclose(together[0].weight.grad, alone[0].weight.grad)
    alone.zero_grad()
    single.param_groups[0]["lr"] = 0.7
    with single.paused():
        pass
    scaled = copy.deepcopy(alone)
    other = method(scaled, 0.2, params=[{"params": scaled[0].parameters(), "lr": 0.7}])
    assert other.param_groups[0]["lr"] == 0.7
    assert optimizer.solver_stats().keys() == {"0", "2"}


def test_an_added_group_is_trained(method):
    model = net()
    optimizer = method(model, params=model[3].parameters())
    train(model, optimizer, range(1))
    assert optimizer.solver_stats().keys() == {"3"}
    optimizer.add_param_group({"params": model[0].parameters(), "lr": 0.5})
    optimizer.add_param_group({"params": model[2].parameters(), "lr": 0.25})
    assert [group["update"] for group in optimizer.param_groups] == ["proximal", "proximal", "explicit"]
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5, 0.25]
    before = weights(model)
    train(model, optimizer, range(1, 2))
    assert optimizer.solver_stats().keys() == {"0", "3"}
    assert not any(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    whole = net()
    reference = method(whole, params=[{"params": whole[3].parameters()}])
    assert reference.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_excluded_parameters_get_ordinary_gradients(method):
    model = net()
    optimizer = method(model, params=model[3].parameters())
    x, y = batch()
    with torch.no_grad():
        h = model[:3](x)
        D = (model[3](h).softmax(1) - F.one_hot(y, 3)) / 6
    F.cross_entropy(model(x), y).backward()
    W = model[3].weight - (model[3].weight.grad if method is SIBP else 0)
    expected = torch.autograd.grad(model[:3](x), list(model[:3].parameters()), D @ W.detach())
    for p, g in zip(model[:3].parameters(), expected, strict=True):
        torch.testing.assert_close(p.grad, g, rtol=1e-10, atol=1e-14)
    before = weights(model[:3])
    optimizer.step()
    assert_equal(weights(model[:3]), before)


def test_an_excluded_bias_gets_its_ordinary_gradient(method):
    layer = nn.Linear(5, 3, dtype=F64)
    model = nn.Sequential(layer)
    optimizer = method(model, params=[layer.weight])
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    D = model(x).softmax(1) - F.one_hot(y, 3)
    torch.testing.assert_close(layer.bias.grad, D.sum(0) / 6)
    expected = 0.1 * torch.linalg.solve(x.T @ x + torch.eye(5, dtype=F64), x.T @ D).T
    torch.testing.assert_close(layer.weight.grad, expected)
    assert optimizer.param_groups[0]["params"] == [layer.weight]


def test_hooks_and_closure(method):
    model = net()
    optimizer = method(model)
    calls: list[str] = []
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    x, y = batch()

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(5)]
    assert calls == ["pre", "post"] * 5
    assert losses[-1] < losses[0]


def test_step_without_gradients_does_nothing(method):
    model = net()
    optimizer = method(model)
    before = weights(model)
    optimizer.step()
    optimizer.zero_grad()
    optimizer.step()
    assert_equal(weights(model), before)


def test_step_subtracts_what_is_in_grad_after_clipping(method):
    model = net()
    optimizer = method(model, fallback=partial(torch.optim.SGD, lr=1.0))
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    grads, before = [p.grad.clone() for p in model.parameters()], weights(model)  # pyright: ignore
    assert sum(g.square().sum() for g in grads).sqrt() <= 1.001e-3  # pyright: ignore
    optimizer.step()
    for p, w, g in zip(model.parameters(), before, grads, strict=True):
        torch.testing.assert_close(p.detach(), w - g, rtol=0, atol=1e-15)


def test_accumulated_backward_passes_add_their_displacements(method):
    model = net()
    optimizer = method(model)
    parts = []
    for seed in (1, 2):
        x, y = batch(seed)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        parts.append([p.grad.clone() for p in model.parameters()])  # pyright: ignore
    optimizer.zero_grad()
    for seed in (1, 2):
        x, y = batch(seed)
        F.cross_entropy(model(x), y).backward()
    for p, a, b in zip(model.parameters(), *parts, strict=True):
        torch.testing.assert_close(p.grad, a + b, rtol=1e-12, atol=1e-16)


def test_second_step_without_backward_is_refused(method):
    model = net()
    optimizer = method(model)
    train(model, optimizer, range(1))
    after = weights(model)
    with pytest.raises(RuntimeError, match=r"layer '0': step\(\) was called again without a backward pass"):
        optimizer.step()
    assert_equal(weights(model), after)
    optimizer.zero_grad(set_to_none=False)
    optimizer.step()
    train(model, optimizer, range(1, 40))  # never mistakes a new gradient for the old one


def test_weight_decay_is_decoupled(method):
    model, plain = net(), net()
    x, y = batch()
    for m, decay in ((model, 0.3), (plain, 0.0)):
        optimizer = method(m, 0.5, weight_decay=decay)
        F.cross_entropy(m(x), y).backward()
        start = m[0].weight.detach().clone()
        optimizer.step()
    torch.testing.assert_close(model[0].weight, plain[0].weight - 0.5 * 0.3 * start, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize(
    "outer",
    [
        partial(torch.optim.SGD, lr=1.0),
        partial(torch.optim.SGD, lr=0.3, momentum=0.9, nesterov=True),
        partial(torch.optim.AdamW, lr=0.02, weight_decay=0.01),
    ],
)
def test_direction_only_feeds_another_optimizer(method, outer):
    model = net()
    direction = method(model, 0.3, direction_only=True)
    optimizer = outer(model.parameters())
    x, y = batch()
    start = F.cross_entropy(model(x), y).item()
    for _ in range(30):
        train(model, optimizer, range(1, 2))
    assert F.cross_entropy(model(x), y).item() < 0.3 * start
    with pytest.raises(RuntimeError, match="direction_only=True"):
        direction.step()


def test_direction_only_works_without_a_reference_to_the_optimizer(method):
    model = net()
    method(model, 0.3, direction_only=True)
    gc.collect()
    plain_loss(model).backward()
    direction, plain = model[0].weight.grad.clone(), net()
    plain_loss(plain).backward()
    assert not torch.allclose(direction, plain[0].weight.grad)
    named = net()
    optimizer = method(named, 0.3)
    plain_loss(named).backward()
    assert torch.equal(direction, named[0].weight.grad)
    assert optimizer.solver_stats()


def test_direction_only_with_unit_sgd_is_the_method_itself(method):
    own, fed = nn.Sequential(*net()[:2], net()[3]), nn.Sequential(*net()[:2], net()[3])
    optimizer, direction = method(own), method(fed, direction_only=True)
    train(own, optimizer, range(5))
    train(fed, torch.optim.SGD(fed.parameters(), lr=1.0), range(5))
    assert direction.direction_only
    for p, q in zip(own.parameters(), fed.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_a_newer_optimizer_takes_over_the_model(method):
    model = net()
    old = method(model)
    new = SIBP(model, 0.3)
    train(model, new, range(2))
    with pytest.raises(RuntimeError, match="no longer belongs to this"):
        old.step()


def test_dropping_the_optimizer_frees_the_model(method):
    model = net()
    optimizer = method(model)
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    del optimizer
    gc.collect()
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    plain = net()
    F.cross_entropy(plain(x), y).backward()
    assert_equal([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])  # pyright: ignore
    assert "forward" not in vars(model[0])


def test_paused_gives_the_ordinary_gradient(method):
    model, plain = net(), net()
    optimizer = method(model)
    x, y = batch()
    with optimizer.paused():
        F.cross_entropy(model(x), y).backward()
    F.cross_entropy(plain(x), y).backward()
    assert_equal([p.grad for p in model.parameters()], [p.grad for p in plain.parameters()])  # pyright: ignore
    optimizer.zero_grad()
    train(model, optimizer, range(1))
    assert optimizer.solver_stats()


# -- layers without a proximal subproblem: an error names the layer before any weight changes


class Shared(nn.Module):
    """One layer that runs twice."""

    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(5, 5, dtype=F64), nn.Linear(5, 3, dtype=F64)

    def forward(self, x):
        return self.out(self.inside(self.inside(x).relu()).relu())


class Tied(nn.Module):
    """A decoder that uses the encoder's weight past its module."""

    def __init__(self):
        super().__init__()
        self.inside, self.out = nn.Linear(5, 5, dtype=F64), nn.Linear(5, 3, dtype=F64)

    def forward(self, x):
        return self.out(F.linear(self.inside(x).relu(), self.inside.weight))


def plain_loss(model: nn.Module) -> Tensor:
    x, y = batch()
    return F.cross_entropy(model(x), y)


@pytest.mark.parametrize(
    ("make", "run", "message"),
    [
        (Shared, lambda m: plain_loss(m).backward(), "layer 'inside' runs more than once"),
        (Tied, lambda m: plain_loss(m).backward(), "layer 'inside': its weight is also used outside"),
        (net, lambda m: (plain_loss(m) + m[0].weight.square().sum()).backward(), "layer '0': its weight is also used"),
        (net, lambda m: m[3].bias.square().sum().backward(), "layer '3': its bias is also used outside"),
        (net, lambda m: plain_loss(m).backward(create_graph=True), "layer '3': a proximal update cannot be differ"),
        (net, lambda m: torch.compile(m, backend="eager", fullgraph=True)(batch()[0]), COMPILED),
    ],
)
def test_invalid_uses_are_named(method, make, run, message):
    model = make()
    optimizer = method(model)
    before = weights(model)
    with pytest.raises(Exception, match=message):
        run(model)
    assert_equal(weights(model), before)
    assert optimizer.param_groups


def test_an_input_that_is_no_tensor_is_refused_as_by_the_plain_layer(method):
    """The usual cause is a batch passed without unpacking."""
    model, (x, y) = net(), batch()
    method(model)
    with pytest.raises(TypeError, match=r"argument 'input' .*must be Tensor, not list"):
        model([x, y])


def test_shared_layer_can_be_left_to_another_optimizer(method):
    model = Shared()
    optimizer = method(model, params=model.out.parameters())
    other = torch.optim.SGD(model.inside.parameters(), 0.1)
    plain_loss(model).backward()
    before = weights(model)
    optimizer.step()
    other.step()
    assert not any(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("make", [Shared, Tied])
def test_layer_can_be_left_to_the_fallback_by_name(method, make):
    """As the error message of `test_invalid_uses_are_named` advises."""
    model = make()
    optimizer = method(model, explicit=["inside"], fallback=partial(torch.optim.SGD, lr=0.1))
    for again in range(3):
        optimizer.zero_grad()
        plain_loss(model).backward()
        gradient, before = model.inside.weight.grad.clone(), model.inside.weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(model.inside.weight.detach(), before - 0.1 * gradient)
        if again == 1:
            model, optimizer = copy.deepcopy((model, optimizer))
    assert optimizer.solver_stats().keys() == {"out"}


def test_unknown_layer_names_are_refused(method):
    with pytest.raises(ValueError, match="Invalid explicit: the model has no module 'insid'; it has inside"):
        method(Shared(), explicit=["insid"])
    nested = nn.Sequential(nn.Sequential(nn.Linear(5, 5)), nn.Linear(5, 3))
    optimizer = method(nested, explicit=["0"])
    assert [line.split()[-1] for line in optimizer.summary().splitlines()[3:]] == ["explicit", "proximal"]


def test_tied_modules_are_explicit(method):
    model = nn.Sequential(nn.Linear(5, 5, dtype=F64), nn.ReLU(), nn.Linear(5, 5, dtype=F64), nn.Linear(5, 3, dtype=F64))
    model[2].weight = model[0].weight
    optimizer = method(model)
    train(model, optimizer, range(3))
    assert optimizer.solver_stats().keys() == {"3"}
    assert [group["update"] for group in optimizer.param_groups] == ["proximal", "explicit"]


def test_layers_with_a_different_forward_are_explicit(method):
    class Odd(nn.Linear):
        """Computes something other than its class's linear map."""

        def forward(self, input):
            return F.linear(input, self.weight.abs(), self.bias)

    normed = nn.utils.parametrizations.weight_norm(nn.Linear(5, 5, dtype=F64))
    wrapped = nn.Linear(5, 5, dtype=F64)
    original = wrapped.forward
    wrapped.forward = lambda input: 2 * original(input)
    model = nn.Sequential(normed, Odd(5, 5, dtype=F64), wrapped, nn.Linear(5, 3, dtype=F64))
    optimizer = method(model)
    train(model, optimizer, range(3))
    assert optimizer.solver_stats().keys() == {"3"}


def test_two_losses_through_one_graph_each_give_a_step(method):
    """retain_graph: a second backward pass through the same forward pass is a pass of its own."""
    model = net()
    optimizer = method(model)
    loss = plain_loss(model)
    loss.backward(retain_graph=True)
    once = [p.grad.clone() for p in model.parameters()]  # pyright: ignore
    loss.backward()
    for p, g in zip(model.parameters(), once, strict=True):
        torch.testing.assert_close(p.grad, 2 * g)
    assert optimizer.solver_stats()


@pytest.mark.parametrize(("saved_in", "loaded_in"), [(F64, torch.float32), (torch.float32, F64)])
def test_state_moves_to_another_dtype(method, saved_in: torch.dtype, loaded_in: torch.dtype):
    """The fallback's moments follow their parameters; the run goes on as it would have, to rounding."""
    model, other = net(saved_in), net(loaded_in)
    optimizer, again = method(model, 0.3), method(other, 0.1)
    train(model, optimizer, range(4), saved_in)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    assert again.param_groups[0]["lr"] == 0.3
    moments, original = again.state[other[2].weight]["exp_avg"], optimizer.state[model[2].weight]["exp_avg"]
    assert moments.dtype == loaded_in
    assert moments.abs().max() > 0
    torch.testing.assert_close(moments.double(), original.double(), rtol=1e-6, atol=0)
    train(model, optimizer, range(4, 7), saved_in)
    train(other, again, range(4, 7), loaded_in)
    for p, q in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(p.double(), q.double(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("loaded_in", [torch.float64, torch.bfloat16])
def test_state_follows_a_model_converted_in_mid_training(method, loaded_in: torch.dtype):
    """As if state and weights had been saved, and loaded for a model of that dtype."""
    model, other = net(torch.float32), net(loaded_in)
    optimizer, again = method(model, 0.3), method(other, 0.1)
    train(model, optimizer, range(4), torch.float32)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    model.to(loaded_in)
    train(model, optimizer, range(4, 7), loaded_in)
    train(other, again, range(4, 7), loaded_in)
    assert_equal(weights(model), weights(other))
    assert optimizer.state[model[2].weight]["exp_avg"].dtype == loaded_in


@pytest.mark.parametrize("copied", [False, True])
@pytest.mark.parametrize("wrapped", [False, True])
def test_states_follow_a_converted_model_whose_layers_are_frozen(method, wrapped: bool, copied: bool):
    """Nothing is solved for then."""
    model = net(torch.float32)
    optimizer: Any = method(model, 0.3)
    if wrapped:
        optimizer = Preconditioned(optimizer, torch.optim.Adam)
    train(model, optimizer, range(2), torch.float32)
    if copied:
        model, optimizer = copy.deepcopy((model, optimizer))
    for layer in (model[0], model[3]):
        layer.requires_grad_(False)
    model.double()
    train(model, optimizer, range(2, 4), torch.float64)
    assert optimizer.state[model[2].weight]["exp_avg"].dtype == torch.float64


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_state_moves_to_another_device(method):
    model, other = net(), net().cuda()
    optimizer, again = method(model, 0.3), method(other, 0.1)
    train(model, optimizer, range(4))
    other.load_state_dict(model.state_dict())
    again.load_state_dict(optimizer.state_dict())
    assert all(value.device.type == "cuda" for value in again.state[other[2].weight].values() if value.dim())
    x, y = batch()
    F.cross_entropy(other(x.cuda()), y.cuda()).backward()
    again.step()
    model.cuda()  # in mid-training
    optimizer.zero_grad()
    F.cross_entropy(model(x.cuda()), y.cuda()).backward()
    optimizer.step()
    for p, q in zip(weights(model), weights(other), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-12)
