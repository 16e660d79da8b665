"""A direction inside an outer optimizer, derived from the rules of both."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

import sibp
from sibp import SIBP, AutoSIBP, Preconditioned, ProxBP
from sibp.experiment.optimizers import build_optimizer
from sibp.optim import muon
from sibp.optim.bcd import BCD
from sibp.optim.dtp import DTP
from sibp.optim.foof import FOOF
from sibp.optim.kfac import KFAC
from sibp.optim.locoprop import LocoProp
from sibp.optim.sibp_foof import RunningSIBP
from sibp.runs.errors import UserError

F64 = torch.float64
DIRECTIONS = [SIBP, ProxBP, KFAC, FOOF, RunningSIBP, LocoProp]
UNIT = partial(torch.optim.SGD, lr=1.0)
ADAM = partial(torch.optim.Adam, lr=0.02)
OUTERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "nesterov": partial(torch.optim.SGD, lr=0.3, momentum=0.9, nesterov=True, weight_decay=0.1),
    "adam": ADAM,
    "adamw": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
}


def net() -> nn.Sequential:
    """Two layers with a proximal subproblem, and a norm without."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.LayerNorm(6), nn.Linear(6, 3)).double()


def linear_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()


def loss_of(model: nn.Module, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, 5, generator=generator, dtype=F64)
    return F.cross_entropy(model(x), torch.randint(3, (6,), generator=generator))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, seeds: range) -> None:
    for seed in seeds:
        optimizer.zero_grad()
        torch.manual_seed(seed)  # K-FAC draws labels
        loss_of(model, seed).backward()
        optimizer.step()


def assert_equal(model: nn.Module, other: nn.Module) -> None:
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(p, q)


def displacements(model: nn.Module, make: Callable[..., Any], seed: int) -> list[Tensor]:
    """`.grad` after a backward pass of the direction alone, at the model's weights, in a copy."""
    twin = copy.deepcopy(model)
    direction = make(twin)
    loss_of(twin, seed).backward()
    assert direction is not None
    return [p.grad.clone() for p in twin.parameters() if p.grad is not None]


def step_by_hand(model: nn.Module, optimizer: torch.optim.Optimizer, make: Callable[..., Any], seed: int) -> None:
    """A step of an untapped model, whose `.grad` is set to the direction computed at its weights."""
    for p, g in zip(model.parameters(), displacements(model, make, seed), strict=True):
        p.grad = g
    optimizer.step()


@pytest.mark.parametrize("method", [*DIRECTIONS, BCD, DTP], ids=lambda method: method.__name__)
def test_unit_sgd_takes_the_directions_own_steps(method):
    """W - 1 (W - W_new) is W_new, to the bit: the direction's own step subtracts the same tensor."""
    own, fed = linear_net(), linear_net()
    train(own, method(own), range(4))
    train(fed, Preconditioned(method(fed), UNIT), range(4))
    assert_equal(own, fed)


@pytest.mark.parametrize("outer", [*OUTERS, "muon"])
@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_the_outer_optimizer_steps_on_displacements(method, outer):
    make = partial(method, lr=0.3, prox_weight=2.0)
    fed, hand = (linear_net(), linear_net()) if outer == "muon" else (net(), net())  # Muon takes only matrices

    def outer_of(model: nn.Module) -> torch.optim.Optimizer:
        if outer == "muon":
            return muon.build(model, lr=0.02, momentum=0.9, weight_decay=0.01)
        return OUTERS[outer](model.parameters())

    optimizer, by_hand = Preconditioned(make(fed), lambda _: outer_of(fed)), outer_of(hand)
    for seed in range(5):
        train(fed, optimizer, range(seed, seed + 1))
        step_by_hand(hand, by_hand, make, seed)
    assert_equal(fed, hand)


def test_adams_first_step_is_the_sign_of_the_displacement():
    """Then m / sqrt(v) = g / |g|, so every weight moves by lr towards W_new (eps is a relative 1e-8)."""
    model = linear_net()
    before = [p.detach().clone() for p in model.parameters()]
    wanted = displacements(model, SIBP, 0)
    train(model, Preconditioned(SIBP(model), partial(torch.optim.Adam, lr=0.02, eps=0.0)), range(1))
    for p, q, g in zip(model.parameters(), before, wanted, strict=True):
        moving = g != 0
        torch.testing.assert_close((p - q)[moving], -0.02 * g.sign()[moving], rtol=1e-9, atol=0)


def test_norms_are_stepped_once_on_their_ordinary_gradient():
    """The direction's fallback, whose Adam has a learning rate of its own, leaves them alone."""
    model = net()
    norm, before = model[2], model[2].weight.detach().clone()
    optimizer = Preconditioned(ProxBP(model), partial(torch.optim.SGD, lr=0.25))
    loss_of(model, 0).backward()
    plain = copy.deepcopy(model)  # copies are not tapped
    plain.zero_grad()
    loss_of(plain, 0).backward()
    torch.testing.assert_close(norm.weight.grad, plain[2].weight.grad, rtol=1e-12, atol=0)
    assert not torch.allclose(model[3].weight.grad, plain[3].weight.grad)
    optimizer.step()
    torch.testing.assert_close(norm.weight, before - 0.25 * plain[2].weight.grad, rtol=1e-12, atol=0)
    row = next(line for line in optimizer.summary().splitlines() if line.startswith("2 "))
    assert row.endswith("explicit")
    assert optimizer.summary().startswith("SGD on the direction of ProxBP:")


@pytest.mark.parametrize("direction_only", [False, True])
def test_the_outer_optimizer_steps_the_directions_parameters(direction_only):
    model, given = net(), []
    direction = SIBP(model, direction_only=direction_only)
    optimizer = Preconditioned(direction, lambda params: given.extend(params) or ADAM(params))
    assert [id(p) for p in given] == [id(p) for p in model.parameters()]
    assert [p for group in optimizer.param_groups for p in group["params"]] == given
    model = net()
    half = Preconditioned(SIBP(model, params=model[3].parameters()), ADAM)
    before = copy.deepcopy(model)
    train(model, half, range(1))
    assert torch.equal(model[0].weight, before[0].weight)
    assert torch.equal(model[2].weight, before[2].weight)
    assert not torch.equal(model[3].weight, before[3].weight)


def test_the_directions_groups_keep_their_settings():
    """The norm's group between them is left out, as the outer optimizer steps it."""
    own, fed = net(), net()

    def groups(model: nn.Sequential) -> list[dict[str, Any]]:
        last = {"params": list(model[3].parameters()), "prox_weight": 9.0}
        return [{"params": [*model[0].parameters(), *model[2].parameters()]}, last]

    alone = ProxBP(own, params=groups(own))
    optimizer = Preconditioned(ProxBP(fed, params=groups(fed)), UNIT)
    assert [group["update"] for group in alone.param_groups] == ["proximal", "explicit", "proximal"]
    assert [group["prox_weight"] for group in optimizer.direction.param_groups] == [1.0, 9.0]
    for model in (own, fed):
        loss_of(model, 0).backward()
    for p, q in zip(own.parameters(), fed.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    optimizer.step()


def test_the_outer_optimizer_may_have_its_own_groups_and_more_parameters():
    model, alone = linear_net(), nn.Parameter(torch.ones(2, dtype=F64))

    def outer(params: list[nn.Parameter]) -> torch.optim.Optimizer:
        matrices, rest = [p for p in params if p.dim() == 2], [p for p in params if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": 0.1}, {"params": [*rest, alone], "weight_decay": 0.0}]
        return torch.optim.AdamW(groups, lr=0.01)

    optimizer = Preconditioned(SIBP(model), outer)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    alone.square().sum().backward()
    loss_of(model, 0).backward()
    optimizer.step()
    torch.testing.assert_close(alone, torch.full_like(alone, 0.99), rtol=1e-6, atol=0)  # Adam's first step


def test_parameter_names_are_in_the_outer_optimizers_state():
    model = net()
    optimizer = Preconditioned(SIBP(model, params=model.named_parameters()), ADAM)
    names = [name for name, _ in model.named_parameters()]
    assert [name for group in optimizer.state_dict()["param_groups"] for name in group["param_names"]] == names


# -- the contract of torch.optim --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outer", OUTERS)
@pytest.mark.parametrize("method", DIRECTIONS, ids=lambda method: method.__name__)
def test_resumes_bitwise_from_a_file(method, outer, tmp_path):
    model, again = net(), net()
    optimizer = Preconditioned(method(model), OUTERS[outer])
    train(model, optimizer, range(3))
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "c.pt")
    train(model, optimizer, range(3, 6))
    other = Preconditioned(method(again, lr=0.77), OUTERS[outer])
    saved = torch.load(tmp_path / "c.pt", weights_only=True)
    again.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    train(again, other, range(3, 6))
    assert_equal(model, again)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda both: pickle.loads(pickle.dumps(both))])
def test_copies_train_independently(copied):
    model = net()
    optimizer = Preconditioned(FOOF(model), lambda params: ADAM(params))
    train(model, optimizer, range(3))
    twin, other = copied((model, optimizer))
    train(model, optimizer, range(3, 5))
    assert not torch.equal(twin[0].weight, model[0].weight)
    train(twin, other, range(3, 5))
    assert_equal(model, twin)
    gc.collect()
    assert all(p is q for p, q in zip(other.param_groups[0]["params"], twin.parameters(), strict=True))


def test_schedules_change_only_the_outer_learning_rate():
    model, hand = linear_net(), linear_net()
    direction = SIBP(model, lr=0.3)
    optimizer = Preconditioned(direction, ADAM)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    by_hand = ADAM(hand.parameters())
    for seed in range(3):
        assert optimizer.param_groups[0]["lr"] == optimizer.outer.param_groups[0]["lr"] == 0.02 * 0.5**seed
        assert direction.param_groups[0]["lr"] == 0.3
        train(model, optimizer, range(seed, seed + 1))
        by_hand.param_groups[0]["lr"] = 0.02 * 0.5**seed
        step_by_hand(hand, by_hand, partial(SIBP, lr=0.3), seed)
        scheduler.step()
    assert_equal(model, hand)
    torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)  # cycles Adam's betas
    direction.param_groups[0]["lr"] = 0.0  # T = Z, so the direction is zero
    optimizer.zero_grad()
    loss_of(model, 9).backward()
    assert all(not p.grad.any() for p in model.parameters())


def test_clipping_before_the_step_clips_the_displacement():
    model = linear_net()
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = Preconditioned(SIBP(model, lr=1.0), UNIT)
    loss_of(model, 0).backward()
    wanted = [p.grad.clone() for p in model.parameters()]
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
    assert norm > 1e-3
    optimizer.step()
    for p, q, g in zip(model.parameters(), before, wanted, strict=True):
        torch.testing.assert_close(q - p, g * (1e-3 / norm), rtol=1e-3, atol=1e-12)


def test_closures_return_their_loss_and_may_be_called_repeatedly():
    model, calls = linear_net(), []
    optimizer = Preconditioned(ProxBP(model), lambda params: torch.optim.LBFGS(params, max_iter=3))

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, 0)
        loss.backward()
        calls.append(loss.item())
        return loss

    assert optimizer.step(closure).item() == calls[0]
    assert len(calls) > 1
    single = Preconditioned(SIBP(linear_net()), ADAM)
    assert single.step(lambda: torch.tensor(0.5)).item() == 0.5


def test_hooks_fire_once_per_step_with_this_optimizer():
    model, seen = linear_net(), []
    optimizer = Preconditioned(SIBP(model), lambda _: muon.build(model, lr=0.1, momentum=0.9, weight_decay=0.0))
    optimizer.register_step_post_hook(lambda one, *_: seen.append(("own", one)))
    everywhere = register_optimizer_step_pre_hook(lambda one, *_: seen.append(("all", one)))
    try:
        train(model, optimizer, range(1))
    finally:
        everywhere.remove()
    assert seen == [("all", optimizer), ("own", optimizer)]


@pytest.mark.parametrize("outer", [ADAM, None], ids=["adam", "muon"])
def test_groups_can_be_added(outer):
    model = nn.Sequential(*linear_net(), nn.ReLU(), nn.Linear(3, 3).double())
    first = [*model[0].parameters(), *model[2].parameters()]
    make = outer or (lambda params: muon.build(nn.Sequential(model[0], model[2]), lr=0.1, momentum=0.9, weight_decay=0))
    direction = ProxBP(model, params=first)
    optimizer = Preconditioned(direction, make)
    group = {"params": model[4].parameters(), "lr": 0.05, "direction": {"prox_weight": 7.0}}
    optimizer.add_param_group(group)
    before = model[4].weight.detach().clone()
    train(model, optimizer, range(1))
    moved = (model[4].weight.detach() - before).abs().max().item()
    assert moved == pytest.approx(0.05, rel=1e-5)  # Adam's first step is as long as its lr
    assert optimizer.param_groups[-1]["lr"] == 0.05
    assert direction.param_groups[-1]["prox_weight"] == 7.0
    assert "direction" not in optimizer.param_groups[-1]
    with pytest.raises(ValueError, match="more than one"):
        optimizer.add_param_group({"params": model[0].parameters()})


def test_distributed_checkpoints_save_and_load():
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

    model, again = linear_net(), linear_net()
    optimizer, other = Preconditioned(SIBP(model), ADAM), Preconditioned(SIBP(again), ADAM)
    train(model, optimizer, range(3))
    saved = get_optimizer_state_dict(model, optimizer)
    again.load_state_dict(model.state_dict())
    set_optimizer_state_dict(again, other, saved)
    train(model, optimizer, range(3, 5))
    train(again, other, range(3, 5))
    assert_equal(model, again)


def test_paused_remove_and_metrics_are_delegated_to_the_direction():
    model = linear_net()
    optimizer = Preconditioned(SIBP(model), ADAM)
    plain = linear_net()
    loss_of(plain, 0).backward()
    with optimizer.paused():
        found = torch.autograd.grad(loss_of(model, 0), list(model.parameters()))
    for g, p in zip(found, plain.parameters(), strict=True):
        torch.testing.assert_close(g, p.grad, rtol=1e-12, atol=1e-15)
    train(model, optimizer, range(1))
    assert set(optimizer.solver_stats()) == {"0", "2"}
    assert Preconditioned(FOOF(linear_net()), ADAM).solver_stats() == {}
    optimizer.zero_grad()
    optimizer.remove()
    train_plain = torch.autograd.grad(loss_of(model, 1), list(model.parameters()))
    assert all(g.isfinite().all() for g in train_plain)
    assert type(model[0]) is nn.Linear
    with pytest.raises(RuntimeError, match="no longer belongs to this SIBP"):
        optimizer.step()


@pytest.mark.parametrize("direction_only", [False, True])
def test_dropping_it_frees_the_model(direction_only):
    model = linear_net()
    optimizer = Preconditioned(SIBP(model, direction_only=direction_only), ADAM)
    loss_of(model, 0).backward()
    direction = weakref.ref(optimizer.direction)
    del optimizer
    gc.collect()
    assert direction() is None
    plain = linear_net()
    for m in (model, plain):
        m.zero_grad()
        loss_of(m, 0).backward()
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-15)


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_ordinary_gradients_are_refused():
    model = linear_net()
    optimizer = Preconditioned(SIBP(model), ADAM)
    with optimizer.paused():
        loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match=r"layer '0': .* comes from a backward pass inside paused\(\)"):
        optimizer.step()
    with pytest.raises(RuntimeError, match=r"inside paused\(\)"):
        optimizer.step(lambda: torch.tensor(0.0))
    optimizer.zero_grad()
    loss_of(model, 0).backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match=r"step\(\) was called again"):
        optimizer.step()
    loss_of(model, 1).backward()
    with pytest.raises(RuntimeError, match="still holds the displacement of the last step"):
        optimizer.step()


@pytest.mark.parametrize("method", [SIBP, KFAC])
def test_memory_that_held_a_displacement_may_hold_a_gradient_next(method):
    model = linear_net()
    optimizer = Preconditioned(method(model), ADAM)
    loss_of(model, 0).backward()
    held = [p.grad for p in model.parameters()]
    optimizer.zero_grad()
    for p, memory in zip(model.parameters(), held, strict=True):
        p.grad = memory.fill_(1.0)
    with pytest.raises(RuntimeError, match="assigned by hand"):
        optimizer.step()


def test_a_scaler_is_refused():
    model = linear_net()
    optimizer = Preconditioned(SIBP(model), ADAM)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(model, 0)).backward()
    with pytest.raises(RuntimeError, match=r"Preconditioned\(SIBP, Adam\) cannot undo the scale of a GradScaler"):
        scaler.step(optimizer)


def test_stepping_the_direction_itself_is_refused():
    model = net()
    direction = ProxBP(model)
    optimizer = Preconditioned(direction, UNIT)
    loss_of(model, 0).backward()
    with pytest.raises(RuntimeError, match=r"call step\(\) of the optimizer that uses it"):
        direction.step()
    optimizer.step()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda m: Preconditioned(m, ADAM), TypeError, "direction is a Sequential"),
        (lambda m: Preconditioned(ADAM(m.parameters()), ADAM), TypeError, "direction is a Adam"),
        (lambda m: Preconditioned(SIBP(m), ADAM(m.parameters())), TypeError, "outer is a Adam; give a function"),
        (lambda m: Preconditioned(SIBP(m), lambda _: None), TypeError, "made a NoneType"),
        (lambda m: Preconditioned(SIBP(m), lambda _: ProxBP(m)), TypeError, "made a ProxBP"),
        (lambda m: Preconditioned(AutoSIBP(m), ADAM), ValueError, "AutoSIBP searches along its own step"),
        (lambda m: Preconditioned(SIBP(m, line_search=True), ADAM), ValueError, "SIBP searches along"),
        (lambda m: Preconditioned(SIBP(m, weight_decay=0.1), ADAM), ValueError, "weight_decay of SIBP would have no"),
        (lambda m: Preconditioned(SIBP(m, fallback=UNIT), ADAM), ValueError, "fallback of SIBP would have no"),
        (lambda m: Preconditioned(SIBP(m), lambda ps: ADAM(ps[1:])), ValueError, "Adam does not step 0.weight"),
    ],
)
def test_invalid_combinations_are_refused_with_the_way_out(make, error, message):
    with pytest.raises(error, match=message):
        make(net())


def test_another_optimizers_state_is_refused():
    model = linear_net()
    optimizer = Preconditioned(SIBP(model), ADAM)
    others = [ADAM(linear_net().parameters()), SIBP(linear_net()), Preconditioned(ProxBP(linear_net()), ADAM)]
    others += [Preconditioned(SIBP(linear_net()), UNIT)]
    before = copy.deepcopy(optimizer.state_dict())
    for other in others:
        with pytest.raises(ValueError, match=r"Preconditioned\(SIBP, Adam\): group 0 of this state_dict belongs to"):
            optimizer.load_state_dict(other.state_dict())
    assert optimizer.state_dict() == before
    remembering = Preconditioned(FOOF(linear_net()), ADAM)
    partly = {key: value for key, value in remembering.state_dict().items() if key != "direction"}
    with pytest.raises(ValueError, match="FOOF has running statistics"):
        remembering.load_state_dict(partly)


def test_it_is_public():
    assert "Preconditioned" in sibp.__all__


# -- as configs name it -----------------------------------------------------------------------------------------------

SETTINGS = {"momentum": 0.8, "weight_decay": 0.1, "neuron_step": 0.5, "prox_weight": 2.0, "solver": "exact"}
FED = {
    "sgd": partial(torch.optim.SGD, lr=0.02, momentum=0.8, nesterov=True, weight_decay=0.1),
    "adam": partial(torch.optim.AdamW, lr=0.02, weight_decay=0.1),
    "adagrad": partial(torch.optim.Adagrad, lr=0.02, weight_decay=0.1),
}


def configured(model: nn.Module, name: str, outer: str) -> torch.optim.Optimizer:
    return build_optimizer({"name": name, "lr": 0.02, "outer": outer} | SETTINGS, model)


@pytest.mark.parametrize("outer", FED)
@pytest.mark.parametrize(("name", "method"), [("sibp_fed", SIBP), ("proxbp_fed", ProxBP)])
def test_a_config_names_the_direction_and_the_outer_optimizer(name, method, outer):
    model, other = linear_net(), linear_net()
    train(model, configured(model, name, outer), range(3))
    train(other, Preconditioned(method(other, 0.5, 2.0, "exact"), FED[outer]), range(3))
    assert_equal(model, other)


def test_proxprop_uses_the_direction_of_the_mean_loss_except_at_the_last_layer():
    """W_old - W_new of `loss_average=False`, and at the last layer the gradient itself."""
    model, other, plain = linear_net(), linear_net(), linear_net()
    optimizer = configured(model, "proxprop", "sgd")
    direction = ProxBP(other, 0.5, 2.0, loss_average=False)
    for m in (model, other, plain):
        loss_of(m, 0).backward()
    assert direction.solver_stats()
    for p, q in zip(model[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)
    for p, q in zip(model[2].parameters(), plain[2].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=0)
    assert isinstance(optimizer, Preconditioned)


def test_an_unknown_outer_optimizer_is_named():
    with pytest.raises(UserError, match="outer=lion is not known; choose sgd, adam, adagrad, muon"):
        configured(linear_net(), "sibp_fed", "lion")
