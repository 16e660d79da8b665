"""Divergence of runs caused by rounding alone, as on another machine: ``python scripts/rounding.py --data-root DIR``.

One setting of experiment=mnist_mlp per method is trained from the same weights on the same batches, with one change:
no compiled kernels, two threads, or torch and its BLAS without AVX-512. Each changes only the order of summation, like
another processor. Each has its own process, since libraries choose their code when they are loaded. The output is
results/rounding/rounding.json, which docs/ shows as a table.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from sibp.bench.record import machine
from sibp.experiment.compose import compose
from sibp.experiment.data import Data, load_data
from sibp.experiment.models import build_model, objective_of
from sibp.experiment.optimizers import build_optimizer
from sibp.experiment.seeding import BatchOrder
from sibp.prox import kernels

RECORD = Path(__file__).resolve().parents[1] / "results" / "rounding" / "rounding.json"
STEPS = (1, 10, 100, 550)
METHODS = {
    "sibp cg:3": ["optimizer=sibp", "optimizer.solver=cg:3", "optimizer.lr=0.548", "optimizer.prox_weight=3.16"],
    "sgd": ["optimizer=sgd", "optimizer.lr=0.548", "optimizer.momentum=0.452"],
}
WITHOUT_AVX512 = {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2", "ATEN_CPU_CAPABILITY": "avx2"}
CHANGES: dict[str, tuple[list[str], dict[str, str]]] = {
    "kernels off": (["--no-kernels"], {}),
    "two threads": (["--threads", "2"], {}),
    "BLAS without AVX-512": ([], WITHOUT_AVX512),
}
"""Change -> arguments and environment variables of its process."""


def train(method: str, seed: int, data: Data) -> list[Tensor]:
    """Trains one run.

    Args:
        method: of METHODS.
        seed: of weights and batches.
        data: flat images.

    Returns:
        One row at the start and one after each of STEPS: all weights, then the mean loss of the first 10,000 training
        images; float64.
    """
    config = compose(["experiment=mnist_mlp", *METHODS[method]])
    images, labels = data.train.inputs[:10_000], data.train.labels[:10_000]
    model = build_model(config["model"], data.shape, data.classes, seed)
    optimizer = build_optimizer(config["optimizer"], model)
    loss_of = objective_of(config["model"]).loss
    order = BatchOrder(len(data.train), config["batch_size"], seed)
    found = []
    for step in range(max(STEPS) + 1):
        if step in (0, *STEPS):
            with torch.no_grad():
                loss = loss_of(model(images), images, labels, "mean")
                found.append(torch.cat([*(p.flatten() for p in model.parameters()), loss.reshape(1)]).double())
        rows = order.batch(step)
        optimizer.zero_grad()
        loss_of(model(data.train.inputs[rows]), data.train.inputs[rows], data.train.labels[rows], "mean").backward()
        optimizer.step()
    return found


def distances(reference: list[Tensor], other: list[Tensor]) -> dict[str, list[float]]:
    """For each step the distance of the weights, relative to the reference's displacement, and that of the losses."""
    pairs = list(zip(reference[1:], other[1:], strict=True))
    way = [torch.linalg.vector_norm(a[:-1] - reference[0][:-1]) for a, _ in pairs]
    apart = [torch.linalg.vector_norm(b[:-1] - a[:-1]) for a, b in pairs]
    return {
        "weights": [(d / w).item() for d, w in zip(apart, way, strict=True)],
        "training loss": [(abs(b[-1] - a[-1]) / a[-1]).item() for a, b in pairs],
    }


def in_a_process(method: str, seeds: int, data_root: str, change: str | None = None) -> list[list[Tensor]]:
    """`train` for each seed, in its own process with a change."""
    args, environment = CHANGES[change] if change else ([], {})
    with tempfile.TemporaryDirectory() as folder:
        file = str(Path(folder) / "found.pt")
        own = ["--one", method, "--seeds", str(seeds), "--data-root", data_root, "--out", file]
        subprocess.run([sys.executable, __file__, *own, *args], check=True, env={**os.environ, **environment})
        return torch.load(file, weights_only=True)


def measure(data_root: str, seeds: int) -> dict[str, Any]:
    """The record: medians over seeds of each method, change, quantity and step, and the distance between seeds."""
    rows = []
    for method in METHODS:
        reference = in_a_process(method, seeds, data_root)
        for change in CHANGES:
            if change == "kernels off" and not method.startswith("sibp"):
                continue  # SGD has no kernels
            pairs = zip(reference, in_a_process(method, seeds, data_root, change), strict=True)
            found = [distances(one, other) for one, other in pairs]
            for quantity in found[0]:
                values = [median(run[quantity][i] for run in found) for i in range(len(STEPS))]
                rows.append({"method": method, "change": change, "of": quantity, "values": values})
        losses = [run[-1][-1].item() for run in reference]
        spread = (max(losses) - min(losses)) / median(losses)
        rows.append({"method": method, "change": "another seed", "of": "training loss", "values": [spread]})
    return {"machine": machine("cpu"), "blas": _blas(), "seeds": seeds, "steps": STEPS, "rows": rows}


def _blas() -> str:
    """The BLAS that torch reports."""
    lines = torch.__config__.show().splitlines()
    return next((line.strip(" -") for line in lines if "Math Kernel Library" in line or "OpenBLAS" in line), "unknown")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one", choices=METHODS, help=argparse.SUPPRESS)  # the runs of one method
    parser.add_argument("--out", default=str(RECORD))
    parser.add_argument("--threads", type=int, default=1, help=argparse.SUPPRESS)
    parser.add_argument("--no-kernels", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        torch.set_num_threads(args.threads)
        with kernels.disabled() if args.no_kernels else contextlib.nullcontext():
            data = load_data({"name": "mnist"}, args.data_root, False).prepared(True, torch.device("cpu"))
            torch.save([train(args.one, seed, data) for seed in range(args.seeds)], args.out)
        return
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    Path(args.out).write_text(json.dumps(measure(args.data_root, args.seeds), indent=1) + "\n")
    print(f"written    {args.out}")


if __name__ == "__main__":
    main()
