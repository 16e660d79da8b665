"""Compare finished runs: ``sibp report runs`` writes report.html."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

from sibp.analysis.arena import contests, own_names
from sibp.analysis.clock import net_of, time_all
from sibp.analysis.comparison import compare
from sibp.report.arena_page import build_arena
from sibp.report.blocks import Document
from sibp.report.exports import csv_files, write_medians
from sibp.report.markdown import markdown
from sibp.report.pictures import save_pictures
from sibp.report.sections import build
from sibp.report.terminal import in_short
from sibp.report.web_page import page
from sibp.runs.collect import collect
from sibp.runs.errors import INTERRUPTED
from sibp.runs.folder import write_atomic
from sibp.runs.output import forgiving_output
from sibp.runs.values import UsageError, shown

FORMATS = ("html", "md", "csv", "png", "svg", "tensorboard")
EPILOG = """
Every folder below DIR with a config.yaml, metrics.jsonl or summary.json is a run. Nothing is trained or changed;
unreadable runs are listed with the reason. The end of the report states the rules of comparison. Exit code: 0 written,
2 wrong input, 130 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line, by default the process's own.

    Returns:
        The exit code: 0 written, 2 wrong input, 130 interrupted.
    """
    with forgiving_output():
        try:
            return _main(list(sys.argv[1:] if argv is None else argv))
        except KeyboardInterrupt:
            print("Interrupted before the report was complete.", file=sys.stderr)
            return INTERRUPTED


def _main(words: list[str]) -> int:
    args = _parser().parse_args(words)
    if args.arena and (args.target_acc or args.target_loss):
        print("--arena uses SGD's results as targets: omit --target-acc and --target-loss.", file=sys.stderr)
        return 2
    if args.out.suffix == ".md" and {"html", "md"} <= set(args.format):
        print(f"--out {args.out} would be both the page and the Markdown: give one in .html.", file=sys.stderr)
        return 2
    command = shlex.join(["python", "-m", "sibp.report", *words])
    try:
        collection = collect(args.folders)
        problems = compare(collection.runs, args.target_acc, args.target_loss)
        if args.clock:
            time_all(problems, args.clock)
            if problems and not any(problem.clock for problem in problems):
                nets = ", ".join(f"{net_of(each)} with batches of {each.config.get('batch_size')}" for each in problems)
                raise UsageError(f"--clock {args.clock} has no seconds per step of {shown(nets)}: omit it.")
        if args.arena:
            document = build_arena(collection, contests(problems, own_names(args.folders, collection.broken)), command)
        else:
            document = build(collection, problems, command)
            if problems:
                print(f"{in_short(problems)}\n")
        written = _write(document, args.out, args.format)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    broken = f", {len(collection.broken)} of them broken" if collection.broken else ""
    print(f"{len(collection.runs) + len(collection.broken)} runs{broken}: {', '.join(map(str, written))}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sibp report", description=__doc__, epilog=EPILOG)
    parser.add_argument("folders", metavar="DIR", nargs="+", type=Path, help="folder with runs, at any depth")
    parser.add_argument("--out", type=_file, default=Path("report.html"), help="the page (default: %(default)s)")
    parser.add_argument(
        "--format",
        type=_formats,
        default=("html",),
        metavar=",".join(FORMATS),
        help="comma-separated outputs, next to --out (default: html); tensorboard: medians over seeds, as runs",
    )
    parser.add_argument(
        "--target-acc",
        type=partial(_target, 1.0, "an accuracy: give a number between 0 and 1"),
        help="report steps and seconds to this validation accuracy (default: target_val_acc of the runs, if equal)",
    )
    parser.add_argument(
        "--target-loss",
        type=partial(_target, sys.float_info.max, "a target loss: give a number above 0"),
        help="report steps and seconds to this training loss",
    )
    parser.add_argument(
        "--clock",
        metavar="FILE",
        type=Path,
        help="record of `sibp bench runs` or `step`: time all runs by its interleaved seconds per step",
    )
    parser.add_argument(
        "--arena",
        action="store_true",
        help="combine all problems: standings and performance profiles, with SGD's results as targets",
    )
    return parser


def _file(text: str) -> Path:
    if not Path(text).name:
        raise argparse.ArgumentTypeError(f"{text!r} is not a file name: give one such as report.html")
    return Path(text)


def _formats(text: str) -> tuple[str, ...]:
    chosen = text.split(",")
    if unknown := [name for name in chosen if name not in FORMATS]:
        raise argparse.ArgumentTypeError(f"there is no format {unknown[0]!r}; choose from {', '.join(FORMATS)}")
    return tuple(name for name in FORMATS if name in chosen)


def _target(largest: float, needed: str, text: str) -> float:
    with suppress(ValueError):
        if 0 < (value := float(text)) <= largest:
            return value
    raise argparse.ArgumentTypeError(f"{text} is not {needed}")


def _write(document: Document, out: Path, formats: Sequence[str]) -> list[Path]:
    """Write each format next to ``out``; returns the files, or a pattern where there are many."""
    texts: dict[Path, str] = {}
    endings = {"html": out.suffix, "md": ".md", "tensorboard": "-tensorboard"}
    written = {form: out.with_name(out.stem + endings.get(form, f"-*.{form}")) for form in formats}
    try:
        if out.exists() and not out.is_file():  # a device or a pipe would be replaced by the page
            raise UsageError(f"The report cannot be written to {out} (it is no ordinary file): give another --out.")
        out.parent.mkdir(parents=True, exist_ok=True)
        if "html" in formats:
            texts[out] = page(document, out.parent)
        if "md" in formats:
            drawn = next((form for form in ("svg", "png") if form in formats), None)
            texts[written["md"]] = markdown(document, out.parent, out.stem, drawn)
        if "csv" in formats:
            for name, text in csv_files(document, out.parent).items():
                texts[out.with_name(f"{out.stem}-{name}.csv")] = text
        for path, text in texts.items():
            write_atomic(path, text.encode("utf-8", "backslashreplace"))
        for form in set(formats) & {"png", "svg"}:
            save_pictures(document, out.with_suffix(""), form)
        if "tensorboard" in formats:
            write_medians(document, written["tensorboard"])
    except OSError as error:
        place = str(error.filename2 or error.filename or out).removesuffix(".tmp")
        raise UsageError(f"The report cannot be written to {place} ({error.strerror}): give another --out.") from error
    return list(written.values())


if __name__ == "__main__":
    sys.exit(main())
