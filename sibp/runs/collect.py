"""Find every run below the given folders, in a folder of its own or packed with others."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from sibp.runs.packed import PACKED, read_packed
from sibp.runs.reading import MAX_CONFIG, Run, first_line, read_run, read_text
from sibp.runs.values import BrokenError, UsageError, shown

FILES = ("config.yaml", "metrics.jsonl", "summary.json")


@dataclass(frozen=True)
class Broken:
    """A folder that looks like a run's but cannot be used, with the reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Collection:
    """The usable runs, ordered by path, and the broken ones."""

    runs: list[Run]
    broken: list[Broken]


def collect(folders: Sequence[Path]) -> Collection:
    """Read all runs below some folders.

    Args:
        folders: searched recursively, except for hidden folders and links to folders.

    Returns:
        The runs.

    Raises:
        UsageError: a folder does not exist, or none contains a run.
    """
    for folder in folders:
        if not os.path.isdir(folder):  # unlike Path.exists, it raises for a name that is too long
            what = "is not a folder" if os.path.exists(folder) else "does not exist"
            raise UsageError(f"{shown(str(folder))} {what}: give folders that hold runs.")
    unreadable: list[Broken] = []
    # realpath, since Path.resolve raises for a link to itself
    found = {os.path.realpath(path): path for folder in folders for path in _run_folders(folder, unreadable)}
    runs: list[Run] = []
    broken = unreadable
    for path in sorted(found.values()):
        try:
            if path.name == PACKED:
                runs += read_packed(path)
            else:
                runs.append(read_run(path))
        except BrokenError as error:
            broken.append(Broken(path, str(error)))
        except Exception as error:  # one odd folder must not prevent the report of all others
            broken.append(Broken(path, f"it cannot be read ({type(error).__name__}: {first_line(error)})"))
    if not runs and not broken:
        names = ", ".join(shown(str(folder)) for folder in folders)
        raise UsageError(f"There are no runs in {names}: a run's folder holds {', '.join(FILES)}.")
    return Collection(runs, sorted(broken, key=lambda item: item.path))


def _run_folders(folder: Path, unreadable: list[Broken]) -> Iterator[Path]:
    def note(error: OSError) -> None:
        unreadable.append(Broken(Path(error.filename), f"the folder cannot be read ({error.strerror})"))

    for name, below, files in os.walk(folder, onerror=note):
        names = {*files, *below}
        below[:] = [each for each in below if not each.startswith(".") and each != "tb"]
        path = Path(name)
        if names & {"metrics.jsonl", "summary.json"} or ("config.yaml" in names and _is_resolved(path)):
            yield path
        if PACKED in files:
            yield path / PACKED


def _is_resolved(folder: Path) -> bool:
    """Whether a lone config.yaml belongs to a run killed at its start, and is not a source of settings."""
    try:
        text = read_text(folder / "config.yaml", MAX_CONFIG) or ""
    except BrokenError:
        return False
    return "run_root:" in text and "defaults:" not in text
