"""The number of kept runs that were made with uncommitted changes."""

import json
from collections import Counter
from pathlib import Path

from sibp.analysis.arena import ARENA
from sibp.report.markdown import lines_of_table
from sibp.runs.packed import PACKED, joined


def provenance(results: Path) -> str:
    """One row per experiment of ``results``: its kept runs, and how many were made with uncommitted changes."""
    kept: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for path in sorted(results.rglob(PACKED)):
        parts = path.relative_to(results).parts
        name = "/".join(parts[: 2 if parts[0] == ARENA else 1])  # the arena holds several experiments
        shared, *runs = map(json.loads, path.read_text().splitlines())
        kept[name] += len(runs)
        changed[name] += sum(joined(shared, run)["summary"]["environment"]["git_dirty"] for run in runs)
    rows = [[f"`{name}`", str(count), str(changed[name])] for name, count in kept.items()]
    total = ["all", str(kept.total()), str(changed.total())]
    return lines_of_table(("experiment", "kept runs", "with uncommitted changes"), [*rows, total])
