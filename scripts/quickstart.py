"""Train SGD, ProxBP and SIBP on scikit-learn's digits from the same start, and compare them.

Run by ``make run``. Each method's settings are the best of sixteen tried with three other seeds, by validation
loss: among 250 digits, accuracy cannot tell the good ones apart.
"""

import argparse
import sys
from pathlib import Path

from sibp.experiment.compare import plot, same_start, table
from sibp.experiment.compose import compose
from sibp.experiment.runner import run
from sibp.report.__main__ import main as report
from sibp.runs.reading import read_run

METHODS = (
    ["optimizer=sgd", "optimizer.lr=0.2", "optimizer.momentum=0.9"],
    ["optimizer=proxbp", "optimizer.lr=1", "optimizer.prox_weight=3"],
    ["optimizer=sibp", "optimizer.lr=1", "optimizer.prox_weight=0.3"],
)


def main() -> int:
    """Train, then print the table, the places of picture and report, and the command that opens TensorBoard.

    Returns:
        0, or 1 if a method did not end well.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run-root", type=Path, default=Path("runs/quickstart"), help="where the runs go")
    parser.add_argument("words", nargs="*", help="more settings for every run, such as epochs=5")
    args = parser.parse_args()

    print("Training SGD, ProxBP and SIBP on the digits, from the same weights, on the same batches.")
    # One thread: the networks are too small for more. force: this shows the methods training, every time.
    common = ["experiment=digits_quick", f"run_root={args.run_root}", "threads=1", "force=true", *args.words]
    folders = []
    for method in METHODS:
        outcome = run(compose([*common, *method]))
        if outcome.status != "completed":
            print(f"{outcome.status}: {outcome.message} ({outcome.folder.path})", file=sys.stderr)
            return 1
        folders.append(outcome.folder.path)

    runs = [read_run(folder) for folder in folders]
    picture = args.run_root / "comparison.png"
    plot(runs, picture)
    print(f"\n{table(runs)}\n")
    print(f"Same initial weights and batches: {'yes' if same_start(runs) else 'NO'}")
    print(f"Curves:      {picture}")
    report([*map(str, folders), "--out", str(args.run_root / "report.html")])
    print(f"TensorBoard: {Path(sys.executable).parent / 'tensorboard'} --logdir {args.run_root}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
