"""The table of losses in docs/howto/losses.md: with its `loss_average`, each gives the summed loss's step."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP

F64 = torch.float64
B, T, C = 6, 4, 5
ETA, LAM = 0.7, 3.0
IGNORED = -100


@dataclass(frozen=True)
class Row:
    """One row of the table.

    Attributes:
        name: as on the page.
        loss: of outputs (B, T, C) or (B, C), as users write it.
        summed: the same before it is averaged.
        loss_average: what the page says.
        tokens: whether there is an axis of tokens.
    """

    name: str
    loss: Callable[[Tensor], Tensor]
    summed: Callable[[Tensor], Tensor]
    loss_average: bool | int
    tokens: bool = False


labels = torch.arange(B) % C
words = (torch.arange(B * T) * 7 % C).view(B, T)
some = words.masked_fill(torch.arange(B * T).view(B, T) % 3 == 0, IGNORED)
target = torch.linspace(-1, 1, B * C, dtype=F64).view(B, C)
bits = (target > 0).to(F64)


def over_tokens(z: Tensor, y: Tensor, reduction: str) -> Tensor:
    return F.cross_entropy(z.flatten(0, 1), y.flatten(), reduction=reduction)


ROWS = [
    Row(
        "mean over samples",
        lambda z: F.cross_entropy(z, labels),
        lambda z: F.cross_entropy(z, labels, reduction="sum"),
        True,
    ),
    Row(
        "sum over samples",
        lambda z: F.cross_entropy(z, labels, reduction="sum"),
        lambda z: F.cross_entropy(z, labels, reduction="sum"),
        False,
    ),
    Row(
        "sum over outputs, mean over samples",
        lambda z: (z - target).square().sum(1).mean(),
        lambda z: (z - target).square().sum(),
        True,
    ),
    Row(
        "mean over samples, divided by the number of accumulated batches",
        lambda z: F.cross_entropy(z, labels) / 4,
        lambda z: F.cross_entropy(z, labels, reduction="sum"),
        4 * B,
    ),
    Row(
        "mean over some of the samples",
        lambda z: F.cross_entropy(z[::2], labels[::2]),
        lambda z: F.cross_entropy(z[::2], labels[::2], reduction="sum"),
        len(labels[::2]),
    ),
    Row(
        "mean over all elements",
        lambda z: F.mse_loss(z, target),
        lambda z: F.mse_loss(z, target, reduction="sum"),
        B * C,
    ),
    Row(
        "binary mean over all elements",
        lambda z: F.binary_cross_entropy_with_logits(z, bits),
        lambda z: F.binary_cross_entropy_with_logits(z, bits, reduction="sum"),
        B * C,
    ),
    Row(
        "mean over tokens",
        lambda z: over_tokens(z, words, "mean"),
        lambda z: over_tokens(z, words, "sum"),
        B * T,
        tokens=True,
    ),
    Row(
        "mean over the tokens that count",
        lambda z: over_tokens(z, some, "mean"),
        lambda z: over_tokens(z, some, "sum"),
        int((some != IGNORED).sum()),
        tokens=True,
    ),
]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
@pytest.mark.parametrize("set_later", [False, True])
def test_the_step_is_that_of_the_summed_loss(row: Row, set_later: bool):
    """A dense oracle: [W, b] - (Phi^T Phi + lam)^-1 Phi^T eta D, with D the gradient of the summed loss."""
    torch.manual_seed(0)
    layer = nn.Linear(3, C, dtype=F64)
    x = torch.randn(B, T, 3, dtype=F64) if row.tokens else torch.randn(B, 3, dtype=F64)
    optimizer = SIBP(nn.Sequential(layer), ETA, LAM, "exact", loss_average=True if set_later else row.loss_average)
    optimizer.loss_average = row.loss_average  # it may change from batch to batch, as the number of tokens does
    row.loss(optimizer.model(x)).backward()
    z = F.linear(x, layer.weight, layer.bias).detach().requires_grad_()
    (D,) = torch.autograd.grad(row.summed(z), z)
    phi = torch.cat([x, torch.ones_like(x[..., :1])], -1).flatten(0, -2)
    V = torch.linalg.solve(phi.T @ phi + LAM * torch.eye(4, dtype=F64), phi.T @ (ETA * D.flatten(0, -2)))
    torch.testing.assert_close(layer.weight.grad, V[:-1].T, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(layer.bias.grad, V[-1], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("remedy", ["the loss times k", "k times the rows"])
def test_a_frameworks_division_is_undone(remedy: str):
    """Micro-batches, the last of them shorter, whose losses a framework has divided by their number k."""
    sizes = (4, 4, 2)
    k, parts = len(sizes), [(torch.randn(n, 3, dtype=F64), torch.arange(n) % C) for n in sizes]

    def steps(divided: bool) -> list[Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, C)).double()
        optimizer = SIBP(model, ETA, LAM, "cg:3")
        for x, y in parts:
            loss = F.cross_entropy(model(x), y)
            if divided and remedy == "the loss times k":
                loss = k * loss
            elif divided:
                optimizer.loss_average = k * len(x)
            (loss / k if divided else loss).backward()
        optimizer.step()
        return [p.detach() for p in model.parameters()]

    for got, wanted in zip(steps(divided=True), steps(divided=False), strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("parts", [2, 4])
@pytest.mark.parametrize("solver", ["exact", "cg:3"])
def test_accumulated_micro_batches_approach_the_step_of_the_full_batch(parts: int, solver: str):
    """The mean loss of each micro-batch as it is: for a large proximal weight the steps add up to the full batch's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, C)).double()
    x, y = torch.randn(12, 3, dtype=F64), torch.arange(12) % C
    SIBP(model, ETA, 1e7, solver, backward_weights="old", direction_only=True)
    steps = []
    for chunks in (1, parts):
        model.zero_grad()
        for rows, targets in zip(x.chunk(chunks), y.chunk(chunks), strict=True):
            F.cross_entropy(model(rows), targets).backward()
        steps.append([p.grad.clone() for p in model.parameters()])  # pyright: ignore[reportOptionalMemberAccess]
    for whole, sum_of_parts in zip(*steps, strict=True):
        torch.testing.assert_close(whole, sum_of_parts, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))


def test_accumulated_steps_are_longer_than_the_full_batchs_where_the_proximal_weight_is_small():
    """The other end, as the page says: each part goes the whole way, so the sum goes `parts` times as far."""
    torch.manual_seed(0)
    layer = nn.Linear(30, C, dtype=F64)
    x, y = torch.randn(3, 30, dtype=F64), torch.arange(3) % C
    SIBP(nn.Sequential(layer), ETA, 1e-6, "exact", direction_only=True)
    steps = []
    for copies in (1, 4):
        layer.zero_grad()
        for _ in range(copies):
            F.cross_entropy(layer(x), y).backward()
        steps.append(layer.weight.grad.clone())  # pyright: ignore[reportOptionalMemberAccess]
    torch.testing.assert_close(4 * steps[0], steps[1])


def test_every_row_of_the_page_is_tested_here():
    page = (Path(__file__).parents[2] / "docs" / "howto" / "losses.md").read_text()
    table = page.partition("| --- | --- |\n")[2].partition("\n\n")[0].splitlines()
    said = [row.rpartition(" | ")[2].strip(" |`").split("`")[0] for row in table]
    counted = ["the number of tokens that are not ignored", "the number of these samples", "k * B"]
    assert said == ["True", "True", "False", "B * n", "B * T", *counted]
    assert len(ROWS) == len(said) + 1  # two losses are means over all elements


def test_class_weights_are_summed():
    """As the page says: `reduction="sum"` and `loss_average=False`, where the mean's divisor is no whole number."""
    weights = torch.tensor([0.5, 1.5, 2.0, 0.25, 1.0], dtype=F64)
    steps = []
    for loss_average, scale in ((False, 1.0), (True, 1 / B)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, C, dtype=F64))
        SIBP(model, ETA, LAM, "exact", loss_average=loss_average, direction_only=True)
        x = torch.randn(B, 3, dtype=F64)
        (scale * F.cross_entropy(model(x), labels, weight=weights, reduction="sum")).backward()
        steps.append(model[0].weight.grad)
    torch.testing.assert_close(*steps, rtol=1e-10, atol=1e-13)


def test_means_over_different_counts_add_up_as_sums_over_samples():
    """As the page says: each term a sum over what it averages over, all divided by the number of samples, and True."""
    steps = []
    for loss_average, scale in ((True, 1 / B), (False, 1.0)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, C, dtype=F64))
        SIBP(model, ETA, LAM, "exact", loss_average=loss_average, direction_only=True)
        z = model(torch.randn(B, 3, dtype=F64))
        terms = F.cross_entropy(z, labels, reduction="sum") + 0.3 * F.mse_loss(z, target, reduction="sum")
        (scale * terms).backward()
        steps.append(model[0].weight.grad)
    torch.testing.assert_close(*steps, rtol=1e-10, atol=1e-13)


class Experts(nn.Module):
    """Two experts, each on its own samples, before the router and the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.experts = nn.ModuleList(nn.Linear(4, 5, dtype=F64) for _ in range(2))
        self.router, self.head = nn.Linear(4, 2, dtype=F64), nn.Linear(5, C, dtype=F64)

    def forward(self, x: Tensor) -> Tensor:
        chosen = (x[:, 0] > 0).long()
        h = x.new_zeros(len(x), 5)
        for k, expert in enumerate(self.experts):
            h = h.index_add(0, (chosen == k).nonzero().flatten(), expert(x[chosen == k]))
        return self.head(self.router(x).softmax(1).gather(1, chosen[:, None]) * torch.tanh(h))


def test_a_first_layer_with_other_rows_than_the_models_input_is_named_once():
    """A wrong number of terms raises no error, and would scale lr."""
    x = torch.linspace(-1, 1, 4 * B, dtype=F64).view(B, 4)  # half of the samples for each expert
    model = Experts()
    optimizer = SIBP(model)
    with pytest.warns(RuntimeWarning, match=r"'experts.0', .* has 3 rows, but the model's input has 6. Set loss_av"):
        F.cross_entropy(model(x), labels).backward()
    F.cross_entropy(model(x), labels).backward()  # shown once
    optimizer.step()
    model = Experts()
    optimizer = SIBP(model, loss_average=B)
    F.cross_entropy(model(x), labels).backward()
    optimizer.step()


@pytest.mark.parametrize("call", ["positional", "by name", "two inputs", "a single sample", "in parts"])
def test_a_first_layer_with_the_rows_of_the_models_input_is_not_named(call: str):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 5), nn.Linear(5, C)

        def forward(self, x: Tensor, scale: Tensor | float = 1.0, mask: Tensor | None = None) -> Tensor:
            h = torch.relu(self.first(torch.atleast_2d(x)))
            return self.last(h * scale * (1.0 if mask is None else mask))

    model, x = Net(), torch.ones(B, 4)
    optimizer = SIBP(model)
    calls: dict[str, Callable[[], Tensor]] = {
        "positional": lambda: model(x, torch.tensor(2.0)),
        "by name": lambda: model(x=x, scale=torch.tensor(2.0)),
        "two inputs": lambda: model(x, mask=torch.ones(5)),  # of different leading dimensions
        "a single sample": lambda: model(x[0]),
        "in parts": lambda: model.last(torch.relu(model.first(x))),
    }
    calls[call]().square().sum().backward()
    optimizer.step()


def test_a_first_layer_on_all_inputs_together_is_named():
    """Labelled and unlabelled samples, say: the loss does not tell which of them it averages over."""

    class Together(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, C)

        def forward(self, x: Tensor, more: Tensor) -> Tensor:
            return self.layer(torch.cat([x, more]))

    model = Together()
    optimizer = SIBP(model)
    with pytest.warns(RuntimeWarning, match="'layer', .* has 5 rows, but the model's input has 2 and 3"):
        model(torch.ones(3, 4), torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
