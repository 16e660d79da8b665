"""Train one run, or a sweep: ``sibp train optimizer=sibp dataset=mnist data_root=DIR``.

Every config of the command is composed and tried out before the first run starts: a mistake in any of them is one
sentence and nothing is trained, and a YAML file edited later changes no job of a sweep that is under way.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import sibp
from sibp.experiment.signals import ends_quietly
from sibp.runs.errors import INTERRUPTED, UserError
from sibp.runs.folder import resuming
from sibp.runs.outcome import Outcome
from sibp.runs.output import forgiving_output
from sibp.runs.state import state_of, status_table

# Slow imports (torch, Hydra) are inside functions, where Ctrl-C prints no traceback.

WRONG_INPUT = 2
HELP = """Train one run, or a sweep with -m:

  sibp train experiment=mnist_mlp optimizer=sibp optimizer.lr=0.3 data_root=DIR
  sibp train -m experiment=mnist_mlp optimizer=sgd,proxbp,sibp seed=0,1,2,3,4 data_root=DIR

A run's folder is named by its settings: the same command resumes unfinished runs and skips complete ones;
force=true deletes it and trains it again, each time it is given. Exit code: 0 completed, 1 failed, 2 wrong input,
3 diverged, 4 being trained by another process, 130 interrupted.

Groups (group=option):

{groups}

Settings (key=value; sibp train optimizer=NAME --help shows those of another option):

{settings}

-m sweeps over values separated by commas; --status shows where a command's runs stand; --cfg job shows the settings
without training; --hydra-help lists Hydra's own options."""
EXIT_CODES = {"failed": 1, "diverged": 3, "busy": 4}  # in order of precedence


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: its arguments, without the program's name; None for those the process was started with.

    Returns:
        The exit code: 0 completed, 1 failed, 2 wrong input, 3 diverged, 4 busy, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with forgiving_output():
        try:
            with ends_quietly():
                args = _parsed(arguments)
                if args.help:
                    print(_help(args))
                    return 0
                if args.hydra_help or args.cfg or args.info or args.shell_completion:
                    return _show_hydra([*(each for each in arguments if each not in args.overrides), *args.overrides])
                jobs, launcher = _planned(args)
                if args.status:
                    print("\n".join(status_table([state_of(job) for job in jobs])))
                    return 0
                _check(jobs, launcher)
            return _train(jobs, launcher, args.multirun)
        except UserError as error:
            print(error, file=sys.stderr)
            return WRONG_INPUT


def _parsed(arguments: list[str]) -> Any:
    # Private: Hydra's own options, extended by one.
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    (version,) = (each for each in parser._actions if isinstance(each, argparse._VersionAction))
    version.version = f"sibp {sibp.__version__}"
    parser.add_argument("--status", action="store_true", help="Show where the runs of a command stand; train none")
    args = parser.parse_intermixed_args(arguments)  # overrides may stand before and after flags
    if args.experimental_rerun is not None:
        raise UserError("--experimental-rerun would open a pickle, which can run code: give the settings instead.")
    if args.config_path is not None:
        raise UserError("--config-path would replace sibp's configs: add yours with --config-dir.")
    return args


def _planned(args: Any) -> tuple[list[dict[str, Any]], Any]:
    """The configs of the runs, and Hydra's config of the launcher; None if the runs are trained in this process."""
    from sibp.experiment.compose import hydra_config, plan, with_folder
    from sibp.experiment.overrides import refuse, refuse_idle
    from sibp.experiment.settings import Settings

    refuse(args.overrides)
    refuse_idle(args.overrides, args.multirun)
    overrides = with_folder(args.overrides, args.config_dir)
    name = args.config_name or "config"
    jobs = plan(overrides, args.multirun, name)
    for job in jobs:
        Settings.from_config(job)
    if not args.multirun:
        return jobs, None
    config = hydra_config(overrides, name)
    return jobs, config if config.hydra.runtime.choices["hydra/launcher"] != "basic" else None


def _check(jobs: Sequence[dict[str, Any]], launcher: Any) -> None:
    """Find errors of a sweep's runs before the first run starts; a single run finds its own before it writes a file."""
    from sibp.experiment.runner import check

    elsewhere = False
    if launcher is not None:
        from sibp.experiment.launch import check_launcher, is_elsewhere

        check_launcher(launcher)
        elsewhere = is_elsewhere(launcher)
    if len(jobs) > 1:
        check(jobs, elsewhere)


def _train(jobs: Sequence[dict[str, Any]], launcher: Any, sweep: bool) -> int:
    from sibp.experiment.progress import Progress

    progress, outcomes = Progress(len(jobs)), []

    def tell(outcome: Outcome) -> None:
        outcomes.append(outcome)
        progress.ended(outcome, _line(outcome), outcome.status in ("completed", "skipped"))

    try:
        if launcher is not None:
            from sibp.experiment.launch import launch

            launch(launcher, jobs, tell, progress.look)
        else:
            _train_here(jobs, tell, progress)
    except KeyboardInterrupt:
        progress.close()
        forced = next((job for job in jobs if job.get("force")), jobs[0])
        print(f"Interrupted: {resuming(forced)} resumes from here.", file=sys.stderr)
        return INTERRUPTED
    except UserError:
        raise
    except Exception as error:  # from the launcher; errors of runs are in their outcomes
        print(f"The launcher stopped: {type(error).__name__}: {str(error).strip()}", file=sys.stderr)
        return 1
    finally:
        progress.close()
        if sweep:
            print(_tally(len(jobs), outcomes), flush=True)
    return 1 if len(outcomes) < len(jobs) else _exit_code(outcomes)


def _train_here(jobs: Sequence[dict[str, Any]], tell: Any, progress: Any) -> None:
    """Train the jobs one after another in this process."""
    from sibp.experiment.runner import run

    for job in jobs:
        with progress.beside():
            outcome = run(job)
        tell(outcome)
        if outcome.status == "interrupted":
            raise KeyboardInterrupt


def _line(outcome: Outcome) -> str:
    """The line printed for a run."""
    first, *_ = outcome.message.splitlines() or [""]  # the rest is in summary.json
    if outcome.wrong_input and not os.path.exists(outcome.folder.path):  # the name may be too long
        return f"{outcome.status:<11} {first}"
    return f"{outcome.status:<11} {outcome.folder.path}: {first}"


def _help(args: Any) -> str:
    from sibp.experiment.compose import folders, with_folder
    from sibp.experiment.reference import GROUPS, in_text, options

    places = folders(with_folder(args.overrides, args.config_dir))
    chosen = dict(each.split("=", 1) for each in args.overrides if each.split("=")[0] in GROUPS)
    groups = "\n".join(f"  {group}: {', '.join(options(places, group))}" for group in (*GROUPS, "experiment"))
    settings = in_text(places, {"dataset": "digits", "model": "mlp", "optimizer": "sibp"} | chosen)
    return HELP.format(groups=groups, settings=settings)


def _show_hydra(arguments: list[str]) -> int:
    """Let Hydra print its own help or a config."""
    import hydra

    from sibp.experiment.compose import CONFIGS
    from sibp.experiment.overrides import readable

    try:
        with _command_line(readable(arguments)):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(lambda config: None)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _exit_code(outcomes: Sequence[Outcome]) -> int:
    ended = {outcome.status for outcome in outcomes}
    if all(outcome.wrong_input for outcome in outcomes):
        return WRONG_INPUT
    return next((code for status, code in EXIT_CODES.items() if status in ended), 0)


def _tally(jobs: int, outcomes: Sequence[Outcome]) -> str:
    count = Counter(outcome.status for outcome in outcomes)
    parts = [f"{count[status]} {status}" for status in ("completed", "diverged", "failed", "skipped")]
    parts += [f"{count[status]} {status}" for status in ("busy", "interrupted") if count[status]]
    if jobs > len(outcomes):
        parts.append(f"{jobs - len(outcomes)} not ended")
    return f"{jobs} runs: {', '.join(parts)}"


@contextmanager
def _command_line(arguments: list[str]) -> Iterator[None]:
    """Hydra reads its arguments from sys.argv."""
    before, sys.argv = sys.argv, [sys.argv[0], *arguments]
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(main())
