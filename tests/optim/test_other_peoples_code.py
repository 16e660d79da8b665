"""What user code does around an optimizer: hooks, writes into outputs, odd fallbacks, discarded passes, odd losses."""

import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, OneCycleLR
from torch.utils.checkpoint import checkpoint

from sibp import SIBP, AutoSIBP, ProxBP
from sibp.capture import geometry
from sibp.optim.aprox import AProx
from sibp.optim.combined import CombinedOptimizer
from sibp.optim.proximal import ProximalOptimizer
from sibp.optim.search import SearchStatus
from sibp.optim.sls import LineSearchSGD

F64 = torch.float64
HUGE = 1e8  # a proximal weight for which displacement * lam / eta is the ordinary gradient


def mlp(dtype: torch.dtype = F64) -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def data(rows: int = 20, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 6, generator=generator, dtype=dtype), torch.randint(3, (rows,), generator=generator)


def gradients(run: Callable[[nn.Module], Tensor], layer: nn.Module, solver: str | None) -> list[Tensor]:
    """Of the loss, by autograd alone (no solver) or as displacements times lam, for a huge lam."""
    layer = copy.deepcopy(layer)
    optimizer = None if solver is None else SIBP(layer, 1.0, HUGE, solver, loss_average=False)
    run(layer).backward()
    if optimizer is not None:
        assert optimizer.layers.taps[""].installed
    return [p.grad * (1.0 if solver is None else HUGE) for p in layer.parameters() if p.grad is not None]


def written_into(layer: nn.Module) -> Tensor:
    z = layer(data()[0])
    z[:, 0] = 0.5
    return torch.tanh(z).square().sum()


def written_elsewhere(layer: nn.Module) -> Tensor:
    z = layer(data()[0])
    both = z.new_zeros(20, 8)
    both[:, :4] = z
    both[:, 4:] = torch.tanh(z)
    return both.square().sum()


def hooked(layer: nn.Module) -> Tensor:
    z = layer(data()[0])
    z.register_hook(lambda gradient: 0.1 * gradient)
    return torch.tanh(z).square().sum()


def hooked_in_place(layer: nn.Module) -> Tensor:
    z = layer(data()[0])
    z.register_hook(lambda gradient: gradient.clamp_(-0.01, 0.01))
    return torch.tanh(z).square().sum()


@pytest.mark.parametrize("solver", ["cg:5", "exact"])
@pytest.mark.parametrize("run", [written_into, written_elsewhere, hooked, hooked_in_place])
def test_short_steps_are_along_the_gradient_whatever_user_code_does_to_an_output(run, solver):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, dtype=F64)
    torch.testing.assert_close(gradients(run, layer, solver), gradients(run, layer, None), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("look", ["hook", "dead units"])
def test_looking_at_an_output_changes_nothing(look):
    """A hook that only reads, and an activation without gradients, leave the subproblem with its activation."""
    x, found = data()[0], []
    for looks in (False, True):
        torch.manual_seed(0)
        model: Any = nn.Sequential(nn.Linear(6, 4), nn.Tanh()).double()
        optimizer = SIBP(model, 1.0, 1.0, "cg:5", loss_average=False)
        z = model[0](x)
        if looks and look == "hook":
            z.register_hook(lambda gradient: None)
        elif looks:
            with torch.no_grad():
                torch.relu(z)
        model[1](z).square().sum().backward()
        found.append([p.grad for p in model.parameters()])
        assert "exact (linearised)" not in optimizer.summary()
    torch.testing.assert_close(found[0], found[1], rtol=0, atol=0)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU])
def test_a_vectorised_jacobian_of_an_input_is_the_ordinary_one(activation):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), activation(), nn.Linear(8, 3)).double()
    point = data()[0][0]
    wanted = torch.autograd.functional.jacobian(model, point, vectorize=True)
    optimizer = SIBP(model, solver="cg:3")
    torch.testing.assert_close(torch.autograd.functional.jacobian(model, point, vectorize=True), wanted)
    assert optimizer.layers.taps["0"].installed


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_layer_in_two_checkpoints_of_one_loss_is_refused(reentrant: bool):
    """Each reentrant checkpoint runs a backward pass of its own, inside that of the loss."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    optimizer = SIBP(model)
    h = torch.randn(3, 4, requires_grad=True)
    for _ in range(2):
        h = checkpoint(model, h, use_reentrant=reentrant)
    with pytest.raises(RuntimeError, match="layer '0' runs more than once in this loss"):
        h.square().sum().backward()
    assert optimizer.layers.taps["0"].installed


@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_in_two_losses_gives_the_sum_of_their_steps(reentrant: bool):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh())
    optimizer = SIBP(model)
    single = []
    inputs = [torch.randn(3, 4, requires_grad=True) for _ in range(2)]
    for x in inputs:
        optimizer.zero_grad()
        model(x).square().sum().backward()
        single.append([p.grad.clone() for p in model.parameters()])
    optimizer.zero_grad()
    for loss in [checkpoint(model, x, use_reentrant=reentrant).square().sum() for x in inputs]:
        loss.backward()
    for p, parts in zip(model.parameters(), zip(*single, strict=True), strict=True):
        torch.testing.assert_close(p.grad, sum(parts))


def test_an_activation_in_a_reentrant_checkpoint_is_shown_as_linearised():
    model, (x, y) = mlp(), data()
    optimizer = SIBP(model, solver="cg:3")
    F.cross_entropy(model[2](checkpoint(model[1], model[0](x), use_reentrant=True)), y).backward()
    assert "exact (linearised)" in optimizer.summary().splitlines()[3]


def test_a_device_without_autocast_has_backward_passes():
    model = mlp().to("meta")
    optimizer = SIBP(model, solver="exact")
    model(torch.zeros(5, 6, device="meta", dtype=F64)).sum().backward()
    assert optimizer.layers.taps["0"].installed
    assert model[0].weight.grad.device.type == "meta"


class OwnConvolution(nn.Module):
    """Not torch's, but with all its settings."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(2, 1, 3, 3)), nn.Parameter(torch.zeros(2))
        self.kernel_size, self.stride, self.padding, self.dilation = (3, 3), (1, 1), (0, 0), (1, 1)
        self.groups, self.padding_mode = 1, "zeros"

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight, self.bias)


def test_a_module_with_a_convolutions_settings_can_be_registered(monkeypatch):
    monkeypatch.setitem(geometry._geometries, OwnConvolution, geometry.ConvGeometry)
    optimizer = SIBP(nn.Sequential(OwnConvolution(), nn.ReLU(), nn.Flatten(), nn.Linear(18, 2)))
    assert list(optimizer.layers.taps) == ["0", "3"]


METHODS = [SIBP, ProxBP, AutoSIBP, lambda model: SIBP(model, solver="exact", backward_weights="new")]


@pytest.mark.parametrize("kind", ["autocast", "bfloat16", "float16"])
@pytest.mark.parametrize("conv", [nn.Conv1d, nn.Conv2d])
@pytest.mark.parametrize("make", METHODS)
def test_two_convolutions_train_in_half_precision(make, conv, kind):
    """The second asks for the gradient of its input, by convolution, beside float32 subproblems."""
    torch.manual_seed(0)
    size = (8,) * (2 if conv is nn.Conv2d else 1)
    model = nn.Sequential(conv(1, 4, 3), nn.ReLU(), conv(4, 4, 3), nn.Flatten(), nn.LazyLinear(3))
    x, y = torch.randn(5, 1, *size), torch.arange(5) % 3
    model(x)
    dtype = {"autocast": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[kind]
    optimizer = make(model.to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=kind == "autocast"):
        z = model(x.to(dtype))
    F.cross_entropy(z.float(), y).backward()
    assert all(optimizer.layers.taps[name].installed for name in "024")
    assert all(p.grad is not None and p.grad.isfinite().all() and p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("make", METHODS)
def test_an_input_has_its_ordinary_gradient_under_autocast(make):
    model, (x, y) = mlp(torch.float32), data(dtype=torch.float32)
    plain, optimizer, found = copy.deepcopy(model), make(model), []
    for each in (model, plain):
        point = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(each(point), y)
        found += torch.autograd.grad(loss, point)
    assert optimizer.layers.taps["0"].installed
    torch.testing.assert_close(found[0], found[1], rtol=0.02, atol=1e-4)


def test_subproblems_are_solved_in_single_precision_inside_autocast_too():
    found, (x, y) = [], data(dtype=torch.float32)
    for inside in (False, True):
        model = mlp(torch.float32)
        optimizer = SIBP(model, 1.0, 1.0, "exact")
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = F.cross_entropy(model(x), y)
            if inside:
                loss.backward()
        if not inside:
            loss.backward()
        found.append([p.grad for p in model.parameters()])
        optimizer.step()
    torch.testing.assert_close(found[0], found[1], rtol=1e-6, atol=1e-7)


class DoublesItsWeight(nn.Conv2d):
    """Twice as strong a convolution."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(input, 2 * weight, bias)


def test_a_convolution_with_its_own_way_to_convolve_is_left_to_the_fallback():
    torch.manual_seed(0)
    model = nn.Sequential(DoublesItsWeight(1, 2, 3), nn.Flatten(), nn.Linear(18, 2))
    x = torch.randn(2, 1, 5, 5)
    before = model(x)
    optimizer = SIBP(model)
    assert torch.equal(model(x), before)
    assert [group["update"] for group in optimizer.param_groups] == ["proximal", "explicit"]


def test_a_convolution_whose_way_to_convolve_is_replaced_is_left_to_the_fallback():
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(18, 2))
    plain = model[0]._conv_forward
    model[0]._conv_forward = lambda x, W, b: 2 * plain(x, W, b)
    optimizer = SIBP(model)
    assert [group["update"] for group in optimizer.param_groups] == ["proximal", "explicit"]


def test_a_convolution_whose_way_to_convolve_is_replaced_later_is_refused():
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 3))
    optimizer = SIBP(model)
    plain = model[0]._conv_forward
    model[0]._conv_forward = lambda x, W, b: 2 * plain(x, W, b)
    model(torch.randn(2, 1, 5, 5)).square().mean().backward()
    with pytest.raises(RuntimeError, match="layer '0': its _conv_forward was replaced"):
        optimizer.step()


def test_settings_of_a_convolution_may_change():
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Conv2d(1, 2, 3)).double()
    plain = copy.deepcopy(model)
    optimizer = SIBP(model, 1.0, HUGE, "exact", loss_average=False)
    x = torch.randn(3, 1, 7, 7, dtype=F64)
    earlier = [each(x).square().sum() for each in (model, plain)]
    for each in (model, plain):
        each[0].stride = (2, 2)
    for losses in (earlier, [each(x).square().sum() for each in (model, plain)]):
        optimizer.zero_grad()
        plain.zero_grad()
        for loss in losses:
            loss.backward()
        found, wanted = ([p.grad for p in each.parameters()] for each in (model, plain))
        torch.testing.assert_close([HUGE * g for g in found], wanted, rtol=1e-5, atol=1e-4)


# -- the fallback -----------------------------------------------------------------------------------------------------


def test_a_fallback_made_of_several_optimizers_follows_the_schedule():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(7, 4), nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3))
    optimizer = SIBP(
        model, fallback=lambda p: CombinedOptimizer([torch.optim.SGD(p[:1], lr=0.1), torch.optim.Adam(p[1:], lr=0.01)])
    )
    LambdaLR(optimizer, lambda epoch: 0.0)
    before = copy.deepcopy(model.state_dict())
    F.cross_entropy(model(torch.tensor([1, 2, 3])), torch.tensor([0, 1, 2])).backward()
    optimizer.step()
    for key in ("0.weight", "2.weight", "2.bias"):
        assert torch.equal(model.state_dict()[key], before[key])


def with_norm() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))


def decayed(params: Any) -> torch.optim.Optimizer:
    params = list(params)
    groups = [
        {"params": [p for p in params if p.ndim > 1]},
        {"params": [p for p in params if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1)


def test_a_fallback_may_group_its_parameters():
    """AdamW with and without weight decay, as most training code makes it: steps as by AdamW itself."""
    words, y = torch.arange(12) % 10, torch.arange(12) % 3
    model = with_norm()
    optimizer = SIBP(model, fallback=decayed)
    assert [group.get("weight_decay") for group in optimizer.param_groups] == [0.0, 0.1, 0.0]
    explicit = [p for name, p in model.named_parameters() if name[0] in "02"]
    twins = [nn.Parameter(p.detach().clone()) for p in explicit]
    alone = decayed(twins)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(words), y).backward()
        for p, twin in zip(explicit, twins, strict=True):
            twin.grad = None if p.grad is None else p.grad.clone()
        optimizer.step()
        alone.step()
    torch.testing.assert_close(explicit, twins)
    again = SIBP(with_norm(), fallback=decayed)
    again.load_state_dict(optimizer.state_dict())
    assert [g["lr"] for g in again.param_groups] == [g["lr"] for g in optimizer.param_groups]


def test_empty_groups_and_frozen_parameters_of_a_fallback_may_be_missing():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3))
    model[1].bias.requires_grad_(False)
    optimizer = SIBP(model, fallback=lambda params: decayed([p for p in params if p.requires_grad]))
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 1]


@pytest.mark.parametrize(
    ("fallback", "error", "message"),
    [
        (lambda params: torch.optim.SGD(params[:1], lr=1.0), ValueError, "exactly the given ones"),
        (
            lambda params: torch.optim.SGD([*params, nn.Parameter(torch.ones(1))], lr=1.0),
            ValueError,
            "exactly the given ones",
        ),
        (lambda params: None, TypeError, "NoneType; it has to return a torch optimizer"),
        (torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1.0), TypeError, "SGD, but has to make an optimizer"),
    ],
)
def test_a_fallback_that_cannot_step_its_parameters_is_refused(fallback, error, message):
    with pytest.raises(error, match=message):
        SIBP(with_norm(), fallback=fallback)


def test_a_learning_rate_in_a_tensor_leads_the_fallback_like_a_number():
    found = []
    rates_given: list[Any] = [1.0, torch.tensor(1.0)]
    for lr in rates_given:
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 3))
        optimizer = SIBP(model, lr=lr)
        schedule = OneCycleLR(optimizer, max_lr=1.0, total_steps=10, cycle_momentum=False)
        rates = []
        for _ in range(9):
            optimizer.step()
            schedule.step()
            rates.append(float(optimizer.param_groups[1]["lr"]))
        found.append(rates)
    assert found[0] == pytest.approx(found[1], rel=1e-5)
    assert max(found[0]) == pytest.approx(1e-3)


# -- line searches ----------------------------------------------------------------------------------------------------


def search(model: nn.Module, optimizer: ProximalOptimizer, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The loss before and after a step."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step(evaluate=lambda: F.cross_entropy(model(x), y), loss=loss)
    with torch.no_grad():
        return loss.item(), F.cross_entropy(model(x), y).item()


@pytest.mark.parametrize("later", [False, True])
def test_a_first_group_that_stands_still_does_not_end_the_search(later):
    model, (x, y) = mlp(), data()
    groups = [{"params": list(model[0].parameters()), "lr": 10.0 if later else 0.0}]
    groups += [{"params": list(model[2].parameters()), "lr": 10.0}]
    optimizer = AutoSIBP(model, params=groups)
    for number in range(8):
        if later and number == 2:
            optimizer.param_groups[0]["lr"] = 0.0
        before, after = search(model, optimizer, x, y)
        assert after <= before + 1e-12
        assert optimizer.search_stats()["trials"] > 0


def test_a_group_that_rests_for_a_while_keeps_the_length_of_steps():
    """As in gradual unfreezing: the reach stays in units of the first group's initial rate."""
    model, (x, y), steps = mlp(), data(), []
    groups = [{"params": list(model[0].parameters()), "lr": 10.0}, {"params": list(model[2].parameters()), "lr": 0.01}]
    optimizer = AutoSIBP(model, params=groups)
    schedule = LambdaLR(optimizer, [lambda epoch: float(epoch < 3 or epoch >= 6), lambda epoch: 1.0])
    for _ in range(7):
        search(model, optimizer, x, y)
        steps.append(optimizer.search_stats())
        schedule.step()
    assert steps[6]["reach"] > 0.1 * steps[2]["reach"]
    assert steps[6]["step"] > 0.1 * steps[2]["step"]


def test_a_fallback_alone_is_searched_too():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).double()
    optimizer = AutoSIBP(model, lr=0.0, fallback=lambda params: torch.optim.SGD(params, lr=100.0))
    before, after = search(model, optimizer, *data())
    assert after < before
    assert optimizer.search_stats()["step"] < 1


def test_a_schedule_shortens_weight_decay_as_it_shortens_the_step():
    moved = []
    for factor in (1.0, 0.2):
        model, (x, y) = mlp(), data()
        model[0].weight.data[0] = 0  # a dead neuron: of its outgoing weights, all moves are decay
        model[0].bias.data[0] = -1
        optimizer = AutoSIBP(model, weight_decay=0.01)
        optimizer.param_groups[0]["lr"] *= factor
        old = model[2].weight.detach().clone()
        search(model, optimizer, x, y)
        step = optimizer.search_stats()["step"]
        moved.append((1 - model[2].weight[0, 0].item() / old[0, 0].item()) / step)
    assert moved[1] == pytest.approx(moved[0], rel=1e-6)


@pytest.mark.parametrize("make", [AutoSIBP, lambda model: SIBP(model, line_search=True)])
def test_a_finite_loss_with_nan_gradients_is_reported(make):
    model, (x, y) = mlp(), data()
    optimizer = make(model)

    def loss_now() -> Tensor:
        z = model(x)
        return F.cross_entropy(z, y) + torch.where(z > -1e9, 0.0, torch.sqrt(z - 1e9)).sum()

    loss = loss_now()
    loss.backward()
    with pytest.warns(RuntimeWarning, match="has no finite solution"):
        optimizer.step(evaluate=loss_now, loss=loss)


@pytest.mark.parametrize("make", [AutoSIBP, lambda model: SIBP(model, line_search=True)])
@pytest.mark.parametrize("wrong", ["nan", "another loss"])
def test_endless_refusals_are_reported_once_and_never_raise(make, wrong):
    model, (x, y) = mlp(), data()
    optimizer, old = make(model), [p.detach().clone() for p in model.parameters()]
    start = F.cross_entropy(model(x), y).item()

    def refused() -> None:
        for _ in range(600):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step(evaluate=lambda: math.nan if wrong == "nan" else start + 1, loss=loss)
            assert optimizer.search_stats()["status"] == SearchStatus.REFUSED

    with pytest.warns(RuntimeWarning, match="the line search refused 10 steps in a row") as said:
        refused()
    assert len(said) == 1
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), old, strict=True))
    losses = [search(model, optimizer, x, y) for _ in range(40)]
    assert all(after <= before for before, after in losses)
    assert losses[-1][1] < 0.99 * start


@pytest.mark.parametrize("make", [AutoSIBP, lambda model: SIBP(model, line_search=True)])
@pytest.mark.parametrize("discarded", ["nan", "backward"])
def test_gradients_zeroed_in_place_after_a_discarded_pass(make, discarded):
    model, (x, y) = mlp(), data()
    optimizer, factor = make(model), [math.nan if discarded == "nan" else 1.0]

    def closure() -> Tensor:
        optimizer.zero_grad(set_to_none=False)
        loss = F.cross_entropy(model(x), y) * factor[0]
        loss.backward()
        return loss

    if discarded == "nan":
        with pytest.warns(RuntimeWarning, match="no step was taken"):
            optimizer.step(closure)
    else:
        closure()
    factor[0] = 1.0
    before = optimizer.step(closure)
    with torch.no_grad():
        assert F.cross_entropy(model(x), y) < before


class Expanded(nn.Module):
    """With a buffer whose rows share their memory."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3, dtype=F64)
        self.mask: Tensor
        self.register_buffer("mask", torch.ones(1, 3, dtype=F64).expand(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.mask[0]


def test_trials_keep_expanded_buffers():
    model: Any = Expanded()
    before, after = search(model, AutoSIBP(model), *data())
    assert after < before
    assert model.mask.stride(0) == 0


def test_an_evaluation_that_raises_keeps_weights_and_buffers_and_the_step_can_be_repeated():
    torch.manual_seed(0)
    model: Any = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()
    x, y = data()
    optimizer = AutoSIBP(model)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    held = copy.deepcopy(model.state_dict())

    def interrupted() -> Tensor:
        F.cross_entropy(model(x), y)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(evaluate=interrupted, loss=loss)
    assert all(torch.equal(value, held[key]) for key, value in model.state_dict().items())
    optimizer.step(evaluate=lambda: F.cross_entropy(model(x), y), loss=loss)
    assert not torch.equal(model[0].weight, held["0.weight"])


@pytest.mark.parametrize("make", [AutoSIBP, lambda model: SIBP(model, line_search=True)])
def test_a_step_is_refused_as_often_as_it_is_repeated(make):
    model, (x, y) = mlp(), data()
    optimizer = make(model)
    F.cross_entropy(model(x), y).backward()
    optimizer.step(evaluate=lambda: F.cross_entropy(model(x), y))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="would apply the same update twice"):
            optimizer.step(evaluate=lambda: F.cross_entropy(model(x), y))


@pytest.mark.parametrize("make", [AutoSIBP, lambda model: SIBP(model, line_search=True)])
def test_failed_solves_of_a_discarded_pass_are_not_reported(make):
    """Warnings are errors here."""
    model, (x, y) = mlp(), data()
    optimizer = make(model)
    F.cross_entropy(model(x * math.nan), y).backward()
    search(model, optimizer, x, y)


def test_discarded_passes_do_not_count_as_samples_of_the_step():
    model, (x, y) = mlp(), data(2)
    optimizer = AutoSIBP(model)
    for _ in range(7):
        F.cross_entropy(model(x), y).backward()
        optimizer.zero_grad()
    search(model, optimizer, x, y)
    assert optimizer.search_stats()["trust"] <= 2 / 16


def test_trials_by_a_closure_keep_the_gradients_of_all_parameters():
    """Those of an encoder that another optimizer steps are of the first call, at the weights before the step."""
    torch.manual_seed(0)
    encoder, head = nn.Linear(6, 8, dtype=F64), nn.Linear(8, 3, dtype=F64)
    model, (x, y), seen = nn.Sequential(encoder, nn.ReLU(), head), data(), []
    optimizer = AutoSIBP(model, params=head.parameters())

    def closure() -> Tensor:
        optimizer.zero_grad()
        encoder.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        seen.extend(None if p.grad is None else p.grad.clone() for p in encoder.parameters())
        return loss

    optimizer.step(closure)
    assert len(seen) > 2
    torch.testing.assert_close([p.grad for p in encoder.parameters()], seen[:2], rtol=0, atol=0)


CHANGES: dict[str, Callable[[nn.Module, Tensor], object]] = {
    "clears": lambda model, loss: model.zero_grad(),
    "zeroes in place": lambda model, loss: model.zero_grad(set_to_none=False),
    "clips": lambda model, loss: nn.utils.clip_grad_norm_(model.parameters(), 1e-6),
    "adds to": lambda model, loss: loss.backward(),
}


@pytest.mark.parametrize("make", [AutoSIBP, lambda model: SIBP(model, line_search=True)])
@pytest.mark.parametrize("change", CHANGES)
def test_an_evaluation_that_changes_the_gradients_is_refused(make, change: str):
    model, (x, y) = mlp(), data()
    optimizer, old = make(model), [p.detach().clone() for p in model.parameters()]
    F.cross_entropy(model(x), y).backward()

    def evaluate() -> Tensor:
        with torch.enable_grad():
            loss = F.cross_entropy(model(x), y)
        CHANGES[change](model, loss)
        return loss

    with pytest.raises(RuntimeError, match=r"evaluate has changed the gradients.*without zero_grad\(\), backward\(\)"):
        optimizer.step(evaluate=evaluate)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), old, strict=True))


def test_trials_restore_the_mode_of_every_module():
    """An evaluation in eval mode would otherwise switch dropout off for the rest of the training."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8), nn.BatchNorm1d(8).eval(), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)
    ).double()
    x, y = data()
    optimizer, modes = AutoSIBP(model), [module.training for module in model.modules()]

    def evaluate(fails: bool = False) -> Tensor:
        model.train() if fails else model.eval()
        if fails:
            raise ValueError("not now")
        return F.cross_entropy(model(x), y)

    F.cross_entropy(model(x), y).backward()
    with pytest.raises(ValueError, match="not now"):
        optimizer.step(evaluate=lambda: evaluate(fails=True))
    assert [module.training for module in model.modules()] == modes
    optimizer.step(evaluate=evaluate)
    assert [module.training for module in model.modules()] == modes


def test_an_evaluation_given_as_a_closure_is_refused_with_its_keyword():
    model, (x, y) = mlp(), data()
    optimizer = AutoSIBP(model)
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match=r"only computes the loss as step\(evaluate=\.\.\.\)"):
        optimizer.step(lambda: F.cross_entropy(model(x), y))


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.array, int, lambda x: torch.tensor([x])])
def test_a_loss_may_be_any_single_number(kind):
    model, (x, y) = mlp(), data()
    optimizer = AutoSIBP(model)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step(evaluate=lambda: kind(0), loss=loss)
    assert optimizer.search_stats()["decrease"] == pytest.approx(loss.item())


@pytest.mark.parametrize("wrong", [np.ones(2), torch.ones(2), torch.tensor(1j), "1", None])
def test_a_loss_that_is_not_one_number_is_refused(wrong):
    model, (x, y) = mlp(), data()
    optimizer = AutoSIBP(model)
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(TypeError, match="needs a loss that is one number"):
        optimizer.step(evaluate=lambda: wrong)


# -- gradients assigned by hand, extremes, copies ----------------------------------------------------------------------


def test_memory_that_held_a_displacement_may_hold_a_gradient_next():
    model, (x, y) = mlp(), data()
    optimizer = SIBP(model)
    F.cross_entropy(model(x), y).backward()
    held = [p.grad for p in model.parameters()]
    optimizer.zero_grad()
    for p, memory in zip(model.parameters(), held, strict=True):
        assert memory is not None
        p.grad = memory.fill_(1.0)  # at the address of the displacement
    with pytest.raises(RuntimeError, match="assigned by hand"):
        optimizer.step()


@pytest.mark.filterwarnings("ignore:layer:RuntimeWarning")
@pytest.mark.parametrize("solver", ["cg:3", "exact"])
def test_a_step_beyond_the_precision_keeps_the_weights(solver):
    model, (x, y) = mlp(torch.float32), data(dtype=torch.float32)
    optimizer = SIBP(model, lr=1e38, solver=solver)
    F.cross_entropy(model(x), y).backward()
    optimizer.step()
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("solver", ["gradient", "exact", "cg:3"])
def test_a_relative_proximal_weight_beyond_the_precision_keeps_the_weights_and_is_reported(solver):
    layer = nn.Linear(4, 3)
    optimizer = ProxBP(layer, solver=solver, prox_weight_scaling="relative", loss_average=False)
    with pytest.warns(RuntimeWarning, match="no finite solution in this precision"):
        layer(torch.full((2, 4), 1e20)).backward(torch.ones(2, 3))
    assert not any(p.grad is None or p.grad.any() for p in layer.parameters())
    assert optimizer.solver_stats()[""]["status"] == 4


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("scale", [1e150, 1e153, 1e154, 1e160, 1e300])
def test_error_signals_whose_squares_overflow_do_not_raise(scale):
    model, (x, y) = mlp(), data()
    optimizer = AutoSIBP(model)
    for _ in range(4):
        optimizer.zero_grad()
        loss = scale * F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step(evaluate=lambda: scale * F.cross_entropy(model(x), y), loss=loss)
    assert all(p.isfinite().all() for p in model.parameters())


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_inputs_trains_its_bias():
    model = nn.Sequential(nn.Linear(0, 3)).double()
    y = torch.arange(5) % 3
    before, after = search(model, AutoSIBP(model), torch.zeros(5, 0, dtype=F64), y)
    assert after <= before


@pytest.mark.parametrize("make", [lambda model: AProx(model.parameters()), LineSearchSGD], ids=["aprox", "sls"])
def test_copies_of_baselines_step(make):
    model, (x, y) = mlp(), data()
    model, optimizer = copy.deepcopy((model, make(model)))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    before = optimizer.step(closure)
    with torch.no_grad():
        assert F.cross_entropy(model(x), y) < before


def test_the_line_search_steps_parameters_that_were_added():
    model, (x, y) = mlp(), data()
    added = nn.Parameter(torch.zeros(3, dtype=F64))
    optimizer = LineSearchSGD(model)
    optimizer.add_param_group({"params": [added]})

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x) + added, y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert added.any()


@pytest.mark.parametrize("make", [lambda: AProx(mlp().parameters(), lr=-1.0), lambda: LineSearchSGD(mlp(), length=0.0)])
def test_settings_with_which_nothing_moves_are_refused(make):
    with pytest.raises(ValueError, match=r"lr|length"):
        make()


@pytest.mark.parametrize("copied", [False, True])
def test_a_combined_optimizer_follows_a_converted_model(copied: bool):
    """As if its state had been loaded for the converted model."""
    steps = []
    for loaded in (False, True):
        torch.manual_seed(0)
        p, q = (nn.Parameter(torch.randn(3, 3)) for _ in range(2))
        both = CombinedOptimizer([torch.optim.Adam([p]), torch.optim.SGD([q], lr=0.1, momentum=0.9)])
        for p_ in (p, q):
            p_.grad = torch.randn(3, 3)
        both.step()
        if copied:
            p, q, both = copy.deepcopy((p, q, both))
        for p_ in (p, q):
            p_.data, p_.grad = p_.data.double(), None
            p_.grad = torch.ones(3, 3, dtype=F64)
        if loaded:
            both.load_state_dict(both.state_dict())
        both.step()
        assert both.state[p]["exp_avg"].dtype is both.state[q]["momentum_buffer"].dtype is F64
        steps.append([p.detach(), q.detach()])
    torch.testing.assert_close(steps[0], steps[1], rtol=0, atol=0)


def test_combined_optimizers_keep_their_state():
    p, q = (nn.Parameter(torch.ones(2)) for _ in range(2))
    first, second = torch.optim.Adam([p]), torch.optim.SGD([q], lr=0.1)
    p.grad = torch.ones(2)
    first.step()
    both = CombinedOptimizer([first, second])
    assert float(both.state[p]["step"]) == 1
