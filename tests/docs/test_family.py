"""The table of the family on docs/arena.md: all methods of the arena, with costs that are counted here."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from sibp.experiment.models import build_model
from sibp.experiment.optimizers import build_optimizer
from sibp.prox.kernels import disabled
from sibp.tuning.sweep import Method, read_sweep

PAGE = Path(__file__).parents[2] / "docs" / "arena.md"
NETS = {"784-500-10": [500], "784-200-200-200-200-10": [200] * 4}
WARM_UP, BATCH = 2, 100


def rows() -> dict[str, list[str]]:
    table = PAGE.read_text().partition("<!-- family -->\n")[2].partition("<!-- end of family -->")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {row[0].strip("`"): row for row in cells}


METHODS = {method.name: method for method in read_sweep("arena", []).methods}


def numbers_in(node: Any, seen: set[int]) -> int:
    if isinstance(node, torch.Tensor):
        new = id(node) not in seen
        seen.add(id(node))
        return node.numel() if new else 0
    parts = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return sum(numbers_in(part, seen) for part in parts)


def counted(method: Method, hidden: list[int]) -> tuple[float, float]:
    """Operations of matrix products a step, the mean over a period of the method, and numbers kept for each weight."""
    steps = method.config["optimizer"].get("every", 1)
    torch.manual_seed(0)
    settings = {"name": "mlp", "hidden": hidden, "init": "default", "init_std": None}
    model = build_model(settings, (784,), 10, 0)
    optimizer = build_optimizer(method.config["optimizer"], model)
    x, y = torch.randn(BATCH, 784), torch.randint(10, (BATCH,))

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with disabled():  # so that all products are torch's
        for _ in range(WARM_UP):
            optimizer.step(closure)
        with FlopCounterMode(display=False) as counter:
            for _ in range(steps):
                optimizer.step(closure)
    weights = sum(p.numel() for p in model.parameters())
    return counter.get_total_flops() / steps, numbers_in(optimizer.state_dict()["state"], set()) / weights


@pytest.fixture(scope="module")
def of_sgd() -> list[tuple[float, float]]:
    return [counted(METHODS["sgd"], hidden) for hidden in NETS.values()]


def test_the_family_is_all_that_is_in_the_arena():
    assert list(rows()) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_costs_match_the_table(name, of_sgd):
    products, state = [], []
    for hidden, base in zip(NETS.values(), of_sgd, strict=True):
        found = counted(METHODS[name], hidden)
        products.append(f"{found[0] / base[0]:.1f}")
        state.append(f"{found[1]:.1f}")
    assert rows()[name][4:6] == [" / ".join(products), " / ".join(state)]


@pytest.mark.parametrize("name", METHODS)
def test_which_weights_carry_the_error_signal(name):
    """Only through new weights does the first layer depend on the last layer's step in the same backward pass."""
    trained, frozen = (first_layers_gradient(METHODS[name], moves) for moves in (True, False))
    said = rows()[name][3]
    if "learned inverse" in said:
        assert name == "dtp"
        return
    assert ("**new**" in said) == (not torch.allclose(trained, frozen, rtol=1e-9, atol=0))
    assert ("**new**" in said) != (said == "old weights")


def first_layers_gradient(method: Method, last_layer_moves: bool) -> torch.Tensor:
    """The content of `.grad` after a backward pass: the gradient, or the step itself."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3)).double()
    model[2].requires_grad_(last_layer_moves)
    x, y = torch.randn(8, 6).double(), torch.randint(3, (8,))
    optimizer = build_optimizer(method.config["optimizer"], model)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    gradient = model[0].weight.grad
    assert gradient is not None
    assert gradient.abs().max() > 0
    return gradient
