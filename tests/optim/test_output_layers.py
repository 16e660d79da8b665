"""Which layers count as a model's outputs, and that AutoSIBP's steps follow the one with the largest error signal."""

import itertools
from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sibp import SIBP, AutoSIBP
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap


class Watching(SIBP):
    """Notes which layers are outputs."""

    def _reset(self) -> None:
        super()._reset()
        self.seen: dict[str, bool] = {}

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        self.seen[tap.name] = problem.is_output
        return super().layer_update(tap, problem, group)


class Heads(nn.Module):
    """A body of two layers, and two heads; `small` runs last, and alone has a layer of its own before."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU())
        self.main = nn.Linear(16, 4)
        self.before = nn.Linear(16, 8)
        self.small = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = self.body(x)
        return {"main": F.log_softmax(self.main(h), 1), "small": [self.small(F.relu(self.before(h)))], "features": h}


class Checkpointed(nn.Module):
    """A module in a reentrant checkpoint."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return checkpoint(self.inner, x.requires_grad_(), use_reentrant=True)


def x_of(rows: int = 12) -> Tensor:
    return torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))


def whole(m: Heads) -> Tensor:
    """All results, and features that are also inputs of both heads."""
    found = m(x_of())
    return found["main"].sum() + found["small"][0].sum() + found["features"].sum()


def in_parts(m: Heads) -> Tensor:
    """Body and heads are called one after the other."""
    h = m.body(x_of())
    return m.main(h).sum() + m.small(F.relu(m.before(h))).sum()


def one_head(m: Heads) -> Tensor:
    """The other runs last, but the loss does not have it."""
    return m(x_of())["main"].sum()


def by_name(m: Heads) -> Tensor:
    """Without a call of the model: nothing is known but the order."""
    return m.small(F.relu(m.before(m.body.forward(x_of())))).sum()


def checkpointed_body(m: Heads) -> Tensor:
    """Behind the heads, the graph of the results has no layer."""
    m.body = Checkpointed(m.body)  # pyright: ignore[reportAttributeAccessIssue]
    return whole(m)


def frozen(m: Heads) -> Tensor:
    """A head that is not trained has no subproblem."""
    m.main.requires_grad_(False)
    return m.main(m.body(x_of())).sum()


class Results:
    """What a model returns, in a class of its own."""

    def __init__(self, **tensors: Tensor) -> None:
        vars(self).update(tensors)


class Hiding(Heads):
    """Returns an object, or nothing, and keeps its results."""

    kept: Any
    result: Any = None

    def forward(self, x: Tensor) -> Any:
        self.kept = super().forward(x)
        return self.result and (self.kept["features"], Results(**self.kept))


def hidden(m: Heads) -> Tensor:
    m.__class__ = Hiding
    m(x_of())
    return m.kept["main"].sum() + m.kept["small"][0].sum() + m.kept["features"].sum()


def in_an_object(m: Heads) -> Tensor:
    m.__class__, m.result = Hiding, True
    features, found = m(x_of())
    return found.main.sum() + found.small[0].sum() + features.sum()


def hidden_after_a_checkpoint(m: Heads) -> Tensor:
    """The graph of a reentrant checkpoint's layers ends at its result."""
    m.body = Checkpointed(m.body)  # pyright: ignore[reportAttributeAccessIssue]
    return in_an_object(m)


def after_an_interrupted_call(m: Heads) -> Tensor:
    """Torch does not report the end of a call that Ctrl-C has stopped."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    handle = m.small.register_forward_pre_hook(stop)
    with pytest.raises(KeyboardInterrupt):
        m(x_of())
    handle.remove()
    return whole(m)


CASES: list[tuple[Callable[[Heads], Tensor], set[str]]] = [
    (whole, {"main", "small"}),
    (in_parts, {"main", "small"}),
    (one_head, {"main"}),
    (by_name, {"small"}),
    (checkpointed_body, {"main", "small"}),
    (frozen, {"body.2"}),
    (after_an_interrupted_call, {"main", "small"}),
    (hidden, {"main", "small"}),
    (in_an_object, {"main", "small"}),
    (hidden_after_a_checkpoint, {"main", "small"}),
]


@pytest.mark.parametrize(("loss_of", "outputs"), CASES, ids=lambda case: getattr(case, "__name__", ""))
def test_outputs_reach_the_results_through_no_other_layer(loss_of: Callable[[Heads], Tensor], outputs: set[str]):
    torch.manual_seed(0)
    model = Heads()
    optimizer = Watching(model, lr=0.1, solver="exact")
    loss_of(model).backward()
    assert {name for name, output in optimizer.seen.items() if output} == outputs
    assert len(optimizer.seen) > len(outputs)


def test_in_a_checkpoint_of_the_whole_model_the_layer_that_ran_last_is_the_output():
    """The graph of the result has no layer."""
    torch.manual_seed(0)
    model = nn.Sequential(Checkpointed(nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3))))
    optimizer = Watching(model, lr=0.1, solver="exact")
    model(x_of()).sum().backward()
    assert optimizer.seen == {"0.inner.0": False, "0.inner.2": True}


def test_error_signals_are_compared_with_the_largest_of_the_outputs():
    """Otherwise a head of a tiny loss would make all other layers' steps tiny."""

    class Noting(AutoSIBP):
        steps: ClassVar[dict[str, float]] = {}

        def neuron_step(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> float:
            self.steps[tap.name] = super().neuron_step(tap, problem, group)
            return self.steps[tap.name]

    torch.manual_seed(0)
    model = Heads()
    optimizer = Noting(model, lr=1.0)
    found = model(x_of())
    (F.nll_loss(found["main"], torch.arange(12) % 4) + 1e-6 * found["small"][0].sum()).backward()
    steps = optimizer.steps
    assert steps["main"] == steps["small"] == 1
    assert 1 <= steps["body.2"] <= steps["body.0"] < 2  # signals there are some 30 times smaller, as is normal


@pytest.mark.parametrize("weight", [1e-2, 1e-6])
@pytest.mark.parametrize("last", ["small", "main"])
def test_a_head_with_a_small_part_of_the_loss_may_run_last(weight: float, last: str):
    torch.manual_seed(0)
    x = torch.randn(400, 8, generator=torch.Generator().manual_seed(1))
    y = (x[:, :3] > 0).sum(1)
    body = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    heads = nn.ModuleDict({name: nn.Linear(64, 4) for name in ("main", "small")})
    model = nn.ModuleDict({"body": body, "heads": heads})
    order = ("small", "main") if last == "main" else ("main", "small")
    optimizer = AutoSIBP(model)

    def losses(rows: Tensor) -> dict[str, Tensor]:
        h = body(x[rows])
        logits = {name: heads[name](h) for name in order}
        return {
            "main": F.cross_entropy(logits["main"], y[rows]),
            "small": F.cross_entropy(logits["small"], y[rows] % 2),
        }

    def loss_of(rows: Tensor) -> Tensor:
        found = losses(rows)
        return found["main"] + weight * found["small"]

    for rows in itertools.islice(itertools.cycle(torch.arange(400).split(50)), 80):
        optimizer.zero_grad()
        loss_of(rows).backward()
        optimizer.step(evaluate=lambda rows=rows: loss_of(rows))
    assert losses(torch.arange(400))["main"].item() < 0.1
