"""Layers other than torch's own: each takes the step of its equivalent linear layer."""

import copy
import math
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP, ProxBP, register_layer
from sibp.capture import geometry
from sibp.capture.geometry import Geometry, TransposedGeometry, geometry_of
from sibp.prox.operators import DenseFeatures, FeatureOperator

F64 = torch.float64
METHODS = {
    "sibp exact": lambda model: SIBP(model, 0.4, 0.6, "exact"),
    "sibp cg:3": lambda model: SIBP(model, 0.4, 0.6, "cg:3"),
    "sibp paper": lambda model: SIBP(model, 0.4, 0.6, "paper"),
    "proxbp exact": lambda model: ProxBP(model, 0.4, 0.6),
    "proxbp gradient": lambda model: ProxBP(model, 0.01, 0.6, "gradient"),
}


@pytest.fixture(autouse=True)
def _only_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(geometry, "_geometries", dict(geometry._geometries))


class Conv1D(nn.Module):
    """As in GPT-2: x W + b with W (n, m)."""

    def __init__(self, units: int, inputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, units, dtype=F64) / math.sqrt(inputs))
        self.bias = nn.Parameter(0.1 * torch.randn(units, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight + self.bias


def transposed(layer: nn.Module) -> nn.Linear:
    """The `nn.Linear` that computes the same."""
    W, b = layer.get_parameter("weight"), layer.get_parameter("bias")
    linear = nn.Linear(*W.shape, dtype=F64)
    with torch.no_grad():
        linear.weight.copy_(W.T)
        linear.bias.copy_(b)
    return linear


def net(shape: tuple[int, ...] = ()) -> tuple[nn.Sequential, nn.Sequential, Tensor]:
    """Layers of the kind, the linear layers that they are, and inputs with further axes of rows."""
    torch.manual_seed(0)
    layers = Conv1D(7, 5), Conv1D(4, 7), Conv1D(3, 4)
    mine = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.Tanh(), layers[2])
    twin = nn.Sequential(transposed(layers[0]), nn.ReLU(), transposed(layers[1]), nn.Tanh(), transposed(layers[2]))
    return mine, twin, torch.randn(6, *shape, 5, dtype=F64)


def train(model: nn.Module, method: str, x: Tensor, steps: int = 3) -> list[dict[str, Any]]:
    optimizer = METHODS[method](model)
    stats = []
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(x)
        y = torch.arange(out.shape[:-1].numel()) % out.shape[-1]
        F.cross_entropy(out.flatten(0, -2), y).backward()
        optimizer.step()
        stats.append(optimizer.solver_stats())
    return stats


def relu_everywhere(model: nn.Sequential) -> None:
    """The authors' solver knows no tanh."""
    for i, module in enumerate(model):
        if isinstance(module, nn.Tanh):
            model[i] = nn.ReLU()


@pytest.mark.parametrize("shape", [(), (3,)])
@pytest.mark.parametrize("method", METHODS)
def test_a_transposed_layer_steps_like_the_equivalent_linear_layer(method, shape):
    register_layer(Conv1D)(TransposedGeometry)
    mine, twin, x = net(shape)
    if "paper" in method:
        relu_everywhere(mine), relu_everywhere(twin)
    found, expected = train(mine, method, x), train(twin, method, x)
    assert [list(stats) for stats in found] == [["4", "2", "0"]] * 3
    for layer, linear in zip(mine, twin, strict=True):
        if isinstance(layer, Conv1D):
            torch.testing.assert_close(layer.weight, linear.weight.T, rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(layer.bias, linear.bias, rtol=1e-9, atol=1e-11)
    for mine_stats, twin_stats in zip(found, expected, strict=True):
        for name, of_layer in mine_stats.items():
            assert of_layer == pytest.approx(twin_stats[name], rel=1e-6, abs=1e-9)


def test_the_conv1d_of_transformers_is_recognised_by_its_name(monkeypatch):
    assert geometry_of(Conv1D(3, 2)) is None
    monkeypatch.setattr(Conv1D, "__module__", "transformers.pytorch_utils")
    assert isinstance(geometry_of(Conv1D(3, 2)), TransposedGeometry)
    mine, twin, x = net()
    train(mine, "sibp cg:3", x), train(twin, "sibp cg:3", x)
    torch.testing.assert_close(mine[0].weight, twin[0].weight.T, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("moving", ["weight", "bias"])
def test_the_trained_half_is_solved_and_the_other_gets_its_gradient(moving):
    register_layer(Conv1D)(TransposedGeometry)
    mine, twin, x = net()
    for model in (mine, twin):
        some = [p for name, p in model.named_parameters() if name.endswith(moving)]
        optimizer = SIBP(model, 0.4, 0.6, params=some)
        model(x).square().mean().backward()
        assert optimizer.solver_stats()
    for layer, linear in zip(mine, twin, strict=True):
        if isinstance(layer, Conv1D):
            torch.testing.assert_close(layer.weight.grad, linear.weight.grad.T, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(layer.bias.grad, linear.bias.grad, rtol=1e-9, atol=1e-12)


class Windows(nn.Module):
    """Sums of neighbouring inputs, then a linear map: neither a matrix at hand nor units along the last axis."""

    def __init__(self, inputs: int, units: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(units, inputs - 1, dtype=F64) / math.sqrt(inputs))
        self.bias = nn.Parameter(torch.zeros(units, dtype=F64))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x[..., 1:] + x[..., :-1], self.weight, self.bias).movedim(-1, 1)


class NeighbourSums(FeatureOperator):
    """By two products: nothing is summed in advance."""

    def __init__(self, x: Tensor, weight: bool, bias: bool) -> None:
        super().__init__(x, x.shape[-1] - 1, x.shape[:-1], weight=weight, bias=bias)

    def matmat(self, V: Tensor) -> Tensor:
        n = self.inputs * self.weight
        left, right = F.pad(V[:n], (0, 0, 0, 1)), F.pad(V[:n], (0, 0, 1, 0))
        change = self.x @ (left + right) if self.weight else self.x.new_zeros(*self.row_shape, V.shape[-1])
        return change + V[-1] if self.bias else change

    def rmatmat(self, E: Tensor) -> Tensor:
        E = self.flat(E)
        pulled = self.x.flatten(0, -2).mT @ E
        return torch.cat([pulled[1:] + pulled[:-1]] * self.weight + [E.sum(0, keepdim=True)] * self.bias)


class WindowsGeometry(Geometry):
    """By an operator of its own, with all axes of rows."""

    def forward(self, x: Tensor, W: Tensor, b: Tensor | None) -> Tensor:
        return F.linear(x[..., 1:] + x[..., :-1], W, b).movedim(-1, 1)

    def features(self, x: Tensor, *, weight: bool, bias: bool) -> FeatureOperator:
        return NeighbourSums(x, weight, bias)

    def outputs(self, z: Tensor, features: FeatureOperator) -> Tensor:
        return z.movedim(1, -1)


class DenseWindowsGeometry(WindowsGeometry):
    """The same layer, defined by its matrix."""

    def features(self, x: Tensor, *, weight: bool, bias: bool) -> FeatureOperator:
        return DenseFeatures((x[..., 1:] + x[..., :-1]).flatten(0, -2), weight, bias)

    def outputs(self, z: Tensor, features: FeatureOperator) -> Tensor:
        return z.movedim(1, -1).reshape(features.rows, -1)


@pytest.mark.parametrize("kind", [WindowsGeometry, DenseWindowsGeometry])
@pytest.mark.parametrize("method", [name for name in METHODS if "paper" not in name])
def test_a_registered_kind_steps_like_the_equivalent_linear_layer(kind, method):
    """Its input's gradient is found by autograd."""
    register_layer(Windows)(kind)

    class Twin(nn.Module):
        """A linear layer on the sums."""

        def __init__(self, layer: Windows) -> None:
            super().__init__()
            self.linear = nn.Linear(layer.weight.shape[1], len(layer.weight), dtype=F64)
            self.linear.load_state_dict(layer.state_dict())

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x[..., 1:] + x[..., :-1])

    torch.manual_seed(0)
    first, last = nn.Linear(5, 6, dtype=F64), nn.Linear(4, 3, dtype=F64)
    layer, x = Windows(6, 4), torch.randn(8, 3, 5, dtype=F64)

    class Net(nn.Module):
        def __init__(self, middle: nn.Module) -> None:
            super().__init__()
            self.first, self.middle, self.last = copy.deepcopy(first), middle, copy.deepcopy(last)

        def forward(self, x: Tensor) -> Tensor:
            h = self.middle(self.first(x).relu()).relu()
            return self.last((h.movedim(1, -1) if isinstance(self.middle, Windows) else h).mean(1))

    mine, twin = Net(layer), Net(Twin(layer))
    assert "middle" in train(mine, method, x)[0]
    train(twin, method, x)
    for (name, p), q in zip(mine.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-8, atol=1e-10, msg=name)


def test_an_overridden_forward_is_explicit():
    register_layer(Conv1D)(TransposedGeometry)

    class Other(Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    class Same(Conv1D):
        pass

    assert geometry_of(Other(3, 2)) is None
    assert isinstance(geometry_of(Same(3, 2)), TransposedGeometry)
    assert geometry_of(nn.MultiheadAttention(4, 2).out_proj) is None
    register_layer(Other)(TransposedGeometry)  # declared by its author
    assert geometry_of(Other(3, 2)) is not None


def test_invalid_kinds_are_refused():
    with pytest.raises(TypeError, match="7 is neither a class of modules nor the full name of one"):
        register_layer(7)  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="is not a subclass of Geometry"):
        register_layer(Conv1D)(nn.Linear)  # pyright: ignore[reportArgumentType]


def test_a_tied_head_is_explicit_and_names_the_tied_parameter():
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Embedding(5, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.mix(self.embed(x)).relu())

    model = Language()
    optimizer = SIBP(model, 0.3)
    before = model.head.weight.detach().clone()
    F.cross_entropy(model(torch.arange(5)), torch.arange(5)).backward()
    optimizer.step()
    rows = {line.split()[0]: line for line in optimizer.summary().splitlines()[3:]}
    assert rows["head"].endswith("explicit, tied to embed")
    assert rows["embed"].endswith("explicit, tied to head")
    assert rows["mix"].endswith("proximal")
    assert not torch.equal(model.head.weight, before)


def small_gpt2() -> Any:
    """Randomly initialised: no weights are loaded."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        transformers = pytest.importorskip("transformers", reason="needs the package transformers")
        config = transformers.GPT2Config(
            n_embd=16, n_layer=2, n_head=2, vocab_size=11, n_positions=8, bos_token_id=0, eos_token_id=0,
            resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, activation_function="gelu_pytorch_tanh",
        )  # fmt: skip
        torch.manual_seed(0)
        return transformers.GPT2LMHeadModel(config)


@pytest.mark.filterwarnings("ignore")
def test_gpt2_trains_with_every_layer_proximal_except_its_tied_head():
    model = small_gpt2()
    optimizer = SIBP(model, lr=0.3, prox_weight=1.0, fallback=lambda params: torch.optim.Adam(params, lr=0.01))
    tokens = torch.arange(48).reshape(6, 8) % 11
    losses = []
    for _ in range(24):
        optimizer.zero_grad()
        loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    rows = {line.split()[0]: line for line in optimizer.summary().splitlines()[3:]}
    kinds = {name: row.split()[1] for name, row in rows.items()}
    assert all(row.endswith("proximal") for name, row in rows.items() if kinds[name] == "Conv1D")
    assert sum(kind == "Conv1D" for kind in kinds.values()) == 8
    assert "gelu" in rows["transformer.h.0.mlp.c_fc"]
    assert rows["lm_head"].endswith("explicit, tied to transformer.wte")


@pytest.mark.filterwarnings("ignore")
def test_gpt2_steps_like_the_same_model_with_linear_layers():
    model = small_gpt2().double()
    twin = copy.deepcopy(model)
    names = [name for name, module in twin.named_modules() if type(module).__name__ == "Conv1D"]
    for name in names:
        owner, _, attribute = name.rpartition(".")
        setattr(twin.get_submodule(owner), attribute, transposed(twin.get_submodule(name)))
    tokens = torch.arange(48).reshape(6, 8) % 11
    for each in (model, twin):
        optimizer = SIBP(each, 0.3, 3.0, "cg:2", fallback=lambda params: torch.optim.SGD(params, lr=0.1))
        for _ in range(2):
            optimizer.zero_grad()
            each(input_ids=tokens, labels=tokens).loss.backward()
            optimizer.step()
    for name in names:
        mine, linear = model.get_submodule(name), twin.get_submodule(name)
        torch.testing.assert_close(mine.weight, linear.weight.T, rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(mine.bias, linear.bias, rtol=1e-7, atol=1e-9)
