"""What a single batch's loss cannot do to the length of AutoSIBP's steps."""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sibp import AutoSIBP
from sibp.optim.search import MAX_TRIALS, SearchStatus, backtrack, halve_while_decreasing, minimise

SURPRISE = 3.0  # as documented


def model() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 3)).double()


def batch(seed: int) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(20, 6, generator=g, dtype=torch.float64), torch.randint(3, (20,), generator=g)


def step(
    net: nn.Module,
    optimizer: AutoSIBP,
    seed: int,
    scale: float = 1.0,
    offset: float = 0.0,
    trials: Callable[[], float] | None = None,
) -> dict[str, float]:
    """A step on scale * (a batch's loss) + offset; `trials` replaces the losses that the trials find."""
    x, y = batch(seed)

    def evaluate() -> Tensor:
        return scale * F.cross_entropy(net(x), y) + offset

    optimizer.zero_grad()
    loss = evaluate()
    loss.backward()
    optimizer.step(evaluate=trials or evaluate, loss=loss)
    return optimizer.search_stats()


def ever_lower() -> Callable[[], float]:
    """Losses that fall with every trial."""
    falling = itertools.count(1)
    return lambda: -float(next(falling))


@pytest.mark.parametrize(("scale", "grows"), [(1e-6, False), (0.02, False), (0.5, True)])
def test_a_batch_that_promises_little_cannot_lengthen_steps(scale: float, grows: bool):
    """Although its loss falls at any length. The last case promises half of what the others do, which is enough."""
    net = model()
    optimizer = AutoSIBP(net)
    for number in range(6):  # steps 0 and 3 measure the length
        reach = step(net, optimizer, seed=number)["reach"]
    found = step(net, optimizer, seed=6, scale=scale, trials=ever_lower())["reach"]
    assert found > 1.5 * reach if grows else found == pytest.approx(reach)


@pytest.mark.parametrize(("offset", "earlier", "grows"), [(0.05, 1e-5, True), (1.0, 1e-5, False), (1.0, 1e-7, True)])
def test_a_small_promise_lengthens_steps_where_batches_are_much_alike(offset: float, earlier: float, grows: bool):
    """As where gradients vanish, and batches differ by less than a tenth of the loss, but by more than steps change.

    Where they differ more, a batch lengthens steps only if its slope is at least as large as those of earlier ones.
    """
    net = model()
    optimizer = AutoSIBP(net, lr=1e9)
    optimizer.init_search_state()
    next(iter(optimizer.state.values()))["search_unit"] = 1.0  # although this loss is large for its error signals
    for number in range(6):
        reach = step(net, optimizer, seed=number, scale=earlier, offset=1 + offset * (number % 2))["reach"]
    found = step(net, optimizer, seed=6, scale=1e-6, offset=1, trials=ever_lower())["reach"]
    assert found > 1.5 * reach if grows else found == pytest.approx(reach)


@pytest.mark.parametrize("short", [1e-3, 1e-6])
def test_steps_that_have_become_too_short_grow_again(short: float):
    """Such steps promise little on every batch, and these batches' losses differ by more than a tenth."""
    net = model()
    optimizer = AutoSIBP(net)
    for number in range(6):
        usual = step(net, optimizer, seed=number)["reach"]
    optimizer._search_state()["search_reach"] = short * usual
    for number in range(6, 60):
        reach = step(net, optimizer, seed=number)["reach"]
    assert reach > 0.1 * usual


def test_steps_that_bfloat16_hides_grow_again():
    """Weights are rounded to bfloat16: steps that are far too short leave the loss exactly as it was."""
    net, (x, y) = model().float(), batch(0)
    optimizer = AutoSIBP(net)

    def evaluate() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(net(x.float()), y)

    start = evaluate().item()
    optimizer._search_state()["search_reach"] = 1e-8
    for _ in range(45):
        optimizer.zero_grad()
        evaluate().backward()
        optimizer.step(evaluate=evaluate)
    assert evaluate().item() < 0.9 * start


@pytest.mark.parametrize("times", [0.9 * SURPRISE, 1.1 * SURPRISE])
def test_a_length_is_halved_where_the_loss_is_much_larger_than_that_of_the_measured_batch(times: float):
    """The loss is lowest at a quarter of the length, which is reached by halving only."""
    net = model()
    optimizer = AutoSIBP(net)
    x, y = batch(0)
    measured = F.cross_entropy(net(x), y).item()
    first = step(net, optimizer, seed=0)
    losses = iter([0.3, 0.2, 0.1, 0.2])
    found = step(net, optimizer, seed=0, scale=0.0, offset=times * measured, trials=lambda: next(losses))
    reused = first["reach"] / 10 * found["trust"]
    surprised = times > SURPRISE
    assert found["step"] == pytest.approx(reused / 4 if surprised else reused)
    assert found["trials"] == (4 if surprised else 1)
    assert found["status"] == (SearchStatus.SHORTENED if surprised else SearchStatus.TAKEN)


def test_nearer_stops_at_the_lowest_of_the_halved_lengths():
    tried = []

    def phi(alpha: float) -> float:
        tried.append(alpha)
        return abs(alpha - 0.13)

    found = halve_while_decreasing(phi, backtrack(phi, 1.0, 1.0))
    assert (found.alpha, found.loss, found.trials) == (0.125, phi(0.125), 5)
    assert tried[:5] == [1.0, 0.5, 0.25, 0.125, 0.0625]
    refused = backtrack(lambda _: 2.0, 1.0, 1.0)
    assert halve_while_decreasing(phi, refused) == refused
    assert halve_while_decreasing(lambda alpha: alpha, backtrack(lambda alpha: alpha, 2.0, 1.0)).trials == MAX_TRIALS


def test_a_minimum_too_far_away_is_taken_to_be_at_the_limit():
    def phi(alpha: float) -> float:
        return (alpha - 1) ** 2

    found = minimise(phi, 1.0, 0.25, slope=-2.0, trust=0.5, farthest=0.25)
    assert (found.alpha, found.optimum) == (0.125, 0.25)


def test_a_length_that_never_suffices_is_not_taken_whole():
    """A loss that stays along a slope that promises a decrease: the shortest length tried is taken, not the longest."""
    tried = []

    def phi(alpha: float) -> float:
        tried.append(alpha)
        return 1.0

    found = minimise(phi, 1.0, 1.0, slope=-1.0)
    assert found.trials == len(tried) == MAX_TRIALS
    assert found.alpha == min(tried)
    assert found.status is SearchStatus.SHORTENED


@pytest.mark.parametrize("lr", [10.0, 1e6])
def test_rare_samples_of_a_large_weight_do_not_raise_the_loss_of_all(lr: float):
    """Batches without the rare class have a small loss, which lengths of any size lower."""
    images, digits = (torch.tensor(each) for each in load_digits(return_X_y=True))
    kept = torch.cat([(digits != 8).nonzero()[:, 0], (digits == 8).nonzero()[:16, 0]])
    x, y = images[kept].float() / 16, (digits[kept] == 8).float().unsqueeze(1)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 1))
    optimizer = AutoSIBP(net, lr=lr)

    def loss_of(rows: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(net(x[rows]), y[rows], pos_weight=torch.tensor(100.0))

    everything = torch.arange(len(x))
    start = loss_of(everything).item()
    for _ in range(300):
        rows = torch.randint(len(x), (50,))
        optimizer.zero_grad()
        loss_of(rows).backward()
        optimizer.step(evaluate=lambda rows=rows: loss_of(rows))
    assert loss_of(everything).item() < start / 4
