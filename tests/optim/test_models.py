"""SIBP in models of every shape: a layer's subproblem does not depend on how the model is written."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sibp import SIBP, AutoSIBP, ProxBP

F64 = torch.float64


def mlp(*middle: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7, dtype=F64), *middle, nn.Linear(7, 3, dtype=F64))


def batch(n: int = 6, features: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, features, generator=generator, dtype=F64), torch.arange(n) % 3


def changes(model: nn.Module, solver: str = "cg:4", **options: object) -> dict[str, Tensor]:
    """W_old - W_new of one step of SIBP, by parameter name."""
    optimizer = SIBP(model, 0.8, 0.5, solver, **options)  # pyright: ignore[reportArgumentType]
    x, y = batch()
    F.cross_entropy(model(x), y).backward()
    optimizer.remove()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    for x, y in zip(a.values(), b.values(), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-13)


class Functional(nn.Module):
    """The MLP of `mlp` with its activation called in some other way."""

    def __init__(self, call):
        super().__init__()
        self.first, self.last = mlp()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.call(self.first(x)))


def relu_by_method_in_place_ignoring_the_result(z: Tensor) -> Tensor:
    z.relu_()
    return z


def relu_in_place_then_a_list(z: Tensor) -> Tensor:
    F.relu_(z)
    return torch.cat([z[:, :0], z], 1)


SAME_ACTIVATION = [
    (nn.ReLU(), relu_in_place_then_a_list),
    (nn.ReLU(), lambda z: F.relu(z)),
    (nn.ReLU(), lambda z: F.relu(z, inplace=True)),
    (nn.ReLU(), lambda z: torch.relu(z)),
    (nn.ReLU(), lambda z: torch.relu_(z)),
    (nn.ReLU(), lambda z: z.relu()),
    (nn.ReLU(), lambda z: F.relu(input=z)),
    (nn.ReLU(), relu_by_method_in_place_ignoring_the_result),
    (nn.ReLU(), nn.ReLU(inplace=True)),
    (nn.LeakyReLU(0.3), lambda z: F.leaky_relu(z, 0.3)),
    (nn.LeakyReLU(0.3), nn.LeakyReLU(0.3, inplace=True)),
    (nn.LeakyReLU(), lambda z: F.leaky_relu(z)),
    (nn.Tanh(), lambda z: z.tanh()),
    (nn.Tanh(), lambda z: F.tanh(z)),
    (nn.Tanh(), lambda z: torch.tanh(z)),
    (nn.Sigmoid(), lambda z: torch.sigmoid(z)),
    (nn.Sigmoid(), lambda z: z.sigmoid()),
    (nn.GELU(), lambda z: F.gelu(z)),
    (nn.GELU("tanh"), lambda z: F.gelu(z, approximate="tanh")),
    (nn.SiLU(), lambda z: F.silu(z)),
    (nn.SiLU(), nn.SiLU(inplace=True)),
    (nn.ELU(0.7), lambda z: F.elu(z, 0.7)),
    (nn.ELU(0.7), nn.ELU(0.7, inplace=True)),
    (nn.ELU(0.7), lambda z: F.elu_(z, 0.7)),
    (nn.Softplus(2.0), lambda z: F.softplus(z, 2.0)),
    (nn.Softplus(2.0), lambda z: F.softplus(z, beta=2.0)),
    (nn.Mish(), lambda z: F.mish(z, inplace=True)),
    (nn.Hardswish(), lambda z: F.hardswish(z)),
    (nn.Hardswish(), nn.Hardswish(inplace=True)),
    (nn.ReLU6(), lambda z: F.relu6(z)),
    (nn.ReLU6(), nn.ReLU6(inplace=True)),
    (nn.LeakyReLU(0.25), lambda z: F.prelu(z, torch.tensor([0.25], dtype=F64))),
    (nn.LeakyReLU(0.25), lambda z: z.prelu(torch.full((7,), 0.25, dtype=F64))),
]


@pytest.mark.parametrize(("module", "call"), SAME_ACTIVATION)
def test_activation_is_found_however_it_is_called(module: nn.Module, call):
    expected = changes(mlp(module))
    assert_same(changes(Functional(call)), expected)
    linearised = changes(mlp(module), solver="exact")
    # The hidden layer's subproblem contains the activation.
    assert not torch.allclose(linearised["0.weight"], expected["0.weight"], rtol=1e-3)


@pytest.mark.parametrize(
    "call",
    [
        lambda z: F.relu(z) + 0 * z,  # used twice
        lambda z: F.relu(z + 0),  # not the layer's own output
        lambda z: torch.clamp(z, min=0),  # not a registered activation
        lambda z: torch.cat([F.relu(z[:, :3]), F.relu(z[:, 3:])], 1),
    ],
)
def test_other_functions_get_the_linearised_subproblem(call):
    assert_same(changes(Functional(call)), changes(mlp(nn.ReLU()), solver="exact"))


class Direct(torch.autograd.Function):
    """Takes the tensor in C++, where no Python override sees it."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, g):
        return g


def test_an_activation_also_used_by_a_custom_function_is_linearised():
    direct = changes(Functional(lambda z: F.relu(z) + Direct.apply(z)))
    plain = changes(Functional(lambda z: F.relu(z + 0) + z), solver="exact")
    assert_same(direct, plain)


def test_a_custom_function_cannot_use_an_overwritten_pre_activation():
    with pytest.raises(RuntimeError, match="use the activation's result instead"):
        changes(Functional(lambda z: F.relu_(z) + Direct.apply(z)))


def test_output_behaves_like_a_plain_tensor():
    model = mlp(nn.ReLU())
    optimizer = SIBP(model)
    x, _ = batch()
    output = model(x)
    assert isinstance(output, Tensor)
    assert type(output * 2) is Tensor
    assert type(output.detach()) is Tensor
    assert output.detach().numpy().shape == (6, 3)
    assert output.argmax(1).tolist() == (output * 1).argmax(1).tolist()
    output.retain_grad()
    output.square().sum().backward()
    torch.testing.assert_close(output.grad, 2 * output.detach())
    assert "tensor" in repr(output)
    assert type(copy.deepcopy(output.detach())) is Tensor
    assert optimizer.solver_stats()


class Residual(nn.Module):
    """x -> out(h + f2(relu(f1(h)))), h = relu(stem(x))."""

    def __init__(self, in_place: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.f1 = nn.Linear(5, 4, dtype=F64), nn.Linear(4, 6, dtype=F64)
        self.f2, self.out = nn.Linear(6, 4, dtype=F64), nn.Linear(4, 3, dtype=F64)
        self.in_place = in_place

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.stem(x), inplace=self.in_place)
        r = self.f2(F.relu(self.f1(h), inplace=self.in_place))
        if self.in_place:
            r += h
        else:
            r = r + h
        return self.out(r)


def dense_step(A: Tensor, D_z: Tensor, eta: float, lam: float) -> tuple[Tensor, Tensor]:
    """(dW, db) of the linearised subproblem by the dense normal equations."""
    phi = torch.cat([A, torch.ones(len(A), 1, dtype=F64)], 1)
    V = -eta * torch.linalg.solve(phi.T @ phi + lam * torch.eye(phi.shape[1], dtype=F64), phi.T @ D_z)
    return V[:-1].T, V[-1]


@pytest.mark.parametrize("in_place", [False, True])
def test_residual_net_equals_an_explicit_sweep(in_place: bool):
    model = Residual(in_place)
    x, y = batch()
    with torch.no_grad():
        h = model.stem(x).relu()
        u = model.f1(h).relu()
        r = h + model.f2(u)
        D = model.out(r).softmax(1) - F.one_hot(y, 3)
    expected, eta, lam = {}, 0.8, 0.5
    dW, expected["out.bias"] = dense_step(r, D, eta, lam)
    expected["out.weight"] = dW
    D_r = D @ (model.out.weight + dW)
    dW, expected["f2.bias"] = dense_step(u, D_r, eta, lam)
    expected["f2.weight"] = dW
    D_u = D_r @ (model.f2.weight + dW) * (u > 0)
    dW, expected["f1.bias"] = dense_step(h, D_u, eta, lam)
    expected["f1.weight"] = dW
    D_h = (D_r + D_u @ (model.f1.weight + dW)) * (h > 0)
    expected["stem.weight"], expected["stem.bias"] = dense_step(x, D_h, eta, lam)
    found = changes(model, solver="exact")
    for name, change in expected.items():
        torch.testing.assert_close(found[name], -change, rtol=1e-10, atol=1e-13)


def test_leading_dimensions_are_rows():
    x = torch.randn(4, 3, 5, dtype=F64)
    grads = []
    for shape in ((4, 3, 5), (12, 5)):
        model = mlp(nn.GELU())
        optimizer = SIBP(model, loss_average=False)
        model(x.reshape(shape)).square().sum().backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
        assert optimizer.solver_stats()["0"]["iterations"] == 5
    assert_same(*grads)


def test_loss_average_can_be_a_number_of_terms():
    x, y = torch.randn(4, 3, 5, dtype=F64), torch.arange(12) % 3
    grads = []
    for terms, reduction in ((12, "mean"), (False, "sum")):
        model = mlp(nn.ReLU())
        optimizer = SIBP(model, loss_average=terms)
        F.cross_entropy(model(x).flatten(0, 1), y, reduction=reduction).backward()
        grads.append({name: p.grad for name, p in model.named_parameters()})
        assert optimizer.solver_stats()
    assert_same(*grads)


def test_each_forward_pass_has_its_own_batch_size():
    """Two batches of different size: each is averaged over its own."""
    x, y = batch(9)
    whole = mlp(nn.ReLU())
    optimizer = SIBP(whole, 0.3, 0.5, "exact")
    losses = [F.cross_entropy(whole(part), label) for part, label in ((x[:6], y[:6]), (x[6:], y[6:]))]
    for loss in losses:
        loss.backward()
    separate = []
    for part in (slice(0, 6), slice(6, 9)):
        model = mlp(nn.ReLU())
        single = SIBP(model, 0.3, 0.5, "exact", loss_average=False)
        F.cross_entropy(model(x[part]), y[part], reduction="sum").backward()
        separate.append([p.grad for p in model.parameters()])
        assert single.solver_stats()
    assert optimizer.solver_stats()
    for p, first, second in zip(whole.parameters(), *separate, strict=True):
        torch.testing.assert_close(p.grad, first + second, rtol=1e-10, atol=1e-13)


def test_frozen_parameters_are_unchanged_and_propagate_gradients():
    def frozen(*names: str) -> dict[str, Tensor]:
        model = mlp(nn.ReLU())
        for name in names:
            model.get_parameter(name).requires_grad_(False)
        found = changes(model, solver="exact")
        assert set(found) == {"0.weight", "0.bias", "2.weight", "2.bias"} - set(names)
        return found

    # Below a frozen last layer, back propagation is ordinary.
    found, plain = frozen("2.weight", "2.bias"), mlp(nn.ReLU())
    x, y = batch()
    z = plain[0](x)
    z.retain_grad()
    F.cross_entropy(plain[2](z.relu()), y).backward()
    dW, db = dense_step(x, 6 * z.grad, 0.8, 0.5)
    torch.testing.assert_close(found["0.weight"], -dW, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found["0.bias"], -db, rtol=1e-10, atol=1e-13)
    # A weight alone, and a bias alone.
    frozen("2.bias", "0.bias")
    alone = frozen("2.weight", "0.bias")["2.bias"]
    D = plain[2](plain[0](x).relu()).softmax(1) - F.one_hot(y, 3)
    torch.testing.assert_close(alone, 0.8 * D.sum(0) / (6 + 0.5), rtol=1e-10, atol=1e-13)


def test_freezing_and_unfreezing_later():
    model = mlp(nn.ReLU())
    optimizer = SIBP(model, 0.1)
    x, y = batch()
    for trainable in (True, False, True):
        model[0].requires_grad_(trainable)
        before = model[0].weight.clone()
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert torch.equal(before, model[0].weight) != trainable


@pytest.mark.parametrize("remains", ["zeros", "an old displacement", "a new displacement"])
@pytest.mark.parametrize("method", [SIBP, AutoSIBP])
def test_a_frozen_layer_stays_whatever_its_gradient_holds(method, remains: str):
    """Nor do weight decay or a mean of earlier steps move it; unfrozen again, it is trained."""
    torch.manual_seed(0)
    model = mlp(nn.ReLU())
    optimizer = method(model, weight_decay=0.1)
    x, y = batch()

    def loss() -> Tensor:
        return F.cross_entropy(model(x), y)

    def step() -> bool:
        before = model[0].weight.clone()
        optimizer.step(**({"evaluate": loss} if method is AutoSIBP else {}))
        return not torch.equal(before, model[0].weight)

    loss().backward()
    assert step()
    if remains == "zeros":
        optimizer.zero_grad(set_to_none=False)
    elif remains == "an old displacement":
        for p in model[2].parameters():
            p.grad = None
    else:
        optimizer.zero_grad()
        loss().backward()
        for p in model[2].parameters():
            p.grad = None
    model[0].requires_grad_(False)
    loss().backward()
    assert not step()
    model.requires_grad_(True)
    optimizer.zero_grad()
    loss().backward()
    assert step()


class ConvNet(nn.Module):
    """Pooling, batch norm, dropout, flatten, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.features = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.MaxPool2d(2),
            nn.Conv2d(4, 6, 3), nn.ReLU(inplace=True), nn.AvgPool2d(2), nn.Flatten(), nn.Dropout(0.1),
        )  # fmt: skip
        self.digit, self.parity = nn.Linear(6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(x)
        return self.digit(h), self.parity(h)


@pytest.mark.parametrize("make", [lambda m: SIBP(m, 0.3, 3.0), lambda m: ProxBP(m, 0.3, 3.0)])
def test_a_net_with_many_module_kinds_trains(make):
    model = ConvNet()
    optimizer = make(model)
    x = torch.randn(32, 1, 8, 8)
    y = (x.mean((1, 2, 3)) * 8).clamp(-1, 1).add(1).long()

    def loss() -> Tensor:
        digit, parity = model(x)
        return F.cross_entropy(digit, y) + F.cross_entropy(parity, y % 2)

    with torch.no_grad():
        model.eval()
        start = loss().item()
    for _ in range(30):
        model.train()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        model.eval()
        with torch.no_grad():
            loss()
    assert loss().item() < 0.6 * start
    table = optimizer.summary()
    assert [line.split()[-1] for line in table.splitlines() if "BatchNorm" in line] == ["explicit"]
    assert sum(line.endswith("proximal") for line in table.splitlines()) == 4
    assert repr(optimizer).endswith(table)


class Block(nn.Module):
    """A transformer block in the manner of nanoGPT, with its embedding and head."""

    def __init__(self, width: int = 16, heads: int = 2, vocabulary: int = 11) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(vocabulary, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.mix = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.heads = heads

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        q, k, v = self.qkv(self.norm1(h)).chunk(3, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        h = h + self.mix(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return self.head(h + self.down(F.gelu(self.up(self.norm2(h)))))


def test_transformer_block_learns_with_every_linear_proximal():
    model = Block()
    optimizer = SIBP(model, 0.3, 10.0, loss_average=4 * 7, fallback=lambda p: torch.optim.Adam(p, 1e-2))
    tokens = torch.arange(32).reshape(4, 8) % 11
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    stats = optimizer.solver_stats()
    assert set(stats) == {"qkv", "mix", "up", "down", "head"}
    assert stats["up"]["iterations"] == 5  # GELU was found
    assert "gelu" in optimizer.summary()
    for line in optimizer.summary().splitlines()[3:]:
        kind, update = line.split()[1], line.split()[-1]
        assert update == ("proximal" if kind == "Linear" else "explicit")


def test_multihead_attention_output_projection_is_explicit():
    """Its forward is never called, so it cannot be tapped; the fallback must step it."""
    attention = nn.MultiheadAttention(8, 2, batch_first=True)
    with pytest.warns(UserWarning, match="SIBP found no layer with a proximal subproblem in MultiheadAttention"):
        optimizer = SIBP(attention, fallback=lambda p: torch.optim.SGD(p, 0.1))
    x = torch.randn(2, 3, 8)
    attention(x, x, x)[0].square().mean().backward()
    before, grad = attention.out_proj.weight.clone(), attention.out_proj.weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(attention.out_proj.weight, before - 0.1 * grad)


def test_checkpointed_activations_give_the_same_step():
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = mlp(nn.ReLU())
            self.layers.extend([nn.Tanh(), nn.Linear(3, 3, dtype=F64)])
            self.used = False

        def forward(self, x):
            return checkpoint(self.layers, x, use_reentrant=False) if self.used else self.layers(x)

    grads = []
    for used in (False, True):
        model = Checkpointed()
        model.used = used
        grads.append(changes(model))
    assert_same(*grads)


def test_module_backward_hooks_work_on_tapped_layers():
    model = mlp(nn.ReLU())
    seen = []
    for layer in model[1:]:
        layer.register_full_backward_hook(lambda m, gi, go: seen.append(type(m).__name__))
    found = changes(model)
    assert seen == ["Linear", "ReLU"]
    assert found.keys() == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert_same(found, changes(mlp(nn.ReLU())))


@pytest.mark.parametrize("place", [0, 1])
def test_a_layer_is_solved_with_the_error_signal_changed_by_a_hook(place: int):
    """The activation's own error signal would leave it out."""
    found = []
    for solver in ("cg:4", "exact"):
        model = mlp(nn.ReLU())
        if place == 0:
            model[0].register_full_backward_pre_hook(lambda m, go: (go[0] / 2,))
        else:
            model[1].register_full_backward_hook(lambda m, gi, go: (gi[0] / 2,))
        found.append(changes(model, solver))
    assert_same(*found)
    plain = changes(mlp(nn.ReLU()), "exact")
    assert (found[0]["0.weight"] - plain["0.weight"] / 2).norm() < 1e-9 * plain["0.weight"].norm()


@pytest.mark.parametrize("solver", ["cg:3", "exact"])
def test_autocast_solves_in_float32(solver: str):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
    twin = copy.deepcopy(model)
    x, y = torch.randn(8, 20), torch.arange(8) % 3
    for m, mixed in ((model, True), (twin, False)):
        optimizer = SIBP(m, 0.3, 1.0, solver)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            output = m(x)
            assert output.dtype == (torch.bfloat16 if mixed else torch.float32)
            loss = F.cross_entropy(output.float(), y)
        loss.backward()
        assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in m.parameters())
        assert optimizer.solver_stats()["0"]["status"] == 0
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert (p.grad - q.grad).norm() < 0.1 * q.grad.norm()


def test_bfloat16_model_takes_finite_steps():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(2, 3, 3), nn.Flatten(), nn.Linear(12, 8), nn.SiLU(), nn.Linear(8, 3)).bfloat16()
    optimizer = SIBP(model, 0.3)
    x, y = torch.randn(8, 2, 6).bfloat16(), torch.arange(8) % 3
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x).float(), y)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert all(p.dtype == torch.bfloat16 and p.isfinite().all() for p in model.parameters())


def test_evaluation_and_inference_mode_leave_no_trace():
    model = mlp(nn.ReLU())
    optimizer = SIBP(model)
    x, _ = batch()
    with torch.no_grad():
        assert type(model(x)) is Tensor
    with torch.inference_mode():
        assert type(model(x)) is Tensor
    assert optimizer.solver_stats() == {}


def test_copies_and_pickles_of_the_model_are_untapped(tmp_path):
    model = mlp(nn.ReLU())
    optimizer = SIBP(model)
    x, _ = batch()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.save(model, tmp_path / "model.pt")
        copies = [copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False)]
        copies.append(copy.deepcopy(copies[0]))
    for other in copies:
        assert torch.equal(other(x), model(x))
        other(x).square().sum().backward()
        plain = torch.autograd.grad(nn.functional.linear(x, other[0].weight, other[0].bias).sum(), other[0].weight)
        assert plain[0].shape == other[0].weight.grad.shape
        own = SIBP(other)  # and another optimizer can take them
        assert type(other(x)) is not Tensor
        own.remove()
    assert type(model(x)) is not Tensor
    assert optimizer.param_groups


def test_module_call_options_still_work():
    model = mlp(nn.ReLU())
    optimizer = SIBP(model)
    x, _ = batch()
    assert torch.equal(model[0](input=x), F.linear(x, model[0].weight, model[0].bias))
    state = model.state_dict()
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    model.load_state_dict(state)
    model.double().to("cpu")
    model(x).sum().backward()
    assert optimizer.solver_stats()


def test_functional_call_with_other_weights_is_untouched():
    model = mlp(nn.ReLU())
    optimizer = SIBP(model)
    x, _ = batch()
    weights = {name: p.detach().clone().requires_grad_() for name, p in model.named_parameters()}
    torch.func.functional_call(model, weights, (x,)).square().sum().backward()
    plain = mlp(nn.ReLU())
    plain(x).square().sum().backward()
    for name, p in plain.named_parameters():
        torch.testing.assert_close(weights[name].grad, p.grad)
    assert optimizer.solver_stats() == {}


@pytest.mark.parametrize("solver", ["exact", "cg:2", "paper"])
@pytest.mark.parametrize("inplace", [False, True])
def test_a_step_leaves_nothing_behind(solver, inplace):
    """Nor does a forward pass without a backward pass: its memory is freed with its last user."""
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(inplace), nn.Linear(5, 3))
    optimizer = SIBP(model, solver=solver)
    gc.collect()
    counts = []
    for step in range(4):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(torch.rand(4, 6)), torch.tensor([0, 1, 2, 0]))
        if step != 2:
            loss.backward()
            optimizer.step()
        del loss
        gc.collect()
        kinds = (type(thing) for thing in gc.get_objects())  # isinstance would call the objects' own code
        counts.append(sum(issubclass(kind, torch.Tensor | torch.autograd.graph.Node) for kind in kinds))
    layer = weakref.ref(model[0])
    assert counts[1] == counts[3]
    del model, optimizer
    gc.collect()
    assert layer() is None
