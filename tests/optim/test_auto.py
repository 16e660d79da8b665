"""AutoSIBP and line searches: no step raises the loss, and refused steps leave no trace."""

import contextlib
import copy
import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP, AutoSIBP, ProxBP
from sibp.optim.direction import MOMENTUM

F64 = torch.float64
SEARCHING: list[Callable[[nn.Module, float], SIBP | ProxBP]] = [
    lambda model, lr: AutoSIBP(model, lr),
    lambda model, lr: SIBP(model, lr, line_search=True),
    lambda model, lr: SIBP(model, lr, solver="exact", backward_weights="old", line_search=True),
    lambda model, lr: ProxBP(model, lr, line_search=True),
]
NAMES = ["auto", "sibp", "sibp old", "proxbp"]


def mlp(*sizes: int, seed: int = 0, dtype: torch.dtype = F64) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in itertools.pairwise(sizes):
        layers += [nn.Linear(n, m, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("make", SEARCHING, ids=NAMES)
def test_summary_names_every_layer(make):
    assert [line.split()[0] for line in make(mlp(5, 4, 3), 0.1).summary().splitlines()[3:]] == ["0", "2"]


def batch(seed: int = 1, rows: int = 20, inputs: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, inputs, generator=generator, dtype=F64)
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def step(model: nn.Module, optimizer, x: Tensor, y: Tensor, *, give_loss: bool = True) -> float:
    """Takes one step; returns the loss before it."""
    optimizer.zero_grad()
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step(evaluate=lambda: F.cross_entropy(model(x), y), loss=loss if give_loss else None)
    return loss.item()


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return F.cross_entropy(model(x), y).item()


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def assert_equal(a: list[Tensor], b: list[Tensor]) -> None:
    assert all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def test_first_step_on_a_quadratic_ends_at_the_minimum_along_it():
    """A linear model with a squared error is a parabola along any line: its slope at the end is 0."""
    model, (x, _) = mlp(5, 3), batch()
    target = x @ torch.ones(5, 3, dtype=F64)
    optimizer, old = AutoSIBP(model, lr=1e3), weights(model)

    def loss() -> Tensor:
        return F.mse_loss(model(x), target)

    optimizer.zero_grad()
    loss().backward()
    optimizer.step(evaluate=loss)
    moved = [new - before for new, before in zip(weights(model), old, strict=True)]
    with optimizer.paused():
        gradients = torch.autograd.grad(loss(), list(model.parameters()))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, moved, strict=True))
    size = sum(float(g.norm() * d.norm()) for g, d in zip(gradients, moved, strict=True))
    assert 0 < optimizer.search_stats()["step"] < 1
    assert abs(slope) < 1e-9 * size


def test_takes_full_steps_on_an_unbounded_loss():
    """The length is 1.7 times the subproblem's, over weight and bias together, and both move by the same."""
    model, (x, _) = mlp(5, 3), batch()
    optimizer, old = AutoSIBP(model, lr=0.5), weights(model)
    optimizer.zero_grad()
    model(x).mean().backward()
    asked = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    optimizer.step(evaluate=lambda: model(x).mean())
    moved = [before - new for new, before in zip(weights(model), old, strict=True)]
    assert optimizer.search_stats()["step"] == 1
    size = 1.7 * math.sqrt(sum(float(a.square().sum()) for a in asked) / sum(a.numel() for a in asked))
    wanted = [a * (size / float(a.square().mean().sqrt())) for a in asked]
    torch.testing.assert_close(moved, wanted, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*the line search refused 10 steps in a row:RuntimeWarning")
@pytest.mark.parametrize("make", SEARCHING, ids=NAMES)
@pytest.mark.parametrize("lr", [1e-2, 1.0, 1e2])
def test_no_step_raises_the_loss(make, lr: float):
    model = mlp(5, 16, 16, 16, 16, 16, 3)
    optimizer = make(model, lr)
    for seed in range(12):
        x, y = batch(seed)
        before = step(model, optimizer, x, y)
        assert loss_of(model, x, y) <= before + 1e-12


@pytest.mark.parametrize("lr", [1e-2, 1e-1, 1.0, 1e1, 1e2])
def test_no_step_size_ends_far_above_the_initial_loss(lr: float):
    model, (x, y) = mlp(5, 16, 16, 16, 16, 16, 3), batch(99, 200)
    start = loss_of(model, x, y)
    optimizer = AutoSIBP(model, lr)
    for seed in range(40):
        step(model, optimizer, *batch(seed))
    assert loss_of(model, x, y) <= 1.1 * start


@pytest.mark.parametrize("make", SEARCHING, ids=NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, 10.0])
def test_a_refused_step_restores_every_weight(make, bad: float):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = batch()
    optimizer, old = make(model, 1.0), weights(model)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    optimizer.step(evaluate=lambda: bad, loss=loss)
    assert_equal(weights(model), old)
    assert optimizer.search_stats()["status"] == 2
    assert step(model, optimizer, x, y) > loss_of(model, x, y)  # and training goes on


def test_an_error_in_a_trial_restores_every_weight():
    model, (x, y) = mlp(5, 6, 3), batch()
    optimizer, old = AutoSIBP(model), weights(model)
    F.cross_entropy(model(x), y).backward()
    calls = []

    def evaluate() -> float:
        calls.append(0)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return 1.0

    with pytest.raises(KeyboardInterrupt):
        optimizer.step(evaluate=evaluate)
    assert_equal(weights(model), old)


def test_tiny_steps_are_plain_sibps_made_orthogonal_and_balanced():
    """The reference uses singular vectors; Newton-Schulz iterations leave singular values from .7 to 1.2."""
    options: dict[str, Any] = {"solver": "exact", "backward_weights": "old", "prox_weight_scaling": "relative"}
    auto, plain, (x, y) = mlp(5, 6, 3), mlp(5, 6, 3), batch()
    first, second = AutoSIBP(auto, lr=1e-4), SIBP(plain, lr=1e-4, **options)
    old, mean = weights(auto), [torch.zeros_like(p) for p in auto.parameters()]
    for _ in range(4):
        plain.load_state_dict(auto.state_dict())
        step(auto, first, x, y)
        second.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        asked = [-p.grad for p in plain.parameters() if p.grad is not None]
        mean = [MOMENTUM * m + (1 - MOMENTUM) * s for m, s in zip(mean, asked, strict=True)]
        wanted = [MOMENTUM * m + (1 - MOMENTUM) * s for m, s in zip(mean, asked, strict=True)]
        left, _, right = torch.linalg.svd(wanted[0], full_matrices=False)
        wanted = [w / w.square().mean().sqrt() for w in (left @ right, *wanted[1:])]
        size = 1.7 * math.sqrt(sum(float(s.square().sum()) for s in asked) / sum(w.numel() for w in wanted))
        now = weights(auto)
        moved, old = [new - before for new, before in zip(now, old, strict=True)], now
        assert first.search_stats()["step"] == 1
        torch.testing.assert_close(moved[1:], [size * w for w in wanted[1:]], rtol=1e-6, atol=0)
        assert float((moved[0] - size * wanted[0]).norm()) < 0.25 * float(moved[0].norm())


def test_a_direction_that_rises_is_given_up_for_the_steps_own():
    """The mean of steps for the opposite labels leads up: what is taken is the subproblems' own step."""
    model, (x, y) = mlp(5, 3), batch()
    optimizer = AutoSIBP(model, lr=1e-4)
    step(model, optimizer, x, y)
    for p in model.parameters():
        optimizer.state[p]["search_mean"].mul_(-1e3)
    optimizer._search_state()["search_wait"] = 0
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    asked = [p.detach() - p.grad for p in model.parameters() if p.grad is not None]
    optimizer.step(evaluate=lambda: F.cross_entropy(model(x), y))
    assert_equal(weights(model), asked)


def test_a_refused_step_begins_the_mean_of_steps_anew():
    model, (x, y) = mlp(5, 6, 3), batch()
    optimizer = AutoSIBP(model)
    step(model, optimizer, x, y)
    assert all(optimizer.state[p]["search_mean"].any() for p in model.parameters())
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step(evaluate=lambda: math.inf, loss=1.0)
    assert not any(optimizer.state[p]["search_mean"].any() for p in model.parameters())


def test_groups_move_in_proportion_to_their_lr():
    model, (x, y) = mlp(5, 6, 3), batch()
    hidden, last = model.get_submodule("0"), model.get_submodule("2")
    for lr in (2.5, 0.0):
        settings = [{"params": list(hidden.parameters())}, {"params": list(last.parameters()), "lr": lr}]
        optimizer, old = AutoSIBP(model, params=settings), weights(model)
        step(model, optimizer, x, y)
        sizes = [float((new - p).square().mean().sqrt()) for new, p in zip(weights(model), old, strict=True)]
        assert sizes[0] > 0
        assert sizes == pytest.approx([sizes[0], sizes[0], sizes[0] * lr / 10, sizes[0] * lr / 10], rel=1e-9)


def test_trials_see_the_model_untapped_without_gradients_and_leave_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 3)).double()
    x, y = batch()
    optimizer = AutoSIBP(model)
    loss = F.cross_entropy(model(x), y)
    loss.backward()
    buffers, random = [b.clone() for b in model.buffers()], torch.get_rng_state()
    seen: list[Tensor] = []

    def evaluate() -> Tensor:
        assert not torch.is_grad_enabled()
        assert not optimizer.active()
        seen.append(torch.rand(()))
        return F.cross_entropy(model(x), y)

    optimizer.step(evaluate=evaluate)
    assert len(seen) > 1
    assert all(torch.equal(draw, seen[0]) for draw in seen)
    assert_equal(list(model.buffers()), buffers)
    assert torch.equal(torch.get_rng_state(), random)


def test_a_closure_does_what_evaluate_does():
    one, two, (x, y) = mlp(5, 6, 3), mlp(5, 6, 3), batch()
    first, second = AutoSIBP(one), AutoSIBP(two)

    def closure() -> Tensor:
        second.zero_grad()
        loss = F.cross_entropy(two(x), y)
        loss.backward()
        return loss

    for _ in range(5):
        before = step(one, first, x, y)
        assert second.step(closure).item() == before
    assert_equal(weights(one), weights(two))


@pytest.mark.parametrize("clears", [False, True])
def test_a_closure_on_part_of_an_accumulated_batch_is_refused(clears: bool):
    """Like Lightning's, which accumulates itself: trial points would be evaluated on the last batch only."""
    model, (x, y) = mlp(5, 6, 3), batch()
    optimizer, old = AutoSIBP(model), weights(model)

    def closure() -> Tensor:
        if clears:
            optimizer.zero_grad()
        loss = F.cross_entropy(model(x[10:]), y[10:])
        loss.backward()
        return loss

    F.cross_entropy(model(x[:10]), y[:10]).backward()
    if clears:  # earlier gradients are gone, so the closure evaluates all that remains
        optimizer.step(closure)
        return
    with pytest.raises(RuntimeError, match=r"step\(evaluate=.*all their batches"):
        optimizer.step(closure)
    assert_equal(weights(model), old)


def test_the_initial_loss_is_evaluated_if_not_given():
    one, two, (x, y) = mlp(5, 6, 3), mlp(5, 6, 3), batch()
    first, second = AutoSIBP(one), AutoSIBP(two)
    for _ in range(5):
        step(one, first, x, y)
        step(two, second, x, y, give_loss=False)
    assert_equal(weights(one), weights(two))


def test_accumulated_batches_are_searched_along_their_common_gradient():
    """A sum of squared errors of two batches is a parabola, and its slope is that of both gradients."""
    model, (x, _) = mlp(5, 3), batch()
    target = x @ torch.ones(5, 3, dtype=F64)
    optimizer, old = AutoSIBP(model, lr=1e3), weights(model)
    for rows in (slice(0, 12), slice(12, 20)):
        F.mse_loss(model(x[rows]), target[rows]).backward()

    def loss() -> Tensor:
        return sum(F.mse_loss(model(x[rows]), target[rows]) for rows in (slice(0, 12), slice(12, 20)))  # pyright: ignore

    optimizer.step(evaluate=loss)
    moved = [new - before for new, before in zip(weights(model), old, strict=True)]
    with optimizer.paused():
        gradients = torch.autograd.grad(loss(), list(model.parameters()))
    slope = sum(float((g * d).sum()) for g, d in zip(gradients, moved, strict=True))
    size = sum(float(g.norm() * d.norm()) for g, d in zip(gradients, moved, strict=True))
    assert abs(slope) < 1e-9 * size


@pytest.mark.parametrize("width", [8, 70])
@pytest.mark.parametrize("make", SEARCHING, ids=NAMES)
def test_resumes_bitwise_from_a_state(make, width: int):
    model = mlp(5, width, width, 3)
    optimizer = make(model, 10.0)
    for seed in range(5):
        step(model, optimizer, *batch(seed))
    other = mlp(5, width, width, 3, seed=1)
    resumed = make(other, 10.0)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for seed in range(5, 12):
        step(model, optimizer, *batch(seed))
        step(other, resumed, *batch(seed))
    assert_equal(weights(model), weights(other))


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning", "ignore:TypedStorage is:UserWarning")
@pytest.mark.parametrize("make", SEARCHING, ids=NAMES)
def test_resumes_bitwise_from_a_distributed_checkpoint(make, tmp_path):
    """A checkpoint is read into the state of an untrained optimizer."""
    import torch.distributed.checkpoint as files
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    for steps in (3, 4):  # AutoSIBP has kept the last step to look back at, or has none
        model, other = mlp(5, 66, 66, 3), mlp(5, 66, 66, 3, seed=1)
        optimizer, again = make(model, 10.0), make(other, 10.0)
        for seed in range(steps):
            step(model, optimizer, *batch(seed))
        files.save(dict(zip("ab", get_state_dict(model, optimizer), strict=True)), checkpoint_id=tmp_path / str(steps))
        before = weights(other)
        found = dict(zip("ab", get_state_dict(other, again), strict=True))
        assert_equal(weights(other), before)
        files.load(found, checkpoint_id=tmp_path / str(steps))
        set_state_dict(other, again, model_state_dict=found["a"], optim_state_dict=found["b"])
        for seed in range(steps, steps + 5):
            step(model, optimizer, *batch(seed))
            step(other, again, *batch(seed))
        assert_equal(weights(other), weights(model))


@pytest.mark.parametrize("share", [0.5, 0.25])
def test_a_lower_lr_shortens_every_step_in_proportion(share: float):
    """The minimum along the step lies below the lower lr, which would have no effect as a mere bound."""
    x, _ = batch()
    target, moved = x @ torch.ones(5, 3, dtype=F64), []
    for factor in (1.0, share):
        model = mlp(5, 3)
        optimizer, old = AutoSIBP(model, lr=1e3), weights(model)
        optimizer.param_groups[0]["lr"] *= factor
        F.mse_loss(model(x), target).backward()
        optimizer.step(evaluate=lambda: F.mse_loss(model(x), target))  # noqa: B023
        moved.append([new - before for new, before in zip(weights(model), old, strict=True)])
        assert optimizer.search_stats()["step"] < 0.25
    torch.testing.assert_close(moved[1], [share * m for m in moved[0]], rtol=1e-9, atol=1e-12)


def test_trust_is_learned_under_a_schedule_too():
    generator = torch.Generator().manual_seed(0)
    model = mlp(5, 30, 3)
    optimizer = AutoSIBP(model)
    optimizer.param_groups[0]["lr"] = 5.0
    for seed in range(24):
        x, _ = batch(seed, rows=16)
        step(model, optimizer, x, torch.randint(3, (16,), generator=generator))
    assert 0 < optimizer.search_stats()["trust"] < 1


def test_a_schedule_that_ends_at_zero_stops_there():
    model, (x, y) = mlp(5, 6, 3), batch()
    optimizer = AutoSIBP(model)
    step(model, optimizer, x, y)
    optimizer.param_groups[0]["lr"] = 0.0
    old = weights(model)
    step(model, optimizer, x, y)
    assert_equal(weights(model), old)


def test_trust_falls_if_batches_disagree_and_stays_for_identical_batches():
    noisy, same = mlp(5, 30, 3), mlp(5, 30, 3)
    first, second = AutoSIBP(noisy), AutoSIBP(same)
    generator = torch.Generator().manual_seed(0)
    for seed in range(30):
        x, _ = batch(seed, rows=6)
        step(noisy, first, x, torch.randint(3, (6,), generator=generator))
        step(same, second, *batch(0))
    assert first.search_stats()["trust"] < second.search_stats()["trust"]


@pytest.mark.parametrize("make", SEARCHING, ids=NAMES)
def test_a_search_without_a_loss_is_refused_with_the_code_to_write(make):
    model, (x, y) = mlp(5, 3), batch()
    optimizer = make(model, 1.0)
    F.cross_entropy(model(x), y).backward()
    with pytest.raises(RuntimeError, match=r"step\(evaluate=lambda"):
        optimizer.step()
    with pytest.raises(TypeError, match="one number"):
        optimizer.step(evaluate=lambda: model(x))


def test_invalid_arguments_are_refused():
    model, (x, y) = mlp(5, 3), batch()
    plain = SIBP(model)
    F.cross_entropy(model(x), y).backward()
    old = weights(model)
    with pytest.raises(ValueError, match="line_search=True, or leave evaluate out"):
        plain.step(evaluate=lambda: 1.0)
    with pytest.raises(ValueError, match="line_search=True, or leave loss out"):
        plain.step(loss=1.0)
    assert_equal(weights(model), old)
    for method in (SIBP, ProxBP):
        with pytest.raises(ValueError, match="direction_only"):
            method(model, line_search=True, direction_only=True)


@pytest.mark.parametrize("method", [SIBP, ProxBP])
def test_relative_weights_are_measured_in_mean_squared_rows(method):
    """One layer, whose rows are [a, 1]: lam by hand gives the same step."""
    x, y = batch()
    lam = 3.0 * float((x.square().sum(1) + 1).mean())
    one, two = mlp(5, 3), mlp(5, 3)
    for model, optimizer in (
        (one, method(one, 0.7, 3.0, prox_weight_scaling="relative")),
        (two, method(two, 0.7, lam)),
    ):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(weights(one), weights(two), rtol=1e-12, atol=0)


@pytest.mark.parametrize("solver", ["exact", "cg:3"])
def test_error_signals_through_the_old_weights_are_those_of_autograd(solver: str):
    """The lowest layer's input gets the loss's own gradient through old weights, and another through new ones."""
    x, y = batch()
    gradients: list[Any] = []
    for weights_ in ("old", "new"):
        model = mlp(5, 8, 8, 3)
        optimizer = SIBP(model, 1.0, solver=solver, backward_weights=weights_)
        moving = x.clone().requires_grad_()
        F.cross_entropy(model(moving), y).backward()
        gradients.append(moving.grad)
        with optimizer.paused():
            plain = x.clone().requires_grad_()
            F.cross_entropy(model(plain), y).backward()
    torch.testing.assert_close(gradients[0], plain.grad, rtol=1e-12, atol=1e-15)
    assert plain.grad is not None
    assert not torch.allclose(gradients[1], plain.grad, rtol=1e-3, atol=0)


@pytest.mark.parametrize("make", SEARCHING, ids=NAMES)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_empty_batch_leaves_no_trace(make, bad: float):
    """It affects neither the weights, nor the fallback's state, nor the length of later steps."""

    def start() -> tuple[nn.Module, Any]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).double()
        return model, make(model, 1.0)

    (clean, first), (hit, second) = start(), start()
    for seed in range(8):
        x, y = batch(seed)
        step(clean, first, x, y)
        step(hit, second, x, y)
        if seed in (2, 3):
            optimizer_state = copy.deepcopy(second.search_stats())
            with pytest.warns(RuntimeWarning, match="no step was taken") if seed == 2 else contextlib.nullcontext():
                step(hit, second, torch.full_like(x, bad), y)
            assert second.search_stats()["trials"] == 0 != optimizer_state["trials"]
    assert_equal(weights(clean), weights(hit))


def test_absurd_settings_and_inputs_train():
    """Any step size, features of any scale, a sum as loss, one sample, identical samples."""
    x, y = batch(0, 60)
    cases: dict[str, tuple[float, Tensor, Tensor, float]] = {
        "tiny lr": (1e-8, x, y, 0.0),
        "huge lr": (1e8, x, y, 0.5),
        "large features": (10.0, 1e4 * x, y, 0.1),
        "small features": (10.0, 1e-4 * x, y, 0.05),
        "one sample": (10.0, x[:1], y[:1], 0.5),
        "one sample, again and again": (10.0, x[:1].expand(60, -1), y, 0.01),
        "nothing but zeros": (10.0, torch.zeros_like(x), y, 0.01),
    }
    for name, (lr, inputs, labels, least) in cases.items():
        for reduction in ("mean", "sum"):
            model = mlp(5, 16, 16, 3, dtype=torch.float32)
            data, optimizer = inputs.float(), AutoSIBP(model, lr)
            scale = len(labels) if reduction == "sum" else 1
            before = loss_of(model, data, labels)
            for _ in range(30):
                optimizer.zero_grad()
                loss = scale * F.cross_entropy(model(data), labels)
                loss.backward()
                optimizer.step(evaluate=lambda: scale * F.cross_entropy(model(data), labels), loss=loss)  # noqa: B023
            after = loss_of(model, data, labels)
            assert all(p.isfinite().all() for p in model.parameters()), (name, reduction)
            assert after <= before, (name, reduction)
            assert before - after >= least * before or after < 0.05, (name, reduction, before, after)


def test_batches_of_one_sample_train():
    """Four well-separated classes, four hidden layers: long steps for one sample would unlearn all others."""
    x, y = clusters()
    model = mlp(10, *[32] * 4, 4, dtype=torch.float32)
    optimizer, start = AutoSIBP(model), loss_of(model, x, y)
    for part in torch.randperm(len(x), generator=torch.Generator().manual_seed(0))[:250].split(1):
        step(model, optimizer, x[part], y[part])
    assert loss_of(model, x, y) < 0.3 * start


def test_small_batches_start_with_reduced_trust():
    """16 rows suffice; accumulated batches count together."""
    for rows, trust in (([1], 1 / 16), ([4], 1 / 4), ([4, 8], 3 / 4), ([16], 1.0), ([300], 1.0)):
        model, optimizer = (found := mlp(5, 6, 3)), AutoSIBP(found)
        parts = [batch(seed, count) for seed, count in enumerate(rows)]
        for x, y in parts:
            F.cross_entropy(model(x), y).backward()
        optimizer.step(evaluate=lambda: sum(F.cross_entropy(model(x), y) for x, y in parts))  # noqa: B023
        assert optimizer.search_stats()["trust"] == trust


@pytest.mark.parametrize(("rows", "second", "trust"), [(25, 1, 0.5), (25, 0, 1.0), (4, 1, 0.2), (100, 1, 1.0)])
def test_a_second_small_batch_lowers_trust_unless_it_is_the_first_again(rows: int, second: int, trust: float):
    model = mlp(5, 6, 3)
    optimizer = AutoSIBP(model)
    optimizer.param_groups[0]["lr"] = optimizer.param_groups[0]["longest"] = 0.01  # the loss hardly falls
    step(model, optimizer, *batch(0, rows))
    step(model, optimizer, *batch(second, rows))
    assert optimizer.search_stats()["trust"] == pytest.approx(trust)


def test_noisy_batches_of_sixteen_lower_the_loss_of_all_data():
    """A step fits such a batch at once; its share of that step must not undo what earlier ones have learned."""
    generator = torch.Generator().manual_seed(1)
    x, W = torch.randn(600, 30, generator=generator), torch.randn(30, 5, generator=generator)
    y = (x @ W + 0.5 * torch.randn(600, 5, generator=generator)).argmax(1)
    model = mlp(30, 64, 5, dtype=torch.float32)
    optimizer, start = AutoSIBP(model), loss_of(model, x, y)
    for rows in torch.randint(600, (80, 16), generator=generator):
        step(model, optimizer, x[rows], y[rows])
    assert loss_of(model, x, y) < 0.4 * start


def clusters() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(4, 10, generator=generator)
    y = torch.randint(4, (400,), generator=generator)
    return means[y] + 0.3 * torch.randn(400, 10, generator=generator), y


def test_ten_hidden_layers_with_small_weights_train():
    """With torch's initialisation, samples differ by 1e-4 of a deep layer's features, and the slope is 1e-6."""
    x, y = clusters()
    model = mlp(10, *[32] * 10, 4, dtype=torch.float32)
    optimizer, start = AutoSIBP(model), loss_of(model, x, y)
    for rows in itertools.islice(itertools.cycle(torch.arange(400).split(50)), 60):
        step(model, optimizer, x[rows], y[rows])
    assert loss_of(model, x, y) < 0.7 * start


def test_vanishing_error_signals_lengthen_steps_and_ordinary_ones_do_not():
    """The step is lr max(1, r / 30), with r the mean square of the output's error signal over that of the layer's."""
    x, y = batch()
    for scale in (4.0, 1e-3):
        model = mlp(5, 8, 8, 3)
        with torch.no_grad():
            model.get_parameter("4.weight").mul_(scale)  # scales the error signals of the layers below
        optimizer, asked, sizes = AutoSIBP(model, lr=2.0), {}, {}
        plain = optimizer.neuron_step

        def keep(tap, problem, group, plain=plain, asked=asked, sizes=sizes) -> float:
            asked[tap.name] = plain(tap, problem, group)
            sizes[tap.name] = float(problem.D_z.square().sum())
            return asked[tap.name]

        optimizer.neuron_step = keep  # pyright: ignore[reportAttributeAccessIssue]
        F.cross_entropy(model(x), y).backward()
        for name, eta in asked.items():
            ratio = sizes["4"] / sizes[name]
            assert eta == pytest.approx(2.0 * max(ratio / 30, 1.0), rel=1e-9)
        assert (asked["0"] > 2.0) == (scale < 1)
