"""The command ``sibp``; each subcommand is a module that is imported on demand."""

import difflib
import importlib
import sys
from collections.abc import Sequence

import sibp
from sibp.experiment.signals import ends_quietly

COMMANDS = {
    "train": "sibp.train",
    "tune": "sibp.tune",
    "report": "sibp.report.__main__",
    "bench": "sibp.bench.__main__",
}
HELP = """\
Neural networks trained by semi-implicit back propagation, and compared fairly with others.

  sibp train    train one run, or a sweep with -m    sibp train optimizer=sibp dataset=digits
  sibp tune     tune all methods alike, then run the chosen settings with fresh seeds
                                                     sibp tune sweep=digits_quick
  sibp report   compare the runs below a folder      sibp report runs
  sibp bench    measure what a training step costs   sibp bench step --net 784-500-10

sibp COMMAND --help lists what a command takes; sibp --version prints the version.
In Python: from sibp import SIBP, ProxBP, AutoSIBP."""
WRONG_INPUT = 2


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: its arguments, without the program's name; None for those the process was started with.

    Returns:
        The exit code: that of the command; 0 for help and version, 2 for a command that does not exist.
    """
    command, *arguments = (sys.argv[1:] if argv is None else argv) or ["--help"]
    if command in COMMANDS:
        with ends_quietly("Interrupted."):
            module = importlib.import_module(COMMANDS[command])
        return module.main(arguments)
    if command in ("-h", "--help", "help"):
        print(HELP)
        return 0
    if command in ("-V", "--version"):
        print(f"sibp {sibp.__version__}")
        return 0
    near = difflib.get_close_matches(command, COMMANDS, n=1) or (["train"] if "=" in command else [])
    guess = f"; did you mean sibp {' '.join([near[0], *([command] if '=' in command else [])])}?" if near else "."
    print(f"sibp has no command {command}{guess} There are: {', '.join(COMMANDS)}.", file=sys.stderr)
    return WRONG_INPUT


if __name__ == "__main__":
    sys.exit(main())
