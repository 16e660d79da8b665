"""Limit points of the methods, and the gradient of the loss there: full batches in float64.

    python scripts/stationary.py --out runs/stationary

Every problem has a finite optimum, because its labels are contradictory. A run ends when a step is shorter than `REST`
times the first one (it is then at rest) or after `STEPS` steps. limits.json, all values relative to the run's start:

- ``tanh``, ``relu``: one row per run at rest, by activation. ``gradient``: norm of the gradient of the loss from back
  propagation. ``moved``: length of the last step. ``path``: both during the run.
- ``wandering``: runs that did not come to rest, and so say nothing about limit points.
- ``stays``: runs that started at a stationary point, found by L-BFGS. ``step``: the distance from it after one step,
  and ``drift``: after `STAY` steps, both relative to the first step from the usual start. If a method's steps are too
  long for the curvature there, the point is unstable, and rounding errors grow with every step. Only for problems on
  which L-BFGS reduces the gradient below `FOUND` times that at its start.

- ``kinks``: more about the rows of ``relu`` with one hidden layer. ReLU has no unique slope at its kink, 0, where back
  propagation takes 0. ``near``: number of pre-activations that ended within `NEAR` of it. ``subgradient``: the least
  norm of a gradient with slopes from 0 to 1 there, which is 0 at a stationary point in the sense of Clarke. ``falls``:
  the largest relative decrease of the loss along it, over many step lengths.
"""

import argparse
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sibp import SIBP, ProxBP

ETA, LAM, SEEDS = 1.0, 1.0, range(5)
REST, STEPS, STAY, NEAR, FOUND = 1e-10, 1000, 100, 1e-4, 1e-9
METHODS: dict[str, tuple[type[SIBP] | type[ProxBP], str]] = {
    "sibp exact": (SIBP, "exact"),
    "sibp cg:5": (SIBP, "cg:5"),
    "sibp cg:20": (SIBP, "cg:20"),
    "sibp paper": (SIBP, "paper"),
    "proxbp exact": (ProxBP, "exact"),
    "proxbp cg:5": (ProxBP, "cg:5"),
}
ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """One image of every digit, four times, with contradictory, smoothed labels: (40, 64) and (40, 10)."""
    images, labels = load_digits(return_X_y=True)
    images, random = (images - images.mean(0)) / 4, np.random.default_rng(seed)
    chosen = [random.choice(np.flatnonzero(labels == k)) for k in range(10)]
    return torch.tensor(images[chosen]).repeat_interleave(4, 0), 0.6 * _contradictory_labels(10, 10) + 0.04


def points(seed: int) -> tuple[Tensor, Tensor]:
    """Five points, four times, with contradictory labels: (20, 4) and (20, 3)."""
    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(seed))
    return x.repeat_interleave(4, 0), _contradictory_labels(5, 3)


def crowd(seed: int) -> tuple[Tensor, Tensor]:
    """Thirty points with random labels, too many for the network to fit: (30, 2) and (30, 3)."""
    random = torch.Generator().manual_seed(seed)
    return torch.randn(30, 2, generator=random), torch.randn(30, 3, generator=random).softmax(1)


def _contradictory_labels(count: int, classes: int) -> Tensor:
    """Four labels per point: twice its class, and once each of the next two classes."""
    k = torch.arange(count)
    return F.one_hot(torch.stack([k, k, k + 1, k + 2], 1).ravel() % classes, classes).to(torch.float64)


PROBLEMS: dict[str, tuple[Callable[[int], tuple[Tensor, Tensor]], tuple[int, ...]]] = {
    "digits, 64-16-10": (digits, (64, 16, 10)),
    "points, 4-10-10-3": (points, (4, 10, 10, 3)),
    "crowd, 2-3-3": (crowd, (2, 3, 3)),
}


def network(sizes: tuple[int, ...], activation: str, seed: int) -> nn.Sequential:
    """Linear layers with the activation between them, as torch initialises them.

    Args:
        sizes: widths, input first.
        activation: one of `ACTIVATIONS`.
        seed: of the weights.
    """
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for n, m in pairwise(sizes):
        layers += [nn.Linear(n, m), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The summed loss."""
    return F.cross_entropy(model(x), y, reduction="sum")


def gradient(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The gradient of the summed loss, as one vector."""
    return torch.cat([g.ravel() for g in torch.autograd.grad(loss_of(model, x, y), list(model.parameters()))])


def position(model: nn.Module) -> Tensor:
    """All parameters as one vector."""
    return torch.cat([p.detach().ravel() for p in model.parameters()])


def run(method: str, model: nn.Module, x: Tensor, y: Tensor, steps: int = STEPS) -> dict[str, Any]:
    """Train until the steps are tiny.

    Args:
        method: one of `METHODS`.
        model: changed in place.
        x: inputs.
        y: labels, probabilities.
        steps: maximum number of steps.

    Returns:
        Values relative to the start, and the length of the first step.
    """
    kind, solver = METHODS[method]
    optimizer = kind(model, lr=ETA, prox_weight=LAM, solver=solver, loss_average=False)
    marks = {int(step) for step in np.geomspace(1, steps, 24)}
    path, first, step, moved = [], (0.0, 0.0), 0, math.inf

    def relative(values: tuple[float, float]) -> list[float]:
        return [a / b if b else 0.0 for a, b in zip(values, first, strict=True)]  # started at rest: 0

    while step < steps:
        optimizer.zero_grad()
        loss_of(model, x, y).backward()
        moved = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters() if p.grad is not None))
        if step == 0 or step in marks or moved <= REST * first[0]:
            with optimizer.paused():
                slope = gradient(model, x, y).norm().item()
            first = first if step else (moved, slope)
            path.append([step, *(float(f"{value:.4g}") for value in relative((moved, slope)))])
        if moved <= REST * first[0]:
            break
        optimizer.step()
        step += 1
    optimizer.remove()
    length, slope = relative((moved, gradient(model, x, y).norm().item()))
    start = {"first_step": first[0], "first_gradient": first[1]}
    return {"steps": step, "moved": length, "gradient": slope, **start, "path": path}


def at_kinks(model: nn.Sequential, x: Tensor, y: Tensor) -> dict[str, float]:
    """How far a ReLU network with one hidden layer is from a stationary point in the sense of Clarke.

    Args:
        model: linear, ReLU, linear.
        x: inputs.
        y: labels.

    Returns:
        Number of pre-activations near their kink, the least norm of a subgradient, and the relative decrease of the
        loss along it.
    """
    hidden, last = model[0], model[2]
    assert isinstance(hidden, nn.Linear)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        Z = hidden(x)
        D = model(x).softmax(1) - y
        D_hidden, inputs = D @ last.weight, torch.cat([x, torch.ones(len(x), 1)], 1)
        near = (Z.abs() <= NEAR).nonzero().tolist()
        total = (D_hidden * (Z > NEAR)).T @ inputs
        parts = {(i, j): D_hidden[i, j] * inputs[i] for i, j in near}
        slopes = dict.fromkeys(parts, 0.0)
        for _ in range(1000):  # the least norm over slopes in [0, 1], one after the other
            for (i, j), part in parts.items():
                total[j] -= slopes[i, j] * part
                slopes[i, j] = min(1.0, max(0.0, -(part @ total[j] / part.square().sum()).item()))
                total[j] += slopes[i, j] * part
        steepest = [total[:, :-1].ravel(), total[:, -1], (D.T @ Z.relu()).ravel(), D.sum(0)]
        direction, start = torch.cat(steepest), position(model)
        before, best = loss_of(model, x, y).item(), math.inf
        for k in range(40):
            nn.utils.vector_to_parameters(start - 2.0**-k * direction, model.parameters())
            best = min(best, loss_of(model, x, y).item())
        nn.utils.vector_to_parameters(start, model.parameters())
    return {"near": len(near), "subgradient": direction.norm().item(), "falls": max(0.0, 1 - best / before)}


def limit(problem: str, activation: str, method: str, seed: int) -> dict[str, Any]:
    """The row of one run.

    Args:
        problem: one of `PROBLEMS`.
        activation: one of `ACTIVATIONS`.
        method: one of `METHODS`.
        seed: of points and weights.
    """
    make, sizes = PROBLEMS[problem]
    x, y = make(seed)
    model = network(sizes, activation, seed)
    row = {"problem": problem, "activation": activation, "method": method, "seed": seed, **run(method, model, x, y)}
    row["loss"] = loss_of(model, x, y).item() / len(x)
    if activation == "relu" and len(sizes) == 3:
        row |= at_kinks(model, x, y)
        row["subgradient"] /= row["first_gradient"]
    return row


def stay(problem: str, activation: str, seed: int) -> list[dict[str, Any]]:
    """One row per method, started from a stationary point of L-BFGS, if it finds one.

    Args:
        problem: one of `PROBLEMS`.
        activation: one of `ACTIVATIONS`.
        seed: of points and weights.
    """
    make, sizes = PROBLEMS[problem]
    x, y = make(seed)
    model = network(sizes, activation, seed)
    usual, slope = position(model), gradient(model, x, y).norm().item()
    for search, steps in (("strong_wolfe", 1000), (None, 300)):  # the last digits need no line search
        options = {"tolerance_grad": 1e-13, "tolerance_change": 0.0, "history_size": 50}
        finder = torch.optim.LBFGS(model.parameters(), max_iter=steps, line_search_fn=search, **options)  # type: ignore

        def closure(finder: torch.optim.LBFGS = finder) -> Tensor:
            finder.zero_grad()
            loss = loss_of(model, x, y)
            loss.backward()
            return loss

        finder.step(closure)  # type: ignore[reportArgumentType] (a Tensor is accepted)
    start, found, rows = position(model), gradient(model, x, y).norm().item() / slope, []
    for method in METHODS if found <= FOUND else ():
        if method == "sibp paper" and activation != "relu":
            continue
        nn.utils.vector_to_parameters(usual, model.parameters())
        usual_step = run(method, model, x, y, 1)["first_step"]
        nn.utils.vector_to_parameters(start.clone(), model.parameters())
        away = []
        for steps in (1, STAY - 1):
            run(method, model, x, y, steps)
            away.append((position(model) - start).norm().item() / usual_step)
        about = {"problem": problem, "activation": activation, "method": method, "seed": seed}
        rows.append(about | {"gradient": found, "step": away[0], "drift": away[1]})
    return rows


def main() -> None:
    """Run everything, and write limits.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for limits.json")
    out = parser.parse_args().out
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    found: dict[str, list[dict[str, Any]]] = {"tanh": [], "relu": [], "wandering": [], "stays": []}
    for problem in PROBLEMS:
        for activation in ACTIVATIONS:
            for method in METHODS:
                if method == "sibp paper" and activation != "relu":  # all that this solver supports
                    continue
                rows = [limit(problem, activation, method, seed) for seed in SEEDS]
                for row in rows:
                    found[activation if row["moved"] <= REST else "wandering"].append(row)
                resting = [row["gradient"] for row in rows if row["moved"] <= REST]
                worst = f", gradient at most {max(resting):.1e} of the first" if resting else ""
                print(f"{problem}, {activation}, {method}: {len(resting)} of {len(rows)} at rest{worst}", flush=True)
            found["stays"] += [row for seed in SEEDS for row in stay(problem, activation, seed)]
    columns = ("problem", "method", "seed", "gradient", "near", "subgradient", "falls")
    found["kinks"] = [{key: row[key] for key in columns} for row in found["relu"] if "near" in row]
    for row in (*found["relu"], *found["wandering"]):
        for key in columns[-3:]:
            row.pop(key, None)
    settings = {"eta": ETA, "lam": LAM, "rest": REST, "steps": STEPS, "stay": STAY, "near": NEAR}
    out.mkdir(parents=True, exist_ok=True)
    lines = {key: "[\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for key, rows in found.items()}
    body = ",\n".join(f'"{key}": {text}' for key, text in ({"settings": json.dumps(settings)} | lines).items())
    (out / "limits.json").write_text("{" + body + "}\n")


if __name__ == "__main__":
    main()
