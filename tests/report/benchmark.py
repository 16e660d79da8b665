"""How long a report on 1,000 runs takes: ``python tests/report/benchmark.py`` prints the seconds."""

import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from fake_runs import PROXBP, SGD, SIBP, write_run

ADAM = {"name": "adam", "lr": 0.001, "weight_decay": 0.0}
ROWS = 111


def write_thousand(root: Path) -> None:
    """2 problems, 5 methods, 20 step sizes, 5 seeds, 111 rows each."""
    number = 0
    for batch in (50, 100):
        for optimizer in (SGD, PROXBP, SIBP, {**SIBP, "solver": "exact"}, ADAM):
            for lr in [0.01 * 10 ** (i / 4) for i in range(20)]:
                for seed in range(5):
                    losses = [2.3 * math.exp(-i / 50 * min(lr, 1)) + 0.01 + 0.001 * seed for i in range(ROWS)]
                    layers = ("0", "2", "4") if "solver" in optimizer else ()
                    folder = root / f"run{number}"
                    write_run(folder, {**optimizer, "lr": lr}, seed, losses, layers=layers, batch_size=batch)
                    number += 1


def main() -> None:
    """Write the runs, then time the command as a user would."""
    with tempfile.TemporaryDirectory() as name:
        write_thousand(Path(name) / "runs")
        for formats in ("html", "html,md,csv,png"):
            words = [f"{name}/runs", "--out", f"{name}/report.html", "--format", formats]
            start = time.perf_counter()
            subprocess.run([sys.executable, "-m", "sibp.report", *words], check=True, stdout=subprocess.DEVNULL)
            print(f"1,000 runs of {ROWS} rows, {formats}: {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
