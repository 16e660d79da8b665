"""Train one run, or a sweep: ``sibp train optimizer=sibp dataset=mnist data_root=DIR``.

Every config of the command is composed before the first run starts: a mistake in any of them is one sentence and
nothing is trained, and a YAML file edited later changes no job of a sweep that is under way.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser

from sibp.experiment.compose import CONFIGS, hydra_config, plan, with_folder
from sibp.experiment.errors import UserError
from sibp.experiment.launch import launch
from sibp.experiment.runner import Outcome, run

WRONG_INPUT, INTERRUPTED = 2, 130
EXIT_CODES = {"failed": 1, "diverged": 3, "busy": 4}  # in the order in which they outweigh one another


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: its words, without the program's name; None for those the process was started with.

    Returns:
        The exit code: 0 completed, 1 failed, 2 wrong input, 3 diverged, 4 busy, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    args = get_args_parser().parse_intermixed_args(words)  # so that -m may stand anywhere
    try:
        _refuse_flags(args)
        if args.help or args.hydra_help or args.cfg or args.info or args.shell_completion:
            return _look([*(word for word in words if word not in args.overrides), *args.overrides])
        name = args.config_name or "config"
        overrides = with_folder(args.overrides, args.config_dir)
        jobs = plan(overrides, args.multirun, name)
        config = hydra_config(overrides, name)
        for root in {str(job["run_root"]) for job in jobs}:
            _make_folder(root)
    except UserError as error:
        print(error, file=sys.stderr)
        return WRONG_INPUT
    outcomes: list[Outcome] = []
    try:
        if args.multirun and config.hydra.runtime.choices["hydra/launcher"] != "basic":
            launch(config, jobs, lambda outcome: _tell(outcome, outcomes))
        else:
            _train_here(jobs, outcomes)
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    except UserError as error:
        print(error, file=sys.stderr)
        return WRONG_INPUT
    except Exception as error:  # a launcher's; every run's own are in its outcome
        print(f"The launcher stopped: {type(error).__name__}: {str(error).strip()}", file=sys.stderr)
        return 1
    finally:
        if args.multirun:
            print(_tally(len(jobs), outcomes), flush=True)
    return 1 if len(outcomes) < len(jobs) else _exit_code(args.multirun, outcomes)


def _train_here(jobs: Sequence[dict[str, Any]], outcomes: list[Outcome]) -> None:
    """Train the jobs one after another in this process."""
    for job in jobs:
        outcome = run(job)
        _tell(outcome, outcomes)
        if outcome.status == "interrupted":
            raise KeyboardInterrupt


def _tell(outcome: Outcome, outcomes: list[Outcome]) -> None:
    """One line a run."""
    outcomes.append(outcome)
    good = outcome.status in ("completed", "skipped")
    first, *_ = outcome.message.splitlines()  # all of it is in summary.json
    line = f"{outcome.status:<11} {outcome.folder.path}: {first}"
    print(line, file=sys.stdout if good else sys.stderr, flush=True)


def _look(words: list[str]) -> int:
    """Have Hydra show its help or a config."""
    try:
        with _command_line(words):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(lambda config: None)()
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0


def _exit_code(sweep: bool, outcomes: Sequence[Outcome]) -> int:
    ended = {outcome.status for outcome in outcomes}
    if not sweep and any(outcome.wrong_input for outcome in outcomes):
        return WRONG_INPUT
    return next((code for status, code in EXIT_CODES.items() if status in ended), 0)


def _tally(jobs: int, outcomes: Sequence[Outcome]) -> str:
    count = Counter(outcome.status for outcome in outcomes)
    words = [f"{count[status]} {status}" for status in ("completed", "diverged", "failed", "skipped")]
    words += [f"{count[status]} {status}" for status in ("busy", "interrupted") if count[status]]
    if jobs > len(outcomes):
        words.append(f"{jobs - len(outcomes)} not ended")
    return f"{jobs} runs: {', '.join(words)}"


def _refuse_flags(args: Any) -> None:
    if args.experimental_rerun is not None:
        raise UserError("--experimental-rerun would open a pickle, which can run code: give the settings instead.")
    if args.config_path is not None:
        raise UserError("--config-path would take the place of sibp's configs: add yours to them by --config-dir.")


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"run_root={path} cannot be made ({error.strerror}): give a folder that can be written to."
        ) from error


@contextmanager
def _command_line(words: list[str]) -> Iterator[None]:
    """Hydra reads its words from sys.argv."""
    before, sys.argv = sys.argv, [sys.argv[0], *words]
    try:
        yield
    finally:
        sys.argv = before


if __name__ == "__main__":
    sys.exit(main())
