"""torch.compile of a training step that contains `backward`: the same as the plain one."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo import compiled_autograd

from sibp import SIBP, AutoSIBP, ProxBP

F64 = torch.float64
# Raised by the compiler when it inspects tensors left over from an eager step.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(5, 6, dtype=F64), nn.BatchNorm1d(6, dtype=F64), nn.ReLU(), nn.Linear(6, 3, dtype=F64)
    )


def trained(method, wrap: Callable, inside: str) -> list[Tensor]:
    """The weights after three steps; `wrap` is applied to the parts named in `inside`."""
    model = net()
    optimizer = method(model, lr=0.5)
    x, y = torch.linspace(-1, 1, 40, dtype=F64).reshape(8, 5).sin(), torch.arange(8) % 3
    parts = {
        "zero": optimizer.zero_grad,
        "backward": lambda: F.cross_entropy(model(x), y).backward(),
        "step": optimizer.step,
    }

    def run() -> None:
        for name in inside.split():
            parts[name]()

    run = wrap(run)
    for _ in range(3):
        for name, part in parts.items():
            if name == "backward":
                run()
            elif name not in inside:
                part()
    return [p.detach() for p in model.parameters()]


def by_compiled_autograd(run: Callable) -> Callable:
    """Uses the fastest backend, as only the traced calls matter here, not torch's code generation."""

    def step() -> None:
        with compiled_autograd._enable(lambda graph: torch.compile(graph, backend="eager"), dynamic=False):
            run()

    return step


class Cut(nn.Module):
    """Flattens time into the batch where no graph leads back to the layers before."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(5, 6, dtype=F64), nn.Linear(6, 3, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).detach()
        return self.b(h.flatten(0, 1)).reshape(*x.shape[:2], 3).mean(1)


@pytest.mark.parametrize(
    "compiled",
    [
        lambda m: torch.compile(m, backend="eager"),
        lambda m: (m.compile(backend="eager"), m)[1],
        lambda m: torch.compile(lambda x: m(x), backend="eager"),
    ],
    ids=["model", "in place", "inside a function"],
)
def test_a_model_compiled_afterwards_has_the_whole_batch(compiled: Callable):
    torch._dynamo.reset()
    found = []
    for wrap in (lambda m: m, compiled):
        model = Cut()
        optimizer = SIBP(model, lr=0.5)
        F.cross_entropy(
            wrap(model)(torch.linspace(-1, 1, 120, dtype=F64).reshape(4, 6, 5).sin()), torch.arange(4) % 3
        ).backward()
        found.append(model.b.weight.grad)
        optimizer.step()
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("method", "inside"),
    [
        (SIBP, "backward"),
        (SIBP, "zero backward"),
        (SIBP, "backward step"),
        (ProxBP, "zero backward step"),
    ],
)
def test_a_compiled_step_equals_the_eager_one(method, inside: str):
    torch._dynamo.reset()
    compiled = trained(method, lambda run: torch.compile(run, backend="eager"), inside)
    for p, q in zip(compiled, trained(method, lambda run: run, inside), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("make", [lambda m: SIBP(m, 0.5, solver="cg:3"), AutoSIBP], ids=["cg:3", "auto"])
def test_a_whole_compiled_step_takes_batches_of_any_size(make: Callable):
    torch._dynamo.reset()
    found = []
    for wrap in (lambda step: step, lambda step: torch.compile(step, backend="eager")):
        model = net().float()
        optimizer = make(model)

        def step(x: Tensor, y: Tensor, model=model, optimizer=optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            given = {"evaluate": lambda: F.cross_entropy(model(x), y), "loss": loss} if optimizer.line_search else {}
            optimizer.step(**given)
            return loss.detach()

        step = wrap(step)
        sizes = [torch.linspace(-1, 1, 5 * rows).reshape(rows, 5).sin() for rows in (8, 8, 5, 8)]
        losses = [float(step(x, torch.arange(len(x)) % 3)) for x in sizes]
        found.append([torch.tensor(losses), *(p.detach() for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


@pytest.mark.filterwarnings("ignore:Skipping serialization of:UserWarning")  # torch 2.6, about its own configuration
def test_compiled_autograd_equals_the_eager_one():
    torch._dynamo.reset()
    if torch.__version__.startswith("2.6."):  # its compiled autograd calls a layer's backward twice
        with pytest.raises(RuntimeError, match="runs more than once"):
            trained(SIBP, by_compiled_autograd, "backward")
        return
    for p, q in zip(
        trained(SIBP, by_compiled_autograd, "backward"), trained(SIBP, lambda run: run, "backward"), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=1e-12, atol=1e-14)


def test_fullgraph_is_also_refused_after_the_model_was_traced():
    """The compiler's own error comes first; after `torch.compiler.reset` ours appears. No weight has moved."""
    model = net()
    optimizer = SIBP(model)
    x, y = torch.randn(8, 5, dtype=F64), torch.arange(8) % 3
    torch.compile(model, backend="eager")(x)
    before = [p.detach().clone() for p in model.parameters()]
    for reset in (False, True):
        # The second alternative is torch 2.6's message for an exception in traced code.
        with pytest.raises(Exception, match="cannot be compiled|Observed exception" if reset else None):
            torch.compile(model, backend="eager", fullgraph=True)(x)
        torch.compiler.reset()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
    F.cross_entropy(model(x), y).backward()  # the plain model trains on
    optimizer.step()
    optimizer.remove()
    assert torch.compile(model, backend="eager", fullgraph=True)(x).shape == (8, 3)


def test_another_optimizer_s_compiled_step_passes_the_guard_of_a_direction():
    """The guard inspects stack frames, which the compiler cannot trace and would warn about."""
    direction = SIBP(net(), direction_only=True)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    expected = [p - 0.1 for p in model.parameters()]
    torch.compile(optimizer.step, backend="eager")()
    assert direction.direction_only
    for p, q in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(p, q)
