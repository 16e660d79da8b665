"""How far the same run gets from itself on another machine: ``python scripts/rounding.py --data-root DIR``.

One setting of experiment=mnist_mlp, trained from the same weights on the same batches with the compiled kernels and one
thread, without kernels, and with two threads. Each change is one of rounding alone: other orders of summation, as
another processor, another BLAS or another number of threads have them. Written is a table in Markdown.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from statistics import median

import torch
from torch import Tensor

from sibp.experiment.compose import compose
from sibp.experiment.data import Data, load_data
from sibp.experiment.models import build_model, objective_of
from sibp.experiment.optimizers import build_optimizer
from sibp.experiment.seeding import BatchOrder
from sibp.prox import kernels

STEPS = (1, 10, 100, 500)
CHANGES = {"kernels off": (False, 1), "two threads": (True, 2)}
METHODS = {
    "sibp cg:3": ["optimizer=sibp", "optimizer.solver=cg:3", "optimizer.lr=0.548", "optimizer.prox_weight=3.16"],
    "sgd": ["optimizer=sgd", "optimizer.lr=0.3"],
}


def train(words: list[str], data: Data, seed: int, native: bool, threads: int, steps: tuple[int, ...]) -> list[Tensor]:
    """One run.

    Args:
        words: the optimizer's.
        data: flat images.
        seed: of weights and batches.
        native: whether the compiled kernels are used.
        threads: of torch.
        steps: after which to look.

    Returns:
        For each of them the weights, and as the last entry the mean loss of the first 2,000 training images, float64;
        before all others, those of the start.
    """
    config = compose(["experiment=mnist_mlp", *words])
    model = build_model(config["model"], data.shape, data.classes, seed)
    optimizer = build_optimizer(config["optimizer"], model)
    loss_of = objective_of(config["model"]).loss
    order = BatchOrder(len(data.train), config["batch_size"], seed)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    found = []
    with contextlib.nullcontext() if native else kernels.disabled():
        for step in range(max(steps) + 1):
            if step in (0, *steps):
                found.append(_state(model, data, loss_of))
            rows = order.batch(step)
            optimizer.zero_grad()
            loss_of(model(data.train.images[rows]), data.train.images[rows], data.train.labels[rows], "mean").backward()
            optimizer.step()
    torch.set_num_threads(before)
    return found


def _state(model: torch.nn.Module, data: Data, loss_of: Callable[..., Tensor]) -> Tensor:
    images, labels = data.train.images[:2000], data.train.labels[:2000]
    with torch.no_grad():
        loss = loss_of(model(images), images, labels, "mean")
        return torch.cat([*(p.flatten() for p in model.parameters()), loss.reshape(1)]).double()


def distances(reference: list[Tensor], other: list[Tensor]) -> list[tuple[float, float]]:
    """For each step the distance of the weights, over the way that the reference has come; and that of the losses."""
    start = reference[0][:-1]
    pairs = zip(reference[1:], other[1:], strict=True)
    return [
        (
            (torch.linalg.vector_norm(b[:-1] - a[:-1]) / torch.linalg.vector_norm(a[:-1] - start)).item(),
            (abs(b[-1] - a[-1]) / a[-1]).item(),
        )
        for a, b in pairs
    ]


def table(data: Data, seeds: int, steps: tuple[int, ...]) -> Iterator[str]:
    """The medians over seeds, in Markdown.

    Args:
        data: flat images.
        seeds: how many.
        steps: after which to look.

    Yields:
        The head, and a row for each method, change and quantity.
    """
    yield f"| method | change | relative difference of | {' | '.join(f'step {step}' for step in steps)} |"
    yield f"| --- | --- | --- |{' --- |' * len(steps)}"
    for method, words in METHODS.items():
        runs: dict[str, list[list[tuple[float, float]]]] = {change: [] for change in CHANGES}
        for seed in range(seeds):
            reference = train(words, data, seed, True, 1, steps)
            for change, (native, threads) in CHANGES.items():
                if native or method.startswith("sibp"):
                    runs[change].append(distances(reference, train(words, data, seed, native, threads, steps)))
        for change, found in runs.items():
            for place, name in enumerate(("weights", "training loss")):
                if found:
                    cells = [f"{median(run[i][place] for run in found):.0e}" for i in range(len(steps))]
                    yield f"| {method} | {change} | {name} | {' | '.join(cells)} |"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--seeds", type=int, default=3)
    words = parser.parse_args()
    images = load_data({"name": "mnist"}, words.data_root, False).prepared(True, torch.device("cpu"))
    print(f"kernels: {kernels.description()}")
    for line in table(images, words.seeds, STEPS):
        print(line, flush=True)
