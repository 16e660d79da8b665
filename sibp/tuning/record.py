"""A study on disk: ``tuning.json``, and ``tuning.md`` for people; every command rewrites both from the run folders."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from sibp.runs.folder import finite, write_atomic
from sibp.tuning.study import MethodRecord, RunRecord, Study, TrialRecord, shown

METRICS = ("val_acc", "val_loss", "train_loss", "test_acc", "test_loss")
TRIED = METRICS[:3]  # metrics of a trial, which never evaluates test data


def save(study: Study) -> None:
    """Write a study's record into its sweep's folder.

    Args:
        study: running or finished.

    Raises:
        OSError: the folder cannot be written.
    """
    root = study.sweep.root
    root.mkdir(parents=True, exist_ok=True)
    record = content(study)
    write_atomic(root / "tuning.json", (json.dumps(finite(record), indent=2, allow_nan=False) + "\n").encode())
    write_atomic(root / "tuning.md", _markdown(record).encode())


def content(study: Study) -> dict[str, Any]:
    """The settings and results of a study, as plain mappings.

    Args:
        study: running or finished.

    Returns:
        The content of tuning.json; run folders are named relative to it.
    """
    sweep = study.sweep
    warnings = list(_warnings(study))
    return {
        "sweep": sweep.name,
        "finished": all(record.chosen and _all_ended(record.finals) for record in study.methods),
        "criterion": sweep.criterion,
        "at": sweep.at,
        "trials_per_method": sweep.trials,
        "tuning_seeds": sweep.tuning_seeds,
        "final_seeds": sweep.final_seeds,
        "warnings": warnings,
        "methods": [_method(record, sweep.root) for record in study.methods],
    }


def _method(record: MethodRecord, root: Path) -> dict[str, Any]:
    return {
        "name": record.method.name,
        "optimizer": {k: v for k, v in record.method.config["optimizer"].items() if k not in _tuned(record)},
        "initial_grid": {axis.name: list(axis.values) for axis in record.method.axes},
        "trials": [_trial(each, root) for each in record.trials],
        "chosen": record.chosen.setting if record.chosen else None,
        "edges": record.edges,
        "final_runs": [_run(run, root) for run in record.finals],
    }


def _trial(each: TrialRecord, root: Path) -> dict[str, Any]:
    return {"setting": each.setting, "why": each.trial.why, "runs": [_run(run, root) for run in each.runs]}


def _run(run: RunRecord, root: Path) -> dict[str, Any]:
    return {
        "seed": run.seed,
        "status": run.status,
        **({"reason": run.reason} if run.reason else {}),
        **run.metrics,
        "seconds": run.seconds,
        "folder": run.folder.path.relative_to(root).as_posix(),
    }


def _tuned(record: MethodRecord) -> list[str]:
    return [axis.name for axis in record.method.axes]


def _all_ended(runs: Sequence[RunRecord]) -> bool:
    return bool(runs) and all(run.status in ("completed", "diverged") for run in runs)


def _warnings(study: Study) -> Iterable[str]:
    for record in study.methods:
        name, tried = record.method.name, len(record.trials)
        for edge in record.edges:
            yield f"{name}: the chosen {edge}, and no trial is left to look beyond: raise trials."
        if record.waiting:
            yield f"{name}: trials have not ended: the same command resumes them."
        elif not study.interrupted and tried < study.sweep.trials:
            yield f"{name}: only {tried} of {study.sweep.trials} trials: its grid has nothing finer to try."
        elif not study.interrupted and record.chosen is None:
            yield f"{name}: no setting completed, so none is chosen."
        failed = sum(run.status == "failed" for each in record.trials for run in each.runs)
        if failed:
            yield f"{name}: {failed} trials failed and count as the worst: the same command tries them again."
    if all(record.chosen for record in study.methods):
        trials = [run for record in study.methods for each in record.trials for run in each.runs]
        if others := _count_other_runs(study.sweep.root / "trials", trials):
            yield (
                f"trials/ holds {others} runs that do not belong to this sweep: a choice that used them rests on more "
                "trials than the other methods had."
            )
        finals = [run for record in study.methods for run in record.finals]
        if others := _count_other_runs(study.sweep.root / "final", finals):
            yield f"final/ holds {others} runs of other settings: test data were evaluated before this choice."


def _count_other_runs(folder: Path, runs: Sequence[RunRecord]) -> int:
    return len({path.parent.name for path in folder.glob("*/config.yaml")} - {run.folder.path.name for run in runs})


def _markdown(record: dict[str, Any]) -> str:
    """The record as Markdown tables."""
    seeds = ", ".join(map(str, record["tuning_seeds"]))
    lines = [
        f"# Tuning: {record['sweep']}",
        "",
        f"{'Finished.' if record['finished'] else 'Not finished: the same command resumes it.'} Every method has "
        f"{record['trials_per_method']} trials, with seed {seeds}; the {record['at']} {record['criterion']} decides. "
        "Only the final runs evaluated test data.",
        "",
        *(f"- **{warning}**" for warning in record["warnings"]),
        *([""] if record["warnings"] else []),
        *_table(["method", "trials", "chosen", "final runs", *METRICS, "train s"], map(_overview, record["methods"])),
        "",
        "Values are medians over the final runs.",
    ]
    for method in record["methods"]:
        rows = [_trial_row(trial, method["chosen"]) for trial in method["trials"]]
        lines += ["", f"## {method['name']}", "", *_table(["setting", "why", "status", *TRIED, "train s"], rows)]
    return "\n".join(lines) + "\n"


def _overview(method: dict[str, Any]) -> list[str]:
    chosen, finals = method["chosen"], method["final_runs"]
    good = [run for run in finals if run["status"] == "completed"]
    ended = f"{len(good)} of {len(finals)} completed"
    return [
        method["name"],
        str(len(method["trials"])),
        shown(chosen) if chosen else "-",
        ended,
        *_medians(good, METRICS),
    ]


def _trial_row(trial: dict[str, Any], chosen: dict[str, float] | None) -> list[str]:
    status = ", ".join(sorted({run["status"] for run in trial["runs"]}))
    text = f"**{shown(trial['setting'])}**" if trial["setting"] == chosen else shown(trial["setting"])
    return [text, trial["why"], status, *_medians([run for run in trial["runs"] if "val_loss" in run], TRIED)]


def _medians(runs: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[str]:
    found = []
    for key in (*keys, "seconds"):
        values = [run[key] for run in runs if key in run]
        found.append(format(median(values), ".4g") if values else "-")
    return found


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
