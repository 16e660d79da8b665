"""Kept runs as plain rows, and the setting that represents each method, without the project's code: only numpy.

`scripts/recompute_verdicts.py` judges by them. The rules are those that docs/tuning.md states in words.
"""

import json
import math
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

RESULTS = Path(__file__).resolve().parents[1] / "results"
FEWEST_SEEDS = 5
LARGE = math.inf
DEFAULTS = {  # options that older runs lack; these values do not change the method
    "sibp": {"backward_weights": "new", "prox_weight_scaling": "absolute", "line_search": False},
    "proxbp": {"backward_weights": "old", "prox_weight_scaling": "absolute", "line_search": False},
}
OUTER = {"sgd": "momentum", "adam": "adam", "adagrad": "adagrad", "muon": "muon"}
RECORD = RESULTS / "bench" / "runs-cpu-1thread.json"  # seconds of a step, measured interleaved
INPUTS = {"digits": 64, "mnist": 784, "fashion_mnist": 784, "cifar10": 3072}
RANK = ("completed", "diverged", "failed", "unfinished")

Run = dict[str, Any]


def merged(shared: Any, own: Any) -> Any:
    """The settings shared by all runs of a file, overridden by a run's own."""
    if isinstance(shared, dict) and isinstance(own, dict):
        return {key: merged(shared.get(key), own.get(key, shared.get(key))) for key in shared | own}
    return own


def runs_below(place: str) -> list[Run]:
    """The runs kept below results/PLACE, one per setting and seed: the longest one, then the latest."""
    found: defaultdict[str, list[Run]] = defaultdict(list)
    pace = {name: middle(samples) for name, samples in paces(place).items()}
    for path in sorted((RESULTS / place).rglob("runs.jsonl")):
        shared, *lines = map(json.loads, path.read_text().splitlines())
        for line in lines:
            run = as_run(merged(shared, line))
            if run["method"] in pace:
                run["rows"]["seconds"] = pace[run["method"]] * run["rows"]["step"]
            found[json.dumps([run["optimizer"], run["seed"]], sort_keys=True)].append(run)
    return [min(same, key=lambda run: (RANK.index(run["status"]), -run["started"])) for same in found.values()]


def paces(place: str, record: Path | None = None) -> dict[str, list[float]]:
    """All measured seconds per step by method, if the record (default: that of PLACE) has its net and batch size."""
    shared, line = map(json.loads, next((RESULTS / place).rglob("runs.jsonl")).read_text().splitlines()[:2])
    config = merged(shared, line)["config"]
    hidden, name = config["model"].get("hidden"), config["model"]["name"]
    net = "-".join(map(str, [INPUTS[config["dataset"]["name"]], *hidden, 10])) if hidden else name
    own = RESULTS / Path(place).parts[0] / RECORD.name
    cases = json.loads((record or (own if own.exists() else RECORD)).read_text())["cases"]
    measured = {(case["net"], case["batch"]): case["processor_seconds_per_step"] for case in cases}
    return measured.get((net, config["batch_size"]), {})


def as_run(line: dict[str, Any]) -> Run:
    """The required parts of a run, with its method's name, role and status by the published rules."""
    config, summary = line["config"], line["summary"]
    rows = {k: np.array([np.nan if x is None else x for x in v], float) for k, v in line["rows"].items()}
    optimizer = dict(config["optimizer"])
    for key, value in DEFAULTS.get(optimizer["name"], {}).items():
        if optimizer.get(key) == value:
            del optimizer[key]
    optimizer = {k: float(v) if type(v) is int else v for k, v in optimizer.items()}
    status, losses = summary.get("status", "unfinished"), rows["train_loss"][~np.isnan(rows["train_loss"])]
    if status == "completed" and len(losses) > 1 and losses[-1] > 1000 * max(1.0, losses[0]):
        status = "diverged"  # a finite, but extremely large loss
    role = config.get("role") or ("trial" if config.get("evaluate_test") is False else None)
    digits = re.sub(r"\D", "", str(summary.get("started", "")))[:20]
    return {
        "optimizer": optimizer, "method": method_of(optimizer), "seed": config["seed"], "role": role, "status": status,
        "rows": rows, "test_acc": summary.get("test_acc"), "started": int(digits or 0),
    }  # fmt: skip


def method_of(optimizer: dict[str, Any]) -> str:
    """The optimizer and its non-numeric options, the solver first."""
    words = {key: value for key, value in optimizer.items() if isinstance(value, str) and key != "name"}
    name = optimizer["name"]
    if name.endswith("_fed") and words.get("outer") in OUTER:
        name = f"{name.removesuffix('_fed')}_{OUTER[words.pop('outer')]}"
    return " ".join([name, *(words[key] for key in sorted(words, key=lambda key: (key != "solver", key)))])


def last(run: Run, column: str) -> float | None:
    """The final value of a run; the worst possible if it diverged; None if it has not ended or did not log this."""
    worst = -LARGE if column.endswith("acc") else LARGE
    values = run["rows"][column]
    if run["status"] != "completed":
        return None if run["status"] == "unfinished" else worst
    return None if np.isnan(values).all() else worst if np.isnan(values[-1]) else float(values[-1])


# -- choices ----------------------------------------------------------------------------------------------------------


def settings_of(runs: list[Run], method: str) -> list[list[Run]]:
    """The runs of each setting of a method, ordered by step size, then by the other numbers."""
    groups: defaultdict[str, list[Run]] = defaultdict(list)
    for run in runs:
        if run["method"] == method:
            groups[json.dumps(run["optimizer"], sort_keys=True)].append(run)

    def order(group: list[Run]) -> list[float]:
        numbers = {k: v for k, v in group[0]["optimizer"].items() if isinstance(v, float)}
        return [numbers.pop("lr", 0.0), *(numbers[key] for key in sorted(numbers))]

    return sorted(groups.values(), key=order)


def chosen(runs: list[Run], method: str) -> list[Run]:
    """The runs that represent a method: those of its chosen setting, with fresh seeds if there are enough."""
    settings = settings_of(runs, method)
    trials = {run["seed"] for setting in settings for run in setting if run["role"] == "trial"}
    settings = [each for each in settings if any(run["role"] == "final" for run in each)] or settings
    seeds = [{run["seed"] for run in setting if last(run, "val_loss") is not None} for setting in settings]
    if len(settings) == 1 and not trials:
        return settings[0]
    counts = Counter(seed for own in seeds for seed in own)
    tuning = trials & counts.keys() or {s for s, n in counts.items() if n >= max(2, len(settings) / 2)}
    eligible = [i for i, own in enumerate(seeds) if own and tuning <= own] or [i for i, own in enumerate(seeds) if own]

    def merit(i: int) -> tuple[float, float]:
        judged = [run for run in settings[i] if run["seed"] in (tuning & seeds[i] or seeds[i])]
        accuracies = [-LARGE if (x := last(run, "val_acc")) is None else x for run in judged]
        losses = [LARGE if (x := last(run, "val_loss")) is None else x for run in judged]
        return middle(accuracies), -middle(losses)

    best = max(eligible, key=merit)
    used = tuning & seeds[best] or seeds[best]
    fresh = seeds[best] - used
    enough = fresh and (len(fresh) >= FEWEST_SEEDS or len(fresh) >= len(used))
    return [run for run in settings[best] if run["seed"] in (fresh if enough else seeds[best])]


def middle(values: list[float]) -> float:
    """The median; between two opposite infinities it is 0."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
    return 0.0 if low == -high and math.isinf(low) else low if low == high else low / 2 + high / 2
