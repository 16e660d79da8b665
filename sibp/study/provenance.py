"""The state of the code that made the kept runs, as the runs recorded it."""

import json
from collections import Counter
from pathlib import Path

from sibp.report.markdown import lines_of_table
from sibp.runs.packed import PACKED, joined

ARENA = "arena"  # holds several experiments


def provenance(results: Path) -> str:
    """One row per experiment: its kept runs, and how many of them were made with uncommitted changes.

    Args:
        results: the folder of kept runs.
    """
    kept: Counter[str] = Counter()
    changed: Counter[str] = Counter()
    for path in sorted(results.rglob(PACKED)):
        parts = path.relative_to(results).parts
        name = "/".join(parts[: 1 + (parts[0] == ARENA)])
        shared, *runs = map(json.loads, path.read_text().splitlines())
        kept[name] += len(runs)
        changed[name] += sum(joined(shared, run)["summary"]["environment"]["git_dirty"] for run in runs)
    rows = [[f"`{name}`", str(count), str(changed[name])] for name, count in kept.items()]
    total = ["all", str(kept.total()), str(changed.total())]
    return lines_of_table(("experiment", "kept runs", "with uncommitted changes"), [*rows, total])
