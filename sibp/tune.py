"""Tune every method of a sweep equally, then run the chosen settings: ``sibp tune sweep=digits_quick``."""

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from sibp.experiment.signals import ends_quietly
from sibp.runs.errors import INTERRUPTED, UserError
from sibp.runs.folder import FINISHED, RunFolder, resuming
from sibp.runs.outcome import Outcome
from sibp.runs.output import forgiving_output
from sibp.runs.state import duration
from sibp.train import EXIT_CODES, WRONG_INPUT

if TYPE_CHECKING:  # slow imports are inside functions, where Ctrl-C prints no traceback
    from sibp.experiment.progress import Progress
    from sibp.tuning.study import Job, Study
    from sibp.tuning.sweep import Sweep

EPILOG = """
A sweep is a file in configs/sweep: shared settings, the methods with their initial grids, the number of settings tried
(the same for every method), the criterion of choice, and the seeds. The initial grid is run completely, then settings
beyond the edge at which the best one lies, then finer ones around the best. Trials never evaluate test data. The chosen
settings are run with the final seeds and evaluated on test data.

Other overrides are those of sibp train and apply to all runs: data_root=DIR, threads=1, device=cpu, run_root=DIR
(default: runs/tuning/SWEEP), and hydra/launcher=sibp_joblib to train several runs at once.

RUN_ROOT/trials and RUN_ROOT/final hold the run folders, RUN_ROOT/tuning.json and tuning.md the record of all trials and
choices. The same command resumes unfinished runs, skips complete ones and retries failed ones.
sibp report RUN_ROOT compares the methods.

Exit code: 0 every chosen setting completed its final runs (trials may have diverged), 1 a run failed, 2 wrong input,
3 a final run diverged, or no setting of a method completed, 4 runs are being trained by another process,
130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: its arguments, without the program's name; None: those of the process.

    Returns:
        The exit code; see `EPILOG`.
    """
    with forgiving_output():
        try:
            with ends_quietly():
                sweep, launcher, args = _planned(list(sys.argv[1:] if argv is None else argv))
                if args.dry:
                    _list(sweep)
                    return 0
            return _tune(sweep, launcher)
        except UserError as error:
            print(error, file=sys.stderr)
            return WRONG_INPUT
        except OSError as error:  # of the record: those of runs are in their outcomes
            name, why = error.filename or "The record of the sweep", error.strerror or error
            print(
                f"{name} cannot be written ({why}): all runs so far are kept, and the same command continues once this "
                "is fixed; or give another run_root=DIR.",
                file=sys.stderr,
            )
            return WRONG_INPUT


def _planned(arguments: list[str]) -> tuple["Sweep", Any, argparse.Namespace]:
    """The sweep, Hydra's config of the launcher (None: runs are trained in this process), and the flags."""
    from sibp.experiment.compose import hydra_config, with_folder
    from sibp.experiment.launch import check_launcher, is_elsewhere
    from sibp.experiment.overrides import refuse
    from sibp.tuning.sweep import names, read_sweep, try_out

    parser = argparse.ArgumentParser(
        prog="sibp tune",
        description=f"{(__doc__ or '').strip()} The sweeps are: {', '.join(names())}.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("overrides", metavar="key=value", nargs="*", help="sweep=NAME, and settings as for sibp train")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with your own configs, in addition to sibp's")
    parser.add_argument("--dry", action="store_true", help="list the runs and estimate their time; train none")
    args = parser.parse_intermixed_args(arguments)  # overrides may stand before and after --dry
    sweeps = [each.removeprefix("sweep=") for each in args.overrides if each.startswith("sweep=")]
    own = [each for each in args.overrides if not each.startswith("sweep=")]
    refuse(own)
    own = with_folder(own, args.config_dir)
    if len(sweeps) != 1:
        known = names(own)
        raise UserError(f"Name one sweep: sweep={known[0]}; there are: {', '.join(known)}.")
    sweep = read_sweep(sweeps[0], own)
    config = hydra_config(own)
    launcher = config if config.hydra.runtime.choices["hydra/launcher"] != "basic" else None
    if launcher is not None:
        check_launcher(launcher)
    if not args.dry:
        try_out(sweep, launcher is not None and is_elsewhere(launcher))
    return sweep, launcher, args


def _tune(sweep: "Sweep", launcher: Any) -> int:
    from sibp.experiment.launch import launch
    from sibp.experiment.progress import Progress
    from sibp.experiment.runner import run
    from sibp.tuning.record import content, save
    from sibp.tuning.study import Job, Study

    outcomes: list[Outcome] = []
    progress = Progress(sweep.count)

    def train(jobs: Sequence[Job], keep: Callable[[Outcome], None]) -> None:
        by_name = {RunFolder(job.config).path.name: job for job in jobs}

        def ended(outcome: Outcome) -> None:
            outcomes.append(outcome)
            keep(outcome)
            _print_outcome(by_name[outcome.folder.path.name], outcome, progress)

        if launcher is not None and jobs:
            launch(launcher, [job.config for job in jobs], ended, progress.look)
        for job in jobs if launcher is None else ():
            with progress.beside():
                outcome = run(job.config)
            ended(outcome)
            if outcome.status == "interrupted":
                break
        if any(outcome.status == "interrupted" for outcome in outcomes):
            raise KeyboardInterrupt

    study = Study(sweep, train, save)
    study.run()
    progress.close()
    for warning in content(study)["warnings"]:
        print(f"Warning: {warning}", file=sys.stderr)
    if study.interrupted:
        print(f"Interrupted: {resuming(sweep.methods[0].config)} resumes from here.", file=sys.stderr)
    print(_tally(outcomes), flush=True)
    return INTERRUPTED if study.interrupted else _exit_code(study)


def _print_outcome(job: "Job", outcome: Outcome, progress: "Progress") -> None:
    """Print one line per run."""
    first, *_ = outcome.message.splitlines() or [""]
    line = f"{outcome.status:<11} {job.label}: {first} ({outcome.folder.path})"
    progress.ended(outcome, line, outcome.status not in ("failed", "busy", "interrupted"))


def _tally(outcomes: Sequence[Outcome]) -> str:
    count = Counter(outcome.status for outcome in outcomes)
    parts = [f"{count[status]} {status}" for status in ("completed", "diverged", "failed", "skipped")]
    parts += [f"{count[status]} {status}" for status in ("busy", "interrupted") if count[status]]
    return f"{len(outcomes)} runs: {', '.join(parts)}"


def _exit_code(study: "Study") -> int:
    finals = {run.status for record in study.methods for run in record.finals}
    ended = finals | {run.status for record in study.methods for each in record.trials for run in each.runs}
    if ended & {"failed", "not ended"}:
        return EXIT_CODES["failed"]
    if "busy" in ended:
        return EXIT_CODES["busy"]
    return 0 if finals == {"completed"} and all(record.chosen for record in study.methods) else EXIT_CODES["diverged"]


def _list(sweep: "Sweep") -> None:
    """Print the runs of a sweep with their status, and an estimate of the remaining time."""
    from sibp.tuning.estimate import seconds_from_steps, seconds_of
    from sibp.tuning.study import Study, shown

    study = Study(sweep, _report_finished, save=lambda study: None)
    study.run()
    left = 0.0
    for record in study.methods:
        runs = [run for each in record.trials for run in each.runs] + record.finals
        done = sum(run.status != "not ended" for run in runs)
        count = sweep.trials * len(sweep.tuning_seeds) + len(sweep.final_seeds)
        seconds, source = seconds_of([run.folder for run in runs]), "as its finished runs took"
        if seconds is None:
            seconds, source = seconds_from_steps(runs[0].folder.config), "from a few steps"
        left += (count - done) * seconds
        print(f"{record.method.name}: {count} runs, {done} finished, each about {duration(seconds)} ({source})")
        for each in record.trials:
            for one in each.runs:
                print(f"  trial {shown(each.setting)} s{one.seed}: {one.status}")
        reserve = sweep.trials - len(record.trials)
        if reserve:
            print(f"  {reserve} more trials, beyond an edge or around the best, as the results will suggest")
        what = shown(record.chosen.setting) if record.chosen else "the chosen setting"
        print(f"  final {what}, seeds {', '.join(map(str, sweep.final_seeds))}")
    print(f"About {duration(left)} left (an estimate: one run at a time, evaluation included).")


def _report_finished(jobs: Sequence["Job"], keep: Callable[[Outcome], None]) -> None:
    """Report the finished runs, instead of training."""
    for job in jobs:
        folder = RunFolder(job.config)
        status = (folder.summary() or {}).get("status")
        if status in FINISHED:
            keep(Outcome(status, "", folder))


if __name__ == "__main__":
    sys.exit(main())
