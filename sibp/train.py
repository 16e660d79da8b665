"""Train one run, or a sweep: ``python -m sibp.train optimizer=sibp dataset=mnist data_root=DIR``.

Every config of the command is composed before the first run starts, so that a mistake in any of them is one
sentence and nothing is trained; then Hydra launches the jobs.
"""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.utils import get_args_parser
from omegaconf import DictConfig, OmegaConf

from sibp.experiment.compose import CONFIGS, plan
from sibp.experiment.errors import UserError
from sibp.experiment.runner import Outcome, run

WRONG_INPUT, INTERRUPTED = 2, 130
EXIT_CODES = {"failed": 1, "diverged": 3, "busy": 4}  # in the order in which they outweigh one another

_outcomes: list[Outcome] = []


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: its words, without the program's name; None for those the process was started with.

    Returns:
        The exit code: 0 completed, 1 failed, 2 wrong input, 3 diverged, 4 busy, 130 interrupted.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    words.sort(key=lambda word: word not in ("-m", "--multirun"))  # so that -m may stand anywhere
    args = get_args_parser().parse_args(words)
    looking = args.help or args.hydra_help or args.cfg or args.info or args.shell_completion
    try:
        _refuse_flags(args)
        jobs = [] if looking else plan(args.overrides, args.multirun, args.config_name or "config")
        for root in {str(job["run_root"]) for job in jobs}:
            _make_folder(root)
    except UserError as error:
        print(error, file=sys.stderr)
        return WRONG_INPUT
    _outcomes.clear()
    try:
        with _command_line(words):
            hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(_job)()
    except KeyboardInterrupt:
        print("Interrupted: the same command goes on from here.", file=sys.stderr)
        return INTERRUPTED
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    finally:
        if args.multirun and not looking:
            print(_tally(len(jobs)), flush=True)
    return _exit_code(args.multirun)


def _job(config: DictConfig) -> None:
    """What Hydra calls for every job."""
    settings: Any = OmegaConf.to_container(config, resolve=True)
    outcome = run(settings)
    _outcomes.append(outcome)
    good = outcome.status in ("completed", "skipped")
    line = f"{outcome.status:<11} {outcome.folder.path}: {outcome.message}"
    print(line, file=sys.stdout if good else sys.stderr, flush=True)
    if outcome.status == "interrupted":
        raise KeyboardInterrupt


def _exit_code(sweep: bool) -> int:
    ended = {outcome.status for outcome in _outcomes}
    if not sweep and any(outcome.wrong_input for outcome in _outcomes):
        return WRONG_INPUT
    return next((code for status, code in EXIT_CODES.items() if status in ended), 0)


def _tally(jobs: int) -> str:
    count = Counter(outcome.status for outcome in _outcomes)
    words = [f"{count[status]} {status}" for status in ("completed", "diverged", "failed", "skipped")]
    words += [f"{count[status]} {status}" for status in ("busy", "interrupted") if count[status]]
    if jobs > len(_outcomes):
        words.append(f"{jobs - len(_outcomes)} not started")
    return f"{jobs} runs: {', '.join(words)}"


def _refuse_flags(args: Any) -> None:
    if args.experimental_rerun is not None:
        raise UserError("--experimental-rerun would open a pickle, which can run code: give the settings instead.")
    if args.config_path is not None or args.config_dir is not None:
        raise UserError(f"Configs are read from {CONFIGS} alone: put yours into one of its folders.")


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
