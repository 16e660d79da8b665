"""The table of docs/howto/cost.md shows what the kept benchmark measured."""

import json
from statistics import median

from code_blocks import ROOT

METHODS = ("exact", "cg:3", "cg:5")


def test_the_table_is_the_benchmarks() -> None:
    page = (ROOT / "docs" / "howto" / "cost.md").read_text()
    for case in json.loads((ROOT / "results" / "bench" / "step-cpu-2threads.json").read_text())["cases"]:
        seconds, memory = case["seconds_per_step"], case["memory"]
        cells = [f"{1000 * median(seconds['sgd']):.1f} ms"]
        for method in METHODS:
            ratio = median(ours / sgd for ours, sgd in zip(seconds[method], seconds["sgd"], strict=True))
            peak = memory[method]["peak_bytes"] / memory["sgd"]["peak_bytes"]
            cells.append(f"{ratio:.1f} / {peak:.1f}")
        name = case["net"] if "-" in case["net"] else f"`{case['net']}`"
        name = f"{name} {case['activation']}".rstrip()
        assert f"| {name} | {case['batch']} | {' | '.join(cells)} |" in page
