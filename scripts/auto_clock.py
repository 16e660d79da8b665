"""Time AutoSIBP's and tuned SGD's steps in turns, on the problems of results/auto_untuned.

    python scripts/auto_clock.py --out DIR [data_root=DIR] [--rounds N]

Both train from the same weights on the same batches, so that AutoSIBP makes the same trials as in training. In every
round each takes six steps, in two of which AutoSIBP measures a gradient. DIR/clock.json holds the processor time of a
step, one sample per round: other processes delay a step, but add little to its processor time.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from sibp.experiment.compose import CONFIGS
from sibp.experiment.data import load_data
from sibp.experiment.models import build_model, is_flat, objective_of
from sibp.experiment.optimizers import build_optimizer
from sibp.runs.packed import PACKED, read_packed
from sibp.study.untuned import tuned_folder

RESULTS = Path(__file__).resolve().parents[1] / "results"
PROBLEMS = ("digits", "deep", "shallow", "cifar10_mlp", "autoencoder", "cifar10_convnet")
AUTO: dict[str, Any] = yaml.safe_load((CONFIGS / "optimizer" / "sibp_auto.yaml").read_text())
STEPS, WARM_UP = 6, 2


class Training:
    """One method on a problem."""

    def __init__(self, config: dict[str, Any], optimizer: dict[str, Any], data_root: str) -> None:
        """Builds the network and its optimizer like a run.

        Args:
            config: of a kept run.
            optimizer: name and settings.
            data_root: as of a run.
        """
        data = load_data(config["dataset"], data_root, False)
        self.model: nn.Module = build_model(config["model"], data.shape, data.classes, 0)
        self.objective, self.optimizer = objective_of(config["model"]), build_optimizer(optimizer, self.model)
        images = data.train.images.flatten(1) if is_flat(config["model"]) else data.train.images
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
        self.batches = [(images[rows], data.train.labels[rows]) for rows in order.split(config["batch_size"])[:12]]
        self.searches, self.at = optimizer["name"] == AUTO["name"], 0

    def step(self) -> None:
        """A step, as in a training loop."""
        x, y = self.batches[self.at]
        self.at = (self.at + 1) % len(self.batches)
        self.optimizer.zero_grad()
        loss = self.objective.loss(self.model(x), x, y, "mean")
        loss.backward()
        if self.searches:
            again = {"evaluate": lambda: self.objective.loss(self.model(x), x, y, "mean"), "loss": loss}
            self.optimizer.step(**again)  # pyright: ignore[reportCallIssue]
        else:
            self.optimizer.step()


def timed(problem: str, rounds: int, data_root: str) -> dict[str, list[float]]:
    """Processor time of each method's step in seconds, one sample per round."""
    path = next(iter(sorted(tuned_folder(RESULTS, problem).rglob(f"final/{PACKED}"))), None)
    runs = read_packed(path or tuned_folder(RESULTS, problem) / PACKED)
    config = next(run.config for run in runs if run.config["optimizer"]["name"] == "sgd")
    both = {name: Training(config, own, data_root) for name, own in (("sgd", config["optimizer"]), ("sibp_auto", AUTO))}
    found: dict[str, list[float]] = {name: [] for name in both}
    for turn in range(WARM_UP + rounds):
        for name, training in both.items():
            before = time.process_time()
            for _ in range(STEPS):
                training.step()
            if turn >= WARM_UP:
                found[name].append((time.process_time() - before) / STEPS)
    return found


def main() -> int:
    """Run the command line.

    Returns:
        The exit code.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("settings", nargs="*", help="data_root=DIR")
    args = parser.parse_args()
    own = dict(word.split("=", 1) for word in args.settings)
    torch.set_num_threads(1)
    found = {name: timed(name, args.rounds, own.get("data_root", "data")) for name in PROBLEMS}
    args.out.mkdir(parents=True, exist_ok=True)
    about = {"torch": torch.__version__, "threads": 1, "steps_a_round": STEPS}
    (args.out / "clock.json").write_text(json.dumps({**about, "seconds_per_step": found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
