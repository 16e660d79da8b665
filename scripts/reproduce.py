"""Run or resume the experiments of results/experiments.yaml, keep their evidence under results/, and judge the claims.

    python scripts/reproduce.py                  # those without kept evidence, except *_full
    python scripts/reproduce.py depth rounds     # these, whether evidence is kept or not
    python scripts/reproduce.py --add arena/deep # only its new runs, such as those of a new method
    python scripts/reproduce.py --dry            # only list the commands

Finished runs in the run root are not trained again, so the same command resumes after an interruption. An experiment
is kept when all its runs have ended, and replaces its earlier evidence. Until then, finished runs are in
results/unfinished, from where another machine can resume. Exit code: 0 all requested experiments are kept,
1 some are not, 2 wrong input, 130 interrupted.
"""

import argparse
import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from sibp.runs.collect import collect
from sibp.runs.errors import INTERRUPTED
from sibp.runs.folder import FINISHED, RunFolder
from sibp.runs.identity import digest, digest_in
from sibp.runs.packed import PACKED, pack, read_packed, rows_of
from sibp.runs.values import BrokenError, UsageError
from sibp.runs.yaml_file import parse_yaml
from sibp.study.experiments import Experiment, is_kept, read_experiments

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
RECORDS = ("*.json",)  # kept as they are, beside the runs
BELOW = {"tune": ("trials", "final"), "script": ()}  # subfolder of the runs of a command, if any
UNFINISHED, SAVED = "unfinished", "ended.jsonl"
ENDED = 0, 3  # 3: a run diverged, which is a result


def commands(experiment: Experiment, run_root: Path, own: Sequence[str]) -> Iterator[list[str]]:
    """The commands of an experiment, without the name of the interpreter.

    Args:
        experiment: the experiment.
        run_root: for the runs of all experiments.
        own: overrides for every training command, such as ``data_root=data``.

    Yields:
        The arguments of one command.

    Raises:
        UsageError: it uses the settings of an experiment that is not kept.
    """
    for folder, command in experiment.commands.items():
        kind, *arguments = shlex.split(command)
        place = (run_root / experiment.name / folder).as_posix()
        after = [*own, f"run_root={place}", "tensorboard=false"]
        whole = ["eval_val_limit=null"]  # kept runs are judged by all validation images, like tuning
        if kind == "script":
            yield [f"scripts/{arguments[0]}", "--out", place]
        elif kind == "chosen":
            for choice in _choices(arguments[0]):
                yield ["-m", "sibp.train", "-m", *arguments[1:], *choice, *whole, *after]
        elif kind == "train":
            yield ["-m", "sibp.train", "-m", *arguments, *whole, *after]
        else:
            yield ["-m", f"sibp.{kind}", *arguments, *after]


def _choices(name: str) -> Iterator[list[str]]:
    """Every method of a tuned experiment with its chosen setting, as overrides."""
    path = RESULTS / name / "tuning.json"
    if not path.exists():
        raise UsageError(f"{name} is not kept yet, and its choice is needed: python scripts/reproduce.py {name}")
    for method in json.loads(path.read_text())["methods"]:
        if method["chosen"]:
            setting = method["optimizer"] | method["chosen"]
            config = _config_of(setting)
            yield [f"optimizer={config}", *(f"optimizer.{k}={_word(v)}" for k, v in setting.items() if k != "name")]


def _config_of(setting: dict[str, Any]) -> str:
    """The config of an optimizer with these keys, all of whose values are overridden: locoprop_s for locoprop."""
    names = sorted(path.stem for path in (ROOT / "configs" / "optimizer").glob("*.yaml"))
    fitting = [
        (len(given), name)
        for name in names
        if (given := _settings_of(name))["name"] == setting["name"] and setting.keys() <= given.keys()
    ]
    return min(fitting)[1] if fitting else setting["name"]


@cache
def _settings_of(config: str) -> dict[str, Any]:
    """The settings of an optimizer's config, with those of the configs that it extends."""
    own = parse_yaml((ROOT / "configs" / "optimizer" / f"{config}.yaml").read_text())
    extended = [_settings_of(base) for base in own.pop("defaults", []) if base != "_self_"]
    return {key: value for settings in (*extended, own) for key, value in settings.items()}


def _word(value: Any) -> str:
    return json.dumps(value) if not isinstance(value, str) else value


def run(experiment: Experiment, run_root: Path, own: Sequence[str]) -> int:
    """Run or resume an experiment.

    Args:
        experiment: the experiment.
        run_root: for the runs of all experiments.
        own: overrides for every training command.

    Returns:
        0 if all its runs have ended, else the first other exit code.
    """
    for arguments in commands(experiment, run_root, own):
        print(f"$ python {shlex.join(arguments)}", flush=True)
        try:
            code = subprocess.run([sys.executable, *arguments], cwd=ROOT).returncode
        except KeyboardInterrupt:  # the command was interrupted too, and has written its checkpoint
            code = INTERRUPTED
        if code not in ENDED:
            return code
    return 0


def _places(experiment: Experiment) -> Iterator[Path]:
    """The folder of its runs."""
    for folder, command in experiment.commands.items():
        for below in BELOW.get(command.split()[0], (".",)):
            yield Path(folder) / below


def restore(experiment: Experiment, run_root: Path, kept: Path, packed: str = PACKED) -> int:
    """Restore kept runs to the run root, so that they are not trained again.

    Args:
        experiment: the experiment.
        run_root: for the runs of all experiments.
        kept: the folder that holds those of all experiments.
        packed: the name of their files.

    Returns:
        The number restored: missing runs whose name still matches their settings.

    Raises:
        UsageError: a file is damaged; says which one.
    """
    restored = 0
    for path in sorted((kept / experiment.name).rglob(packed)):
        place = run_root / path.parent.relative_to(kept)
        try:
            runs = read_packed(path)
        except BrokenError as error:
            raise UsageError(f"{path} cannot be used: {error}.") from error
        for run in runs:
            folder = RunFolder(run.config | {"run_root": str(place)})
            if digest(folder.config) != digest_in(run.path.name) or folder.is_finished():
                continue
            with folder.locked():
                folder.clear()
                folder.write_config()
                for row in rows_of(run):
                    folder.append_row(row)
                folder.write_summary(run.summary)
            restored += 1
    return restored


def save(experiment: Experiment, run_root: Path, results: Path = RESULTS) -> int:
    """Keep the finished runs of an unfinished experiment, so that another machine can resume it.

    Args:
        experiment: the experiment.
        run_root: as it was run with.
        results: where evidence is kept; these runs go to the folder `UNFINISHED` in it.

    Returns:
        The number of runs kept.
    """
    source, count = run_root / experiment.name, 0
    for place in filter(lambda place: (source / place).is_dir(), _places(experiment)):
        ended = [run for run in collect([source / place]).runs if run.status in FINISHED]
        if ended:
            target = results / UNFINISHED / experiment.name / place / SAVED
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(pack(ended))
            count += len(ended)
    return count


def keep(experiment: Experiment, run_root: Path, results: Path = RESULTS) -> str | None:
    """Replace an experiment's kept runs by those in the run root.

    Args:
        experiment: the experiment.
        run_root: as it was run with.
        results: where evidence is kept.

    Returns:
        None, or why nothing was changed.
    """
    files: dict[Path, str] = {}
    source = run_root / experiment.name
    for part in (source / folder for folder in experiment.commands):
        for path in sorted(path for pattern in RECORDS for path in part.glob(pattern)):
            files[path.relative_to(source)] = path.read_text()
    for place in _places(experiment):
        try:
            found = collect([source / place])
        except UsageError as error:
            return str(error)
        waiting = [run.path.name for run in found.runs if run.status not in FINISHED]
        if waiting or found.broken:
            return f"{len(waiting)} runs have not ended, {len(found.broken)} are broken: the same command resumes them."
        files[place / PACKED] = pack(found.runs)
    if not files:
        return f"{source} holds no results."
    target = results / experiment.name
    for path in target.iterdir() if target.exists() else ():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name not in ("report.md", "README.md"):  # the report states its own command
            path.unlink()
    for place, text in files.items():
        (target / place).parent.mkdir(parents=True, exist_ok=True)
        (target / place).write_text(text)
    return None


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        The exit code; see the module's docstring.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", metavar="NAME", nargs="*", help="experiments; all: all except *_full")
    parser.add_argument("--add", action="store_true", help="resume from the kept runs of these")
    parser.add_argument("--dry", action="store_true", help="list the commands; run none")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of every run (default: 1)")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="folder of the data sets (default: data)")
    parser.add_argument("--run-root", type=Path, default=Path("runs"), help="parent of the run folders (default: runs)")
    args = parser.parse_args(argv)
    own = [f"data_root={args.data_root}", f"threads={args.threads}"]
    try:
        experiments = _wanted(args.names, read_experiments(RESULTS / "experiments.yaml"))
        if args.dry:
            return _list(experiments, args.run_root, own)
        for each in experiments if args.add else ():
            print(f"{each.name}: {restore(each, args.run_root, RESULTS)} kept runs are restored to {args.run_root}.")
        missed = {each.name: why for each in experiments if (why := _reproduce(each, args.run_root, own))}
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("Interrupted: the same command resumes from here.", file=sys.stderr)
        return INTERRUPTED
    for name, why in missed.items():
        print(f"{name} is not kept: {why}", file=sys.stderr)
    for script in ("results.py", "shown_results.py"):
        subprocess.run([sys.executable, f"scripts/{script}"], cwd=ROOT, check=True)
    return 1 if missed else 0


def _wanted(names: Sequence[str], experiments: dict[str, Experiment]) -> list[Experiment]:
    if unknown := [name for name in names if name not in (*experiments, "all")]:
        raise UsageError(f"There is no experiment {unknown[0]!r}; choose from: all, {', '.join(experiments)}.")
    short = [each for each in experiments.values() if not each.is_full]
    if names:
        return [each for each in experiments.values() if each.name in names or ("all" in names and each in short)]
    for each in short:
        if is_kept(each.name, RESULTS):
            print(f"{each.name} is kept already; name it to run it again.")
    return [each for each in short if not is_kept(each.name, RESULTS)]


def _reproduce(experiment: Experiment, run_root: Path, own: Sequence[str]) -> str | None:
    print(f"\n{experiment.name} (about {experiment.minutes:g} minutes): {experiment.asks}", flush=True)
    if restored := restore(experiment, run_root, RESULTS / UNFINISHED, SAVED):
        print(f"{restored} runs of an earlier attempt are restored to {run_root}.", flush=True)
    try:
        code = run(experiment, run_root, own)
    except UsageError as error:
        return str(error)
    reason = keep(experiment, run_root) if code == 0 else f"a command above ended with exit code {code}."
    if reason is None:
        shutil.rmtree(RESULTS / UNFINISHED / experiment.name, ignore_errors=True)
    elif count := save(experiment, run_root):
        print(f"The {count} finished runs are kept in {RESULTS / UNFINISHED / experiment.name}.", flush=True)
    if code == INTERRUPTED:
        raise KeyboardInterrupt
    return reason


def _list(experiments: Sequence[Experiment], run_root: Path, own: Sequence[str]) -> int:
    for each in experiments:
        kept = ", kept" if is_kept(each.name, RESULTS) else ""
        print(f"\n{each.name} (about {each.minutes:g} minutes{kept}): {each.asks}")
        try:
            for arguments in commands(each, run_root, own):
                print(f"  python {shlex.join(arguments)}")
        except UsageError as error:
            print(f"  {error}")
    print(f"\n{len(experiments)} experiments, about {sum(each.minutes for each in experiments) / 60:.1f} hours.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
