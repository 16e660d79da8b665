"""What a step costs, why, and how the cost grows: ``sibp bench step``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from sibp.bench import revisions, roofline, runs, scaling, step, time_to_target
from sibp.bench.nets import NAMED
from sibp.bench.record import Usage, check_folder, machine_line, save, shown, warnings
from sibp.bench.workers import PEERS
from sibp.runs.errors import INTERRUPTED, UserError
from sibp.runs.output import forgiving_output

COMMANDS = {
    "step": step,
    "scaling": scaling,
    "roofline": roofline,
    "revisions": revisions,
    "runs": runs,
    "time_to_target": time_to_target,
}
MAKERS = {name: module.sections for name, module in COMMANDS.items()}
SECONDS = {"step": 20.0, "scaling": 3.0, "roofline": 5.0, "revisions": 1.0, "runs": 20.0}
OF_RUNS = ("runs", "time_to_target")  # commands that read run folders
EPILOG = """
Tables are printed, and written to README.md in --out, with pictures and one JSON file (machine, versions and all raw
timings) for each command, device and number of threads. Exit code: 0 measured, whatever the result; 2 wrong input;
130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: its arguments, without the program's name; None: those of the process.

    Returns:
        The exit code: 0 measured, 2 wrong input, 130 interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    with forgiving_output():  # a reader that closes the pipe must not cost the record
        try:
            _run(arguments)
        except UserError as error:
            print(error, file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("Interrupted: the measurement under way is not kept.", file=sys.stderr)
            return INTERRUPTED
    return 0


def _run(arguments: list[str]) -> None:
    args = _parser().parse_args(arguments)
    threads = [None] if args.command == "time_to_target" else args.threads or [None]
    if args.command != "time_to_target":
        _check(args)
    for number in threads:
        if number is not None:
            torch.set_num_threads(number)
        _measure(args, arguments)


def _measure(args: argparse.Namespace, arguments: list[str]) -> None:
    """Measures, prints and writes one record."""
    check_folder(args.out)
    module, usage = COMMANDS[args.command], Usage()
    record = module.measure(args, arguments)
    record["others"] = usage.others()
    print(machine_line(record["machine"]))
    print(*(warning.text for warning in warnings(record)), sep="\n")
    print(shown(module.sections(record)))
    written = save(record, args.out, MAKERS, step.headline)  # after printing, since it can fail
    print(f"\nWritten: {', '.join(map(str, written))}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sibp bench", description=__doc__, epilog=EPILOG)
    commands = parser.add_subparsers(dest="command", required=True, metavar="|".join(COMMANDS))
    for name, module in COMMANDS.items():
        text = (module.__doc__ or "").strip().partition(": ")[2]
        command = commands.add_parser(name, help=text, description=text, epilog=EPILOG)
        command.add_argument("--out", type=Path, default=Path("runs/bench"), help="folder (default: %(default)s)")
        if name in OF_RUNS:
            command.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="folder with runs, at any depth")
        if name == "runs":
            _add_timing(command, name, "net")
            command.add_argument(
                "--data-root", type=Path, default=Path("data"), help="folder of the data sets (default: %(default)s)"
            )
        elif name not in OF_RUNS:
            _add_measuring(command, name)
    return parser


def _add_measuring(command: argparse.ArgumentParser, name: str) -> None:
    add = command.add_argument
    add(
        "--net",
        nargs="+",
        default=[],
        help=f"widths such as 784-500-10, or {', '.join(NAMED)} (default: those with targets)",
    )
    add("--batch", nargs="+", type=int, default=[], help="batch sizes (default: those with targets, or 100)")
    _add_timing(command, name, {"scaling": "size", "revisions": "method and process"}.get(name, "net"))
    if name == "revisions":
        add("--old", metavar="COMMIT", required=True, help="earlier commit of the checkout that sibp runs from")
        add("--rounds", type=int, default=5, help="processes per revision and net (default: %(default)s)")
    else:
        add("--device", choices=("cpu", "cuda"), default="cpu", help="(default: %(default)s)")
        add("--dtype", choices=("float32", "float64"), default="float32", help="(default: %(default)s)")
    if name != "scaling":
        peers = f", {', '.join(PEERS)}" if name == "step" else ""
        add("--methods", nargs="+", default=[], help=f"in addition to sgd: exact, cg:K, proxbp, paper, proxprop{peers}")
        choice = "relu, tanh, gelu, silu, ... (default: each net's own)"
        add("--activation", nargs="+", default=[], help=f"of MLPs and transformers: {choice}")
    if name == "step":
        add("--no-memory", dest="memory", action="store_false", help="do not measure memory and first steps")


def _add_timing(command: argparse.ArgumentParser, name: str, each: str) -> None:
    add = command.add_argument
    add(
        "--seconds", type=float, default=SECONDS[name], help=f"duration of the rounds per {each} (default: %(default)g)"
    )
    add(
        "--threads",
        nargs="+",
        type=int,
        default=[],
        help="torch's number of threads, one record each (default: torch's choice)",
    )


def _check(args: argparse.Namespace) -> None:
    if args.command == "revisions" and args.rounds < 1:
        raise UserError(f"--rounds {args.rounds} is not possible: give 1 or more.")
    if getattr(args, "device", "cpu") == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch finds no CUDA device here; use --device cpu.")
    if not 0 <= args.seconds < float("inf"):
        raise UserError(f"--seconds {args.seconds:g} is not possible: give a number of 0 or more.")
    for number in args.threads:
        if number < 1:
            raise UserError(f"--threads {number} is not possible: give 1 or more.")


if __name__ == "__main__":
    sys.exit(main())
