"""Recompute every published verdict from the raw rows, without the project's code: only numpy and scipy.

    python scripts/recompute_verdicts.py            # those of results/claims.csv and of tables in docs/
    python scripts/recompute_verdicts.py --verbose  # and print each

It reads results/**/runs.jsonl, applies the rules in docs/tuning.md and results/README.md, and prints each verdict,
median, interval or probability that differs. Exit code: 0 all agree, 1 some differ.
"""

import argparse
import csv
import itertools
import json
import math
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import raw_runs
from raw_runs import FEWEST_SEEDS, LARGE, Run, chosen, last, middle, paces, runs_below
from scipy.stats import binomtest

ROOT = Path(__file__).resolve().parents[1]
RESAMPLES, RANDOM_SEED = 10_000, 20200516
TWICE, TENTH = 2.0, 1.1  # largest ratio to the least loss: for range and reach, and for width
COLUMN = {"training loss": "train_loss", "training accuracy": "train_acc", "validation accuracy": "val_acc"}


# -- statistics -------------------------------------------------------------------------------------------------------


def interval(values: list[float]) -> tuple[float, float, float]:
    """The median and its 95 % percentile bootstrap interval, whose ends are resampled medians."""
    if len(values) < 2:
        return values[0], math.nan, math.nan
    random, data, medians = np.random.default_rng(RANDOM_SEED), np.sort(values), []
    for _ in range(10):
        for draw in data[random.integers(len(data), size=(RESAMPLES // 10, len(data)))]:
            ordered = np.sort(draw)
            low, high = ordered[(len(ordered) - 1) // 2], ordered[len(ordered) // 2]
            medians.append(0.0 if np.isinf(low) and low == -high else low if low == high else low / 2 + high / 2)
    medians.sort()
    tail = math.floor(0.025 * RESAMPLES + 1e-9)
    return middle(values), float(medians[tail]), float(medians[-1 - tail])


def verdict(first: dict[int, float], second: dict[int, float], larger: bool) -> tuple[str, list[float], float]:
    """The verdict, the differences by seed, and the p-value of a sign test."""
    seeds = sorted(first.keys() & second.keys())
    differences = [0.0 if first[s] == second[s] else first[s] - second[s] for s in seeds]
    up, down = sum(d > 0 for d in differences), sum(d < 0 for d in differences)
    p = float(binomtest(up, up + down).pvalue) if up + down else 1.0
    if len(seeds) < FEWEST_SEEDS:
        return "too few seeds", differences, p
    _, low, high = interval(differences)
    word = "better" if (low > 0 if larger else high < 0) else "worse" if (high < 0 if larger else low > 0) else ""
    return word or "no difference", differences, p


def at_equal_seconds(first: Run, second: Run, column: str) -> tuple[float, float] | None:
    """Both values at the last time, within the shorter run, at which the longer run was logged."""
    ends = last(first, column), last(second, column)
    if ends[0] is None or ends[1] is None:
        return None
    if math.isinf(ends[0]) or math.isinf(ends[1]):
        return ends[0], ends[1]
    a, b = first["rows"]["seconds"], second["rows"]["seconds"]
    longer, limit = (a, b[-1]) if a[-1] >= b[-1] else (b, a[-1])
    moment = max((t for t in longer if t <= limit), default=0.0)
    found = []
    for run in (first, second):
        values = run["rows"][column][run["rows"]["seconds"] <= moment]
        values = values[~np.isnan(values)]
        found.append(float(values[-1]) if len(values) else math.nan)
    return (found[0], found[1]) if moment > 0 and not any(map(math.isnan, found)) else None


# -- step sizes -------------------------------------------------------------------------------------------------------


def over_steps(runs: list[Run], method: str, at: dict[str, float], quantity: str) -> dict[int, float]:
    """Seed -> a quantity of a method's step sizes, with the best of its other settings at each."""
    table: defaultdict[int, dict[float, tuple[float, float]]] = defaultdict(dict)
    for run in runs:
        numbers = run["optimizer"]
        end = last(run, "train_loss")
        if run["method"] != method or end is None or any(numbers.get(k, v) != v for k, v in at.items()):
            continue
        start = run["rows"]["train_loss"][0]
        old = table[run["seed"]].get(numbers["lr"], (0.0, LARGE))
        if end < old[1] or numbers["lr"] not in table[run["seed"]]:
            table[run["seed"]][numbers["lr"]] = (float(start), end)
    return {seed: OF_STEPS[quantity](by_lr) for seed, by_lr in table.items()}


def passed(by_lr: dict[float, tuple[float, float]], steps: list[float], factor: float, between: bool) -> float:
    """Decades from the first step size to where the loss exceeds ``factor`` times that at the first."""
    bound, way = factor * by_lr[steps[0]][1] * (1 + 1e-12), 0.0
    for near, far in itertools.pairwise(steps):
        low, high = by_lr[near][1], by_lr[far][1]
        if high > bound:
            share = (math.log(bound) - math.log(low)) / (math.log(high) - math.log(low))
            return way + (share * abs(math.log10(far / near)) if between and math.isfinite(high) else 0.0)
        way += abs(math.log10(far / near))
    return way


def around(by_lr: dict[float, tuple[float, float]], factor: float, between: bool, down: bool = True) -> float:
    """`passed` upwards from the best step size, plus `passed` downwards if ``down``."""
    best = min(by_lr, key=lambda lr: (by_lr[lr][1], lr))
    if math.isinf(by_lr[best][1]):
        return -LARGE
    above, below = sorted(lr for lr in by_lr if lr >= best), sorted((lr for lr in by_lr if lr <= best), reverse=True)
    return passed(by_lr, above, factor, between) + (passed(by_lr, below, factor, between) if down else 0.0)


def room(by_lr: dict[float, tuple[float, float]]) -> float:
    """Decades from the best step size to the first larger one with which the loss did not decrease."""
    best = min(by_lr, key=lambda lr: (by_lr[lr][1], lr))
    failed = [lr for lr in by_lr if lr > best and by_lr[lr][1] >= by_lr[lr][0]]
    return -LARGE if math.isinf(by_lr[best][1]) else math.log10(min(failed, default=max(by_lr)) / best)


OF_STEPS = {
    "range of step sizes": lambda by_lr: around(by_lr, TWICE, between=True),
    "reach above the best step size": lambda by_lr: around(by_lr, TWICE, between=True, down=False),
    "room before divergence": room,
    "width of step sizes": lambda by_lr: around(by_lr, TENTH, between=False),
    "largest step size": lambda by_lr: max((lr for lr, (a, b) in by_lr.items() if b < a / 2), default=-LARGE),
}


# -- what is published ------------------------------------------------------------------------------------------------


class Check:
    """Compares published with recomputed values, and counts them."""

    def __init__(self, verbose: bool) -> None:
        self.verbose, self.count, self.wrong, self.cache = verbose, 0, 0, {}

    def runs(self, place: str) -> list[Run]:
        """The runs kept below results/PLACE, read once."""
        if place not in self.cache:
            self.cache[place] = runs_below(place)
        return self.cache[place]

    def same(self, about: str, published: Any, recomputed: Any) -> None:
        """Counts one published value, and reports whether it agrees."""
        self.count += 1
        equal = published == recomputed
        if isinstance(published, float) and isinstance(recomputed, float):
            equal = equal or math.isclose(published, recomputed, rel_tol=1e-9, abs_tol=1e-12)
        if not equal:
            self.wrong += 1
            print(f"DIFFERS  {about}: published {published}, recomputed {recomputed}")
        elif self.verbose:
            print(f"agrees   {about}: {recomputed}")

    def numbers(self, about: str, row: dict[str, str], whose: str, values: list[float]) -> None:
        """A median and its interval."""
        for part, value in zip(("", " low", " high"), interval(values), strict=True):
            self.same(f"{about}, {whose}{part}", float(row[whose + part]), value)


SAID = re.compile(
    r"(?P<method>.+?) better than (?P<other>.+?) in (?P<quantity>[a-z ]+?)"
    r"(?: at (?P<at>[a-z_]+ [\d.]+(?:, [a-z_]+ [\d.]+)*))?(?:, relative to (?P<base>\S+))?"
)
EVERY = re.compile(r"every (?P<lists>\S+)\.(?P<field>\w+) (?P<side>below|above) (?P<bound>\S+)")


def check_claims(check: Check) -> None:
    """All rows of results/claims.csv."""
    with (raw_runs.RESULTS / "claims.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        about = f"{row['claim']}: {row['criterion']} of {row['of']}"
        if row["holds"] == "open":
            continue
        every = EVERY.fullmatch(row["criterion"])
        if every:
            check_every(check, about, row, every)
        else:
            check_better(check, about, row, SAID.fullmatch(row["criterion"]))


def check_every(check: Check, about: str, row: dict[str, str], said: re.Match[str]) -> None:
    """A bound on all rows of a kept record."""
    record = json.loads((raw_runs.RESULTS / row["of"]).read_text())
    found = [entry[said["field"]] for name in said["lists"].split("+") for entry in record[name]]
    values = [math.nan if value is None else float(value) for value in found]
    bound = float(said["bound"])
    good = [value < bound if said["side"] == "below" else value > bound for value in values]
    check.same(f"{about}, outcome", row["outcome"], f"{sum(good)} of {len(good)}")
    check.same(f"{about}, holds", row["holds"], "yes" if all(good) else "no")


def check_better(check: Check, about: str, row: dict[str, str], said: re.Match[str] | None) -> None:
    """A comparison of two methods."""
    if said is None:
        check.same(f"{about}: the criterion has a known form", True, False)
        return
    at = {k: float(v) for k, v in (pair.rsplit(" ", 1) for pair in (said["at"] or "").split(", ") if pair)}
    larger = "loss" not in said["quantity"]
    mine, other = (of_method(check, row["of"], said[who], said["quantity"], at) for who in ("method", "other"))
    if said["base"]:
        bases = [of_method(check, said["base"], said[who], said["quantity"], at) for who in ("method", "other")]
        mine, other = (
            {s: x[s] if math.isinf(x[s]) else x[s] / b[s] for s in x if b.get(s)}
            for x, b in zip((mine, other), bases, strict=True)
        )
    word, differences, _ = verdict(mine, other, larger)
    check.same(f"{about}, outcome", row["outcome"], word)
    check.same(f"{about}, holds", row["holds"], "open" if word == "too few seeds" else ["no", "yes"][word == "better"])
    for whose, values in (
        ("method", list(mine.values())),
        ("other", list(other.values())),
        ("difference", differences),
    ):
        check.numbers(about, row, whose, values)
    if row["same seconds"]:
        check.same(f"{about}, same seconds", row["same seconds"], timed(check, row["of"], said, larger))
    if row["by the clock"]:
        word, even, cost = by_the_clock(check, row["of"], said)
        check.same(f"{about}, by the clock", row["by the clock"], word)
        for whose, found in (("break-even", even), ("measured", cost)):
            for part, value in zip(("", " low", " high"), found, strict=True):
                check.same(f"{about}, {whose}{part}", float(row[whose + part] or "nan"), value)


def of_method(check: Check, place: str, method: str, quantity: str, at: dict[str, float]) -> dict[int, float]:
    """Seed -> the compared value of the runs that represent a method."""
    runs = check.runs(place)
    if quantity in OF_STEPS:
        return over_steps(runs, method, at, quantity)
    shown = sorted(chosen(runs, method), key=lambda run: run["seed"])
    if quantity == "test accuracy":
        found = {r["seed"]: r["test_acc"] if r["status"] == "completed" else -LARGE for r in shown}
    else:
        found = {run["seed"]: last(run, COLUMN[quantity]) for run in shown}
    return {seed: float(value) for seed, value in found.items() if value is not None}


def timed(check: Check, place: str, said: Any, larger: bool) -> str:
    """The word of the verdict after equal training seconds."""
    runs, column = check.runs(place), COLUMN[said["quantity"]]
    mine, other = ({run["seed"]: run for run in chosen(runs, said[who])} for who in ("method", "other"))
    pairs = {seed: at_equal_seconds(mine[seed], other[seed], column) for seed in mine.keys() & other.keys()}
    known = {seed: pair for seed, pair in pairs.items() if pair}
    return verdict({s: p[0] for s, p in known.items()}, {s: p[1] for s, p in known.items()}, larger)[0]


def by_the_clock(
    check: Check, place: str, said: Any, record: Path | None = None
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """The verdict, the break-even ratio and the measured ratio, the ratios with their intervals."""
    mine, other = (chosen(check.runs(place), said[who]) for who in ("method", "other"))
    return clock_verdict(mine, other, paces(place, record))


def clock_verdict(
    mine: list[Run], other: list[Run], pace: dict[str, list[float]]
) -> tuple[str, tuple[float, ...], tuple[float, ...]]:
    """`by_the_clock` for the runs of two methods; ``pace``: method -> measured seconds per step, may be empty."""
    rivals = {run["seed"]: run for run in other}
    pairs = [(run, rivals[run["seed"]]) for run in sorted(mine, key=lambda run: run["seed"]) if run["seed"] in rivals]
    even = interval([ratio for pair in pairs if (ratio := break_even(*pair)) is not None])
    first, second = mine[0]["method"], other[0]["method"]
    if first in pace and second in pace:
        costs = [a / b for a, b in zip(pace[first], pace[second], strict=True)]
    else:
        costs = [own_pace(a) / own_pace(b) for a, b in pairs]
    cost = interval(costs)
    if len(pairs) < FEWEST_SEEDS:
        return "too few seeds", even, cost
    return "better" if cost[2] < even[1] else "worse" if cost[1] > even[2] else "within the noise", even, cost


def own_pace(run: Run) -> float:
    """Seconds per step, from the run's rows."""
    return middle(list(np.diff(run["rows"]["seconds"]) / np.diff(run["rows"]["step"])))


def break_even(mine: Run, other: Run) -> float | None:
    """The other's number of steps to the higher of both final losses, over the number of ``mine``."""
    a, b = last(mine, "train_loss"), last(other, "train_loss")
    if a is None or b is None:
        return None
    if math.isinf(a) or math.isinf(b):
        return 1.0 if a == b else 0.0 if math.isinf(a) else math.inf
    level = max(a, b)
    steps = [run["rows"]["step"][np.flatnonzero(run["rows"]["train_loss"] <= level)[0]] for run in (mine, other)]
    ends = [run["rows"]["step"][-1] for run in (mine, other)]
    need = (steps[0], ends[1]) if a <= b else (ends[0], steps[1])
    return float(need[1] / need[0]) if need[0] else None


TABLE = re.compile(r"<!-- results/([\w/]+): comparison -->\n(.*?)<!-- end of table -->", re.DOTALL)


def check_tables(check: Check, page: Path) -> None:
    """The verdicts against SGD in the comparisons of a page."""
    for place, text in TABLE.findall(page.read_text()):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
        for row in (dict(zip(head, cells, strict=True)) for cells in rows):
            if row["same steps"] == "–":
                continue
            mine, sgd = (of_method(check, place, name, "training loss", {}) for name in (row["method"], "sgd"))
            about = f"{page.name}, {place}, {row['method']}"
            check.same(f"{about}, same steps", row["same steps"], verdict(mine, sgd, larger=False)[0])
            said = {"method": row["method"], "other": "sgd", "quantity": "training loss"}
            check.same(f"{about}, same seconds", row["same seconds"], timed(check, place, said, larger=False))
            clock = row["by the clock: break-even, measured"].partition(":")[0]
            check.same(f"{about}, by the clock", clock, by_the_clock(check, place, said)[0])


PROCESSORS = re.compile(r"<!-- results/(\w+): processors -->\n(.*?)<!-- end of table -->", re.DOTALL)


def check_processors(check: Check, page: Path) -> None:
    """The verdicts by the clock against SGD, with the costs of a step in each of two records."""
    records = raw_runs.RECORD, raw_runs.RESULTS / "arena" / raw_runs.RECORD.name
    for place, text in PROCESSORS.findall(page.read_text()):
        for line in text.strip().splitlines()[2:]:
            name, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            for cell, record in zip(cells, records, strict=True):
                word, even, cost = by_the_clock(check, place, {"method": name, "other": "sgd"}, record)
                shown = [float(number) for number in re.findall(r"[\d.]+", cell)]
                about = f"{page.name}, {place}, {name} in {record.parent.name}"
                check.same(f"{about}, by the clock", cell.partition(":")[0], word)
                check.same(f"{about}, ratios", shown, [float(f"{number:.3g}") for number in (*even, *cost)])


PART = re.compile(r"<!-- results/(\w+): (2 x 2|directions) by ([a-z ]+) -->\n(.*?)<!-- end of table -->", re.DOTALL)
WON = re.compile(r"(better|worse|no difference), (\d+) of (\d+) seeds")
HALVES = ("proxbp exact", "sibp exact", "sibp cg:3 old", "sibp cg:3")
PAIRS = {  # kind of table -> for each row, the pairs of methods whose verdicts it shows, in order
    "2 x 2": [((1, 0),), ((3, 2),), ((2, 0), (3, 1))],
    "directions": [((1, 0), (2, 0), (2, 1))] * 4,
}
DIRECTED = {
    "none; SGD with momentum": ("sgd", "proxbp exact", "sibp cg:3"),
    "Nesterov momentum": ("nesterov", "proxbp_momentum exact", "sibp_momentum cg:3"),
    "Adam": ("adam", "proxbp_adam exact", "sibp_adam cg:3"),
    "Muon": ("muon", "proxbp_muon exact", "sibp_muon cg:3"),
}


def check_parts(check: Check, page: Path) -> None:
    """The verdicts and seeds in a page's ablation tables."""
    for place, kind, quantity, text in PART.findall(page.read_text()):
        rows = [] if text.startswith("*Not run yet:*") else text.strip().splitlines()[2:]
        for row, pairs in zip(rows, PAIRS[kind] if rows else [], strict=True):
            names = DIRECTED[row.split("|")[1].strip()] if kind == "directions" else HALVES
            if "not run" in row:
                continue
            for said, (mine, other) in zip(WON.findall(row), pairs, strict=True):
                own = place + "_muon" * ("muon" in names[0])
                a, b = (of_method(check, own, names[i], quantity, {}) for i in (mine, other))
                word, differences, _ = verdict(a, b, larger := "loss" not in quantity)
                wins = sum(d > 0 if larger else d < 0 for d in differences)
                about = f"{page.name}, {place}, {names[mine]} against {names[other]} in {quantity}"
                check.same(about, tuple(said), (word, str(wins), str(len(differences))))


UNTUNED = re.compile(
    r"<!-- results/untuned_peers: untuned (training loss|validation|by the clock) -->\n(.*?)<!-- end of table -->",
    re.DOTALL,
)
AUTO, OWN = "sibp_auto", "auto_untuned"


def check_untuned(check: Check, page: Path) -> None:
    """The verdicts on methods with their defaults against AutoSIBP."""
    for kind, text in UNTUNED.findall(page.read_text()):
        head, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.strip().splitlines()]
        for name, *cells, _ in rows:
            for title, cell in zip(head[1:-1], cells, strict=True):
                part = title.replace(" ", "_")
                runs = check.runs(f"untuned_peers/{part}")
                own = check.runs(f"{OWN}/{part}") if (raw_runs.RESULTS / OWN / part).is_dir() else runs
                if name != AUTO and cell != "–":
                    word = untuned(kind, part, chosen(runs, name), [run for run in own if run["method"] == AUTO])
                    check.same(f"{page.name}, {name} on {title}, {kind}", cell.partition(" ")[2], word)


def untuned(kind: str, part: str, mine: list[Run], auto: list[Run]) -> str:
    """A verdict on one method against AutoSIBP."""
    if kind == "by the clock":
        return clock_verdict(mine, auto, paces(f"untuned_peers/{part}"))[0]
    larger = kind == "validation" and not all(np.isnan(run["rows"]["val_acc"]).all() for run in mine)
    column = "train_loss" if kind == "training loss" else "val_acc" if larger else "val_loss"
    a, b = ({run["seed"]: x for run in runs if (x := last(run, column)) is not None} for runs in (mine, auto))
    return verdict(a, b, larger)[0]


def main() -> int:
    """Run the command line.

    Returns:
        The exit code: 0 all agree, 1 some do not.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--verbose", action="store_true", help="print values that agree, too")
    check = Check(parser.parse_args().verbose)
    check_claims(check)
    check_tables(check, ROOT / "docs" / "findings.md")
    check_processors(check, ROOT / "docs" / "findings.md")
    check_parts(check, ROOT / "docs" / "findings.md")
    check_untuned(check, ROOT / "docs" / "untuned.md")
    print(
        f"{check.count} published verdicts and numbers recomputed from {sum(map(len, check.cache.values()))} runs: ",
        end="",
    )
    print(f"{check.wrong} differ." if check.wrong else "all agree.")
    return 1 if check.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
