"""What breaks a numerical method, given to every optimizer with a statistic or a factorization of its own.

After each the weights are finite, nothing was raised from a factorization, and training goes on. A layer that could
not be stepped is named, in a warning.
"""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP, ProxBP
from sibp.experiment.compose import CONFIGS, compose
from sibp.experiment.optimizers import build_optimizer
from sibp.optim.bcd import BCD
from sibp.optim.dtp import DTP, _rmsprop
from sibp.optim.foof import FOOF
from sibp.optim.kfac import KFAC
from sibp.optim.locoprop import LocoProp
from sibp.optim.sibp_foof import RunningSIBP
from sibp.prox.solvers.inverse import damped_inverse
from sibp.runs.errors import UserError

PEERS = ["bcd", "dtp", "foof", "kfac", "locoprop_m", "locoprop_s", "sibp_foof", "soap"]
WITH_STATISTICS = ["dtp", "foof", "kfac", "locoprop_m", "locoprop_s", "sibp_foof"]
TAPPED = [SIBP, ProxBP, BCD, DTP, FOOF, KFAC, LocoProp, RunningSIBP]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
F64 = torch.float64


def _with(value: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x.index_fill(1, torch.tensor([2]), value)


INPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "no samples": lambda x: x[:0],
    "one sample": lambda x: x[:1],
    "equal samples": lambda x: x[:1].expand(len(x), -1),
    "zeros": torch.zeros_like,
    "NaN": _with(torch.nan),
    "infinity": _with(torch.inf),
    **{f"times {scale:g}": lambda x, scale=scale: x * scale for scale in (1e-38, 1e-20, 1e10, 1e15, 1e20, 1e38)},
}


def net(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 10), nn.ReLU(), nn.Linear(10, 6), nn.ReLU(), nn.Linear(6, 3)).to(dtype)


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(12, 8, generator=generator).to(dtype), torch.randint(3, (12,), generator=generator)


def make(name: str, model: nn.Module, **settings: object) -> torch.optim.Optimizer:
    return build_optimizer(compose([f"optimizer={name}"])["optimizer"] | settings, model)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, y: Tensor) -> float:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y[: len(x)])
        loss.backward()
        return loss

    return optimizer.step(closure).item()  # pyright: ignore


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


# -- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*(is not finite|left out):RuntimeWarning")
@pytest.mark.parametrize("first", [True, False], ids=["at first", "later"])
@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("name", PEERS)
def test_weights_stay_finite_and_training_goes_on(name, inputs, first):
    model, (x, y), change = net(), batch(), INPUTS[inputs]
    optimizer = make(name, model)
    for sent in [change(x)] * 2 if first else [x, x, change(x)]:
        step(model, optimizer, sent, y)
        assert all(p.isfinite().all() for p in model.parameters())
    before = weights(model)
    for _ in range(2):
        step(model, optimizer, x, y)
    assert all(p.isfinite().all() for p in model.parameters())
    if not inputs.startswith("times"):  # a curvature that large may leave the weights unchanged
        assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("name", [name for name in PEERS if name != "soap"])
def test_non_finite_inputs_change_nothing_and_leave_no_trace(name):
    """The first layer is named, once; afterwards weights and statistics are as if the batch had not been."""
    model, (x, y) = net(), batch()
    optimizer = make(name, model)
    step(model, optimizer, x, y)
    before = weights(model)
    statistics = copy.deepcopy(list(optimizer.state.values()))
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for _ in range(2):
            step(model, optimizer, x * torch.nan, y)
    assert [str(w.message).split(":")[0] for w in seen].count("layer '0'") == 1
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    for now, then in zip(optimizer.state.values(), statistics, strict=True):
        for key, value in then.items():
            if isinstance(value, Tensor):
                assert torch.equal(now[key], value), key


@pytest.mark.parametrize("gradient", [torch.nan, torch.inf, 1e25], ids=["NaN", "infinity", "square overflows"])
def test_soap_skips_a_step_that_it_cannot_complete(gradient):
    """The bad gradient is the last parameter's, when the package has moved the others."""
    model, (x, y) = net(), batch()
    optimizer = make("soap", model, every=1)
    for _ in range(3):
        step(model, optimizer, x, y)
    before = weights(model)
    F.cross_entropy(model(x), y).backward()
    model[4].weight.grad[0, 0] = gradient
    with pytest.warns(RuntimeWarning, match=r"SOAP skipped a step: the gradient of 4\.weight is not finite"):
        optimizer.step()
    assert all(torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    step(model, optimizer, x, y)
    assert any(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))
    assert all(p.isfinite().all() for p in model.parameters())


def test_a_covariance_that_cannot_be_factored_gives_nan_and_no_error():
    S = torch.stack([torch.eye(3), torch.full((3, 3), torch.nan), -torch.eye(3), torch.full((3, 3), torch.inf)])
    inverse = damped_inverse(S, 0.5)
    torch.testing.assert_close(inverse[0], torch.eye(3) / 1.5)
    assert inverse[1:].isnan().all()
    assert damped_inverse(torch.zeros(3, 3), torch.tensor(0.0)).isnan().all()  # a damping that has underflowed


def test_dtps_variance_of_large_equal_gradients_is_not_negative():
    """Gradients of 1e4 whose mean square lies below their squared mean by some units of its rounding, 8."""
    g = torch.full((5,), 1e4)
    memory = {"W mean": g.clone(), "W square": g.square() - 80, "W step": torch.zeros(5)}
    assert _rmsprop(memory, "W", g, 0.01).isfinite().all()


# -- K-FAC ------------------------------------------------------------------------------------------------------------


def test_an_empty_batch_does_not_affect_kfac():
    models = net(F64), net(F64)
    x, y = batch(F64)
    for model, between in zip(models, (True, False), strict=True):
        optimizer = KFAC(model, generator=torch.Generator().manual_seed(0))
        step(model, optimizer, x, y)
        if between:
            step(model, optimizer, x[:0], y)
        step(model, optimizer, x, y)
    assert all(torch.equal(p, q) for p, q in zip(*map(weights, models), strict=True))


def test_kfac_refuses_outputs_of_several_parts():
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.layer(x), x

    model, (x, _) = Pair(), batch()
    optimizer = KFAC(model)
    with pytest.raises(RuntimeError, match=r"^K-FAC: the model returns a tuple, .* one tensor of outputs \(B, n\)"):
        model(x)
    with torch.no_grad():
        model(x)
    with optimizer.paused():
        model(x)


def test_kfac_refuses_logits_with_positions():
    """Their classes are on axis 1, not on the last: the labels would be drawn across an image's columns."""
    model = nn.Sequential(nn.Conv2d(1, 3, 3))
    optimizer = KFAC(model)
    with pytest.raises(RuntimeError, match=r"^K-FAC: the model's output has shape \(2, 3, 4, 4\), and likelihood="):
        model(torch.randn(2, 1, 6, 6))
    optimizer.remove()
    optimizer = KFAC(model, likelihood="gaussian")
    model(torch.randn(2, 1, 6, 6)).square().sum().backward()
    assert optimizer.state


def test_kfac_refuses_layers_called_one_by_one():
    model, (x, y) = net(), batch()
    optimizer = KFAC(model)
    step(model, optimizer, x, y)
    message = r"^layer '0' was called outside the model's own forward pass"
    with pytest.raises(RuntimeError, match=message):
        model[0](x)
    with pytest.raises(RuntimeError, match=message):
        model.forward(x)
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        model(x[:, :3])  # a pass that raised is over, too
    with pytest.raises(RuntimeError, match=message):
        model[0](x)
    with torch.no_grad():
        model[0](x)
    step(model, optimizer, x, y)


def test_kfac_refuses_a_layer_that_does_not_affect_the_output():
    class Aside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.main, self.aside = nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> Tensor:
            self.penalty = self.aside(x).square().mean()
            return self.main(x)

    model, (x, y) = Aside(), batch()
    optimizer = KFAC(model)
    loss = F.cross_entropy(model(x), y) + model.penalty
    with pytest.raises(RuntimeError, match=r"^layer 'aside': K-FAC has drawn no labels for it"):
        loss.backward()
    optimizer.remove()


def test_kfac_with_checkpointed_activations_takes_the_same_step():
    from torch.utils.checkpoint import checkpoint

    class Checkpointed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net(F64)

        def forward(self, x: Tensor) -> Tensor:
            hidden = checkpoint(self.net[:3], x, use_reentrant=False)
            return self.net[3:](hidden)

    x, y = batch(F64)
    plain, model = net(F64), Checkpointed()
    for each in (plain, model):
        optimizer = KFAC(each, generator=torch.Generator().manual_seed(0))
        step(each, optimizer, x, y)
    for p, q in zip(plain.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(p, q)


@pytest.mark.parametrize("likelihood", ["categorical", "bernoulli", "gaussian"])
def test_kfacs_labels_come_from_its_generator(likelihood):
    x, y = batch()
    ends = []
    for seed, other in ((0, 1), (0, 2), (1, 1)):
        model = net()
        optimizer = KFAC(model, likelihood=likelihood, generator=torch.Generator().manual_seed(seed))
        torch.manual_seed(other)
        state = torch.get_rng_state()
        step(model, optimizer, x, y)
        assert torch.equal(torch.get_rng_state(), state)
        ends.append(weights(model))
    assert all(torch.equal(p, q) for p, q in zip(ends[0], ends[1], strict=True))
    assert not all(torch.equal(p, q) for p, q in zip(ends[0], ends[2], strict=True))


# -- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:layer .* Lower lr:RuntimeWarning")  # float16 overflows
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "optimizer").glob("*.yaml")))
def test_resumes_bitwise_in_every_dtype(name, dtype, tmp_path):
    """And statistics of half-precision weights stay float32, in which steps are computed."""
    if name in ("lbfgs", "prodigy", "schedule_free", "soap") and dtype is torch.float16:
        pytest.skip("refused")
    model, other, (x, y) = net(dtype), net(dtype), batch(dtype)
    torch.manual_seed(1)
    optimizer, again = make(name, model), make(name, other)
    for _ in range(3):
        step(model, optimizer, x, y)
    torch.save((model.state_dict(), optimizer.state_dict(), torch.get_rng_state()), tmp_path / "c.pt")
    for _ in range(3):
        step(model, optimizer, x, y)
    first, second, random = torch.load(tmp_path / "c.pt", weights_only=True)
    other.load_state_dict(first)
    again.load_state_dict(second)
    if name in WITH_STATISTICS:
        assert _dtypes(again) == {torch.promote_types(dtype, torch.float32)}
    torch.set_rng_state(random)
    for _ in range(3):
        step(other, again, x, y)
    torch.testing.assert_close(weights(model), weights(other), rtol=0, atol=0, equal_nan=True)  # NaN: Adam's in float16


def _dtypes(optimizer: torch.optim.Optimizer) -> set[torch.dtype]:
    return {value.dtype for memory in optimizer.state.values() for value in memory.values() if torch.is_tensor(value)}


def test_loaded_statistics_are_converted_to_the_models_precision():
    (x, y), wide = batch(), net(F64)
    optimizer = FOOF(wide)
    step(wide, optimizer, x.double(), y)
    narrow = net()
    again = FOOF(narrow)
    again.load_state_dict(optimizer.state_dict())
    step(narrow, again, x, y)
    assert all(p.isfinite().all() for p in narrow.parameters())


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", TAPPED, ids=lambda m: m.__name__)
def test_complex_layers_are_refused_at_construction(method):
    model = nn.Sequential(nn.Linear(3, 4, dtype=torch.complex64), nn.Linear(4, 2))
    with pytest.raises(TypeError, match=rf"^{method.__name__}: layer '0' has complex parameters"):
        method(model)


def test_complex_layers_may_be_left_to_the_fallback():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(3, 4, dtype=torch.complex64))
    assert len(SIBP(model, explicit=["1"]).param_groups) == 2


def test_the_papers_solver_refuses_convolutions():
    message = r"layer '0' is a convolution, and solver='paper' is for linear layers only; use solver='cg:5'"
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
    with pytest.raises(ValueError, match=message):
        SIBP(model, solver="paper")
    with pytest.raises(UserError, match=f"optimizer=sibp cannot be built: {message}"):
        make("sibp", model, solver="paper")
    SIBP(model, solver="paper", explicit=["0"])
    optimizer = SIBP(model)
    optimizer.param_groups[0]["solver"] = "paper"
    with pytest.raises(ValueError, match=message):
        model(torch.randn(2, 1, 6, 6)).square().sum().backward()


SETTINGS = {
    "adagrad": ("lr", "weight_decay"),
    "adam": ("lr", "weight_decay"),
    "adamw": ("lr", "weight_decay"),
    "lbfgs": ("lr",),
    "muon": ("lr", "momentum", "weight_decay"),
    "nesterov": ("lr", "momentum", "weight_decay"),
    "proxprop": ("lr", "momentum", "weight_decay"),
    "rmsprop": ("lr", "decay", "momentum", "weight_decay"),
    "sgd": ("lr", "momentum", "weight_decay"),
    "sibp_momentum": ("lr", "momentum", "weight_decay"),
    "soap": ("lr", "beta1", "beta2", "weight_decay"),
}


@pytest.mark.parametrize(("name", "key"), [(name, key) for name, keys in SETTINGS.items() for key in keys])
def test_torchs_optimizers_refuse_settings_out_of_range(name, key):
    values = [torch.nan, torch.inf, -0.1] + ([1.0] if key in ("momentum", "decay", "beta1", "beta2") else [])
    for value in values:
        finite = value not in (torch.nan, torch.inf)  # a config rejects non-finite values itself
        refusal = rf"cannot be built: Invalid {key}: {value}; it has to be >= 0 and" if finite else rf"optimizer.{key}="
        with pytest.raises(UserError, match=refusal):
            make(name, net(), **{key: value})
    make(name, net(), **{key: 0.0})


@pytest.mark.parametrize(
    ("name", "key"), [("lbfgs", "max_iter"), ("lbfgs", "history"), ("soap", "every"), ("soap", "largest")]
)
def test_counts_are_one_or_more(name, key):
    with pytest.raises(UserError, match=rf"cannot be built: Invalid {key}: 0; it has to be a whole number (of|from) 1"):
        make(name, net(), **{key: 0})


@pytest.mark.parametrize(
    ("name", "key", "most"),
    [
        ("lbfgs", "max_iter", 1000),
        ("lbfgs", "history", 1000),
        ("soap", "largest", 32768),
        ("locoprop_s", "inner_steps", 1000),
    ],
)
def test_iteration_and_history_counts_are_bounded(name, key, most):
    """Settings that would take 10^12 passes or a matrix of 10^6 x 10^6 are refused."""
    make(name, net(), **{key: most})
    refusal = rf"cannot be built: Invalid {key}: {most + 1}; it has to be a whole number from 1 to {most}\."
    with pytest.raises(UserError, match=refusal):
        make(name, net(), **{key: most + 1})


@pytest.mark.parametrize("name", ["lbfgs", "prodigy", "schedule_free", "soap"])
def test_float16_is_refused_where_epsilon_underflows(name):
    with pytest.raises(UserError, match=rf"optimizer={name} cannot be built: 0\.weight is float16, in which"):
        make(name, net(torch.float16))


@pytest.mark.parametrize(
    ("method", "option"),
    [(KFAC, "data_parallel"), (FOOF, "line_search"), (BCD, "fallback"), (DTP, "explicit"), (LocoProp, "losss_average")],
)
def test_an_unknown_option_of_a_peer_is_named(method, option):
    """A batch in parts would give each part its own covariance; where a target travels, no fallback may step."""
    message = rf"{method.__name__} has no option {option}; apart from its hyper-parameters it has .*loss_average"
    with pytest.raises(TypeError, match=message):
        method(nn.Sequential(nn.Linear(2, 2)), **{option: True})


@pytest.mark.parametrize("name", [*WITH_STATISTICS, "sibp_auto", "proxbp_adam", "proxbp_muon"])
def test_statistics_follow_a_model_converted_in_mid_training(name: str):
    model = net()
    optimizer = make(name, model)
    for dtype in (torch.float32, F64):
        model.to(dtype)
        x, y = batch(dtype)
        before = [p.detach().clone() for p in model.parameters()]
        for _ in range(3):
            step(model, optimizer, x, y)
        for p, old in zip(model.parameters(), before, strict=True):
            assert p.isfinite().all()
            assert not torch.equal(p, old)


@pytest.mark.parametrize("name", ["foof", "kfac", "kfac_adaptive", "sibp_foof"])
def test_statistics_begin_anew_where_other_parameters_of_a_layer_are_trained(name: str):
    """Without its bias, or its weight, a layer has other features; afterwards it has the first ones again."""
    model, (x, y) = net(), batch()
    optimizer = make(name, model)
    fixed = [model[0].bias, model[2].weight]
    for trained in (True, False, True):
        for p in fixed:
            p.requires_grad_(trained)
        before = [p.detach().clone() for p in model.parameters()]
        for _ in range(3):
            step(model, optimizer, x, y)
        for p, old in zip(model.parameters(), before, strict=True):
            assert p.isfinite().all()
            assert torch.equal(p, old) == (not p.requires_grad)
