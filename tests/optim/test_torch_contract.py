"""The requirements of torch's own optimizer tests, restated, for both methods."""

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sibp import SIBP, ProxBP


@pytest.fixture(params=[SIBP, ProxBP], ids=lambda method: method.__name__)
def method(request):
    return request.param


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 3))


def loss_of(model: nn.Module) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return F.cross_entropy(model(torch.randn(7, 5, generator=generator)), torch.arange(7) % 3)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, schedule=None) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model).backward()
        optimizer.step()
        if schedule is not None:
            schedule.step()


def rates(optimizer: torch.optim.Optimizer, update: str) -> list[float]:
    return [group["lr"] for group in optimizer.param_groups if group["update"] == update]


# -- names


def test_parameter_names_are_in_the_state(method):
    model = net()
    saved = method(model, params=model.named_parameters()).state_dict()
    names = [name for group in saved["param_groups"] for name in group["param_names"]]
    assert sorted(names) == sorted(name for name, _ in model.named_parameters())
    for group in saved["param_groups"]:
        assert len(group["param_names"]) == len(group["params"])
    groups = [{"params": list(part.named_parameters())} for part in (model[3], model[1])]
    assert "param_names" in method(model, params=groups).state_dict()["param_groups"][0]


# -- errors


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        (lambda m: set(m.parameters()), TypeError, "params is a set"),
        (lambda m: [{"params": set(m.parameters())}], TypeError, "params is a set"),
        (lambda m: [*list(m.named_parameters())[:2], m[3].weight], ValueError, "some parameters have names and others"),
        (lambda m: [m[0].weight, 3], TypeError, "can only optimize tensors, not int"),
        (lambda m: [m[0].weight, m[0].bias, m[0].weight], ValueError, "more than one parameter group"),
        (
            lambda m: [{"params": m[0].parameters()}, {"params": [m[0].weight]}],
            ValueError,
            "more than one parameter group",
        ),
    ],
)
def test_invalid_parameters_are_refused(method, params, error, message: str):
    model = net()
    with pytest.raises(error, match=message):
        method(model, params=params(model))


@pytest.mark.parametrize("lr", [torch.tensor([0.1, 0.2]), torch.tensor(float("nan")), torch.tensor(-1.0), 1j])
def test_learning_rates_that_are_no_scalar_are_refused(method, lr):
    with pytest.raises(ValueError, match="Invalid lr"):
        method(net(), lr=lr)


@pytest.mark.parametrize("key", ["backward_weights", "prox_weight_scaling"])
def test_unknown_choices_are_refused(method, key: str):
    with pytest.raises(ValueError, match=f"Invalid {key}: 'both'; choose one of '"):
        method(net(), **{key: "both"})


# -- hooks


def test_hooks_on_all_optimizers_fire_once_per_step(method):
    seen: list[str] = []
    handles = [
        register(lambda optimizer, *_: seen.append(type(optimizer).__name__))
        for register in (register_optimizer_step_pre_hook, register_optimizer_step_post_hook)
    ]
    try:
        model = net()
        train(model, method(model), 3)
    finally:
        for handle in handles:
            handle.remove()
    assert seen == [method.__name__, method.__name__] * 3


# -- schedules


def test_a_schedule_with_one_rate_for_all_scales_the_fallbacks_own(method):
    """OneCycleLR writes one learning rate into every group; the fallback's follows in proportion, up to its own."""
    model = net()
    optimizer = method(model, lr=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1.0, total_steps=20, cycle_momentum=False)
    seen = []
    for _ in range(18):
        train(model, optimizer, 1, schedule)
        (proximal,), (explicit,) = rates(optimizer, "proximal"), rates(optimizer, "explicit")
        assert explicit == pytest.approx(1e-3 * proximal / 1.0, rel=1e-9)
        seen.append(explicit)
    assert max(seen) == pytest.approx(1e-3, rel=1e-2)


def test_a_loop_over_the_groups_scales_the_fallbacks_own(method):
    model = net()
    optimizer = method(model, lr=0.4)
    for group in optimizer.param_groups:
        group["lr"] = 0.1
    assert rates(optimizer, "proximal") == [0.1]
    assert rates(optimizer, "explicit") == [pytest.approx(1e-3 / 4)]
    for group in optimizer.param_groups:
        group["lr"] = 0.4
    assert rates(optimizer, "explicit") == [pytest.approx(1e-3)]


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        partial(torch.optim.lr_scheduler.LambdaLR, lr_lambda=lambda t: 0.5**t),
        partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.5),
    ],
)
def test_a_schedule_that_multiplies_multiplies_both(method, make):
    model = net()
    optimizer = method(model, lr=0.3)
    train(model, optimizer, 3, make(optimizer))
    assert rates(optimizer, "proximal") == [pytest.approx(0.3 / 8)]
    assert rates(optimizer, "explicit") == [pytest.approx(1e-3 / 8)]


def norm_first(method, model: nn.Sequential, **options) -> torch.optim.Optimizer:
    """An optimizer whose first group is the fallback's."""
    groups = [{"params": list(part.parameters())} for part in (model[1], nn.ModuleList([model[0], model[3]]))]
    return method(model, params=groups, **options)


@pytest.mark.parametrize(
    "make",
    [
        partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=20, cycle_momentum=False),
        partial(torch.optim.lr_scheduler.CyclicLR, base_lr=0.1, max_lr=1.0, step_size_up=3, cycle_momentum=False),
        partial(torch.optim.lr_scheduler.StepLR, step_size=1, gamma=0.5),
        partial(torch.optim.swa_utils.SWALR, swa_lr=0.05, anneal_epochs=3),
    ],
    ids=["one cycle", "cyclic", "step", "swa"],
)
def test_schedules_do_not_depend_on_the_order_of_groups(method, make):
    """A group of the fallback that comes first has its rate written before the rate that it should follow."""
    seen = []
    for build in (lambda model: method(model, lr=0.3), lambda model: norm_first(method, model, lr=0.3)):
        model = net()
        optimizer = build(model)
        schedule = make(optimizer)
        rows = []
        for _ in range(8):
            rows.append(rates(optimizer, "proximal") + rates(optimizer, "explicit"))
            train(model, optimizer, 1, schedule)
        seen.append([*rows, [float(p.detach().sum()) for p in model.parameters()]])
    assert [len(row) for row in seen[0]] == [len(row) for row in seen[1]]
    for one, other in zip(*seen, strict=True):
        assert one == pytest.approx(other, rel=1e-5)


def test_a_rate_that_the_leader_reaches_later_is_the_fallbacks_own(method):
    """The rates were written at different times, so their equality says nothing."""
    model = net()
    optimizer = norm_first(method, model, lr=0.3, fallback=partial(torch.optim.SGD, lr=0.1))
    first, second = optimizer.param_groups
    second["lr"] = 0.1
    assert first["lr"] == 0.1
    first["lr"] = 0.2
    train(model, optimizer, 1)
    second["lr"] = 0.2
    assert first["lr"] == 0.2


def test_a_loop_that_multiplies_rates_multiplies_both_however_often(method):
    """The second time, the leader's new rate equals the fallback's old one."""
    optimizer = method(net(), lr=1.0, fallback=partial(torch.optim.SGD, lr=0.1))
    for _ in range(2):
        for group in optimizer.param_groups:
            group["lr"] *= 0.1
    assert rates(optimizer, "explicit") == [pytest.approx(1e-3)]


def test_groups_that_are_updated_follow_too(method):
    optimizer = method(net(), lr=0.4)
    for group in optimizer.param_groups:
        group.update({"weight_decay": 0.0}, lr=0.1)
    assert rates(optimizer, "explicit") == [pytest.approx(1e-3 / 4)]


@pytest.mark.parametrize("later", [False, True])
def test_a_rate_of_the_fallback_in_a_tensor_is_refused(method, later: bool):
    """Schedulers would fill it in place, with the rate of the proximal groups."""
    rate, message = torch.tensor(0.125), r"its lr is a tensor.*give a number, such as lr=0\.125"
    if later:
        group = method(net()).param_groups[1]
        with pytest.raises(TypeError, match=message):
            group["lr"] = rate
        assert group["lr"] == 1e-3
    else:
        with pytest.raises(TypeError, match=message):
            method(net(), fallback=partial(torch.optim.Adam, lr=rate, foreach=False))


def test_the_fallback_steps_with_the_rate_that_its_group_shows(method):
    model = net()
    optimizer = method(model, lr=0.0, fallback=partial(torch.optim.SGD, lr=0.5))
    for group in optimizer.param_groups:
        group["lr"] = 0.0 if group["update"] == "proximal" else 0.25
    before = model[1].weight.detach().clone()
    loss_of(model).backward()
    gradient = model[1].weight.grad.clone()
    optimizer.step()
    torch.testing.assert_close(model[1].weight.detach(), before - 0.25 * gradient)


# -- states


def test_schedules_resume_from_a_file(method):
    model, other = net(), net()
    optimizer, again = method(model, lr=0.3), method(other, lr=0.1)
    cycle = partial(torch.optim.lr_scheduler.OneCycleLR, max_lr=1.0, total_steps=20, cycle_momentum=False)
    schedule, resumed = cycle(optimizer), cycle(again)
    train(model, optimizer, 5, schedule)
    other.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    resumed.load_state_dict(schedule.state_dict())
    train(model, optimizer, 5, schedule)
    train(other, again, 5, resumed)
    assert rates(optimizer, "explicit") == rates(again, "explicit")
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_settings_that_an_older_state_lacks_keep_their_defaults(method):
    model = net()
    optimizer = method(model, lr=0.3, prox_weight=7.0)
    saved = optimizer.state_dict()
    for key in ("prox_weight", "backward_weights", "prox_weight_scaling", "method"):
        del saved["param_groups"][0][key]
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["prox_weight"] == 7.0
    train(model, optimizer, 2)


@pytest.mark.parametrize("other", [torch.optim.Adam, partial(torch.optim.SGD, lr=0.1)])
def test_the_state_of_another_optimizer_is_refused(method, other):
    model = net()
    optimizer, stranger = method(model), other(model.parameters())
    with pytest.raises(ValueError, match=f"{method.__name__}: group 0 of this state_dict belongs to another optimizer"):
        optimizer.load_state_dict(stranger.state_dict())
    sibling = ProxBP if method is SIBP else SIBP
    saved = sibling(net()).state_dict()
    with pytest.raises(ValueError, match=f"belongs to {sibling.__name__}; load the state of a {method.__name__}"):
        optimizer.load_state_dict(saved)
    train(model, optimizer, 1)


def test_distributed_checkpoints_save_and_load(method):
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    model, other = net(), net()
    optimizer, again = method(model, lr=0.3), method(other, lr=0.1)
    train(model, optimizer, 3)
    of_model, of_optimizer = get_state_dict(model, optimizer)
    set_state_dict(other, again, model_state_dict=of_model, optim_state_dict=of_optimizer)
    train(model, optimizer, 3)
    train(other, again, 3)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


# -- what is proximal


def test_a_model_without_proximal_layers_is_reported(method):
    with pytest.warns(UserWarning, match=f"{method.__name__} found no layer with a proximal subproblem in LSTM"):
        method(nn.LSTM(4, 3))


def test_the_summary_says_who_updates_what(method):
    model = net()
    model[1].requires_grad_(False)
    optimizer = method(model, params=model[0].parameters())
    rows = {row.split()[0]: row for row in optimizer.summary().splitlines()[3:]}
    assert rows["0"].endswith("proximal")
    assert rows["1"].endswith("frozen")
    assert rows["3"].endswith("not in this optimizer")
    method(model)
    assert optimizer.summary().splitlines()[3].endswith("replaced since")


@pytest.mark.parametrize(
    ("explicit", "left"),
    [
        (["blocks.*.0"], {"blocks.0.2", "blocks.1.2", "head"}),
        ([nn.Sequential], {"head"}),
        (["blocks.0", "head"], {"blocks.1.0", "blocks.1.2"}),
        ("head", {"blocks.0.0", "blocks.0.2", "blocks.1.0", "blocks.1.2"}),
    ],
)
def test_explicit_takes_names_patterns_and_classes(method, explicit, left: set[str]):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 5)) for _ in range(2))
            self.head = nn.Linear(5, 3)

    optimizer = method(Net(), explicit=explicit)
    proximal = {row.split()[0] for row in optimizer.summary().splitlines() if row.endswith("proximal")}
    assert proximal == left


def test_an_absurd_step_is_reported_once_per_layer():
    model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 3))
    optimizer = SIBP(model, lr=1e4, prox_weight=1e-6, solver="exact")
    x, y = torch.randn(32, 8), torch.arange(32) % 3

    def three_passes() -> None:
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()

    with pytest.warns(RuntimeWarning, match="Lower lr or raise prox_weight of SIBP") as seen:
        three_passes()
    layers = [str(warning.message).split(":")[0] for warning in seen]
    assert sorted(layers) == ["layer '0'", "layer '2'"]


def test_a_solve_without_a_finite_answer_is_reported():
    model = nn.Sequential(nn.Linear(4, 3))
    optimizer = SIBP(model)
    with pytest.warns(RuntimeWarning, match="layer '0': its subproblem has no finite solution"):
        F.cross_entropy(model(torch.full((5, 4), torch.nan)), torch.arange(5) % 3).backward()
    before = model[0].weight.detach().clone()
    optimizer.step()
    assert torch.equal(model[0].weight, before)


# -- backward_weights and prox_weight_scaling


@pytest.mark.parametrize("solver", ["cg:3", "exact"])
def test_error_signals_through_the_old_weights_are_ordinary(solver: str):
    model, plain = net().double(), net().double()
    del model[1], plain[1]
    SIBP(model, lr=0.5, solver=solver, backward_weights="old", direction_only=True)
    x, y = torch.randn(7, 5, dtype=torch.float64, requires_grad=True), torch.arange(7) % 3
    signals = []
    for m in (model, plain):
        x.grad = None
        F.cross_entropy(m(x), y).backward()
        signals.append(x.grad.clone())
    torch.testing.assert_close(*signals, rtol=1e-12, atol=1e-15)


def test_a_relative_weight_is_measured_in_the_mean_squared_norm_of_the_features(method):
    """By hand: lam = prox_weight * mean over rows of ||[a, 1]||^2, layer by layer."""
    x, y = 3 * torch.randn(7, 5, dtype=torch.float64), torch.arange(7) % 3
    relative, absolute = nn.Linear(5, 3).double(), nn.Linear(5, 3).double()
    absolute.load_state_dict(relative.state_dict())
    lam = 0.25 * float((x.square().sum(1) + 1).mean())
    method(relative, lr=0.5, prox_weight=0.25, prox_weight_scaling="relative", direction_only=True)
    method(absolute, lr=0.5, prox_weight=lam, direction_only=True)
    for layer in (relative, absolute):
        F.cross_entropy(layer(x), y).backward()
    torch.testing.assert_close(relative.weight.grad, absolute.weight.grad, rtol=1e-12, atol=1e-15)
