"""Kill runs, sweeps and tunings at random times; the same command must complete them with identical results.

    python scripts/kill_test.py --kills 1000

Each command is first run undisturbed. Then it is started and killed by SIGKILL at a random time until it has been
killed ten times, and finally left to end. Rows, summaries and weights must be bitwise equal to those of the undisturbed
run, except for seconds. If runs have their own processes, either the sweep or one of its runs is killed.
"""

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

SERVER = multiprocessing.get_context("forkserver")
SHORT = [
    "model.hidden=[8]",
    "epochs=null",
    "max_steps=60",
    "log_every=3",
    "checkpoint_every=5",
    "threads=1",
    "device=cpu",
    "progress=false",
]
COMMANDS = {
    "run": ("sibp.train", [*SHORT, "optimizer=sibp"]),
    "sweep": ("sibp.train", [*SHORT, "-m", "optimizer=sgd,sibp", "seed=0,1"]),
    "processes": ("sibp.train", [*SHORT, "-m", "seed=0,1,2", "hydra/launcher=sibp_joblib", "hydra.launcher.n_jobs=2"]),
    "tuning": ("sibp.tune", ["sweep=digits_quick", *SHORT[1:], "max_steps=6", "tensorboard=false"]),
}
MARK = "SIBP_KILL_TEST"  # in the environment of all processes that this one starts
KILLS_EACH = 10  # kills of one command before it is left to end
SAME = ("seconds", "first_step_seconds", "seconds_to_target", "environment", "started")  # differs between any two runs


def work(module: str, words: list[str]) -> None:
    """Runs a command silently, in a child process."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    import importlib

    sys.exit(importlib.import_module(module).main(words))


def start(module: str, words: list[str]) -> Any:
    """Start a command in a process that has already imported everything."""
    process = SERVER.Process(target=work, args=(module, words))
    process.start()
    return process


def ending(root: Path) -> dict[str, Any]:
    """The content of the files that a command leaves, without the entries that differ between any two runs."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        name = path.relative_to(root).as_posix()
        if path.name == "metrics.jsonl":
            found[name] = [_plain(json.loads(line)) for line in path.read_text().splitlines()]
        elif path.name in ("summary.json", "tuning.json"):
            found[name] = _plain(json.loads(path.read_text()))
        elif path.name == "checkpoint.pt":
            model = torch.load(path, weights_only=True)["model"]
            found[name] = {key: value.numpy().tobytes() for key, value in model.items()}
        elif path.suffix == ".tmp":
            found[name] = "left behind"
    return found


def _plain(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _plain(value) for key, value in node.items() if key not in SAME}
    return [_plain(item) for item in node] if isinstance(node, list) else node


def _process_to_kill(process: Any, root: Path, rng: random.Random) -> int:
    """The process to kill: the command itself or, with probability 1/2, one of its training processes."""
    locks = [path.read_text(errors="replace").split() for path in root.rglob(".lock")]
    others = {int(words[1]) for words in locks if len(words) > 1 and words[1].isdigit()} - {process.pid, os.getpid()}
    alive = [other for other in others if _is_child(other)]
    return rng.choice(alive) if alive and rng.random() < 0.5 else process.pid


def _is_child(process_id: int) -> bool:
    """Whether a process was started by this one: the process id in a lock may have been reused."""
    try:
        return f"{MARK}={os.environ[MARK]}".encode() in Path(f"/proc/{process_id}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def disturbed(name: str, root: Path, length: float, kills: int, rng: random.Random) -> int:
    """Kill a command again and again, then let it end.

    Args:
        name: of the command.
        root: for its runs.
        length: seconds that it takes undisturbed.
        kills: number of kills.
        rng: draws the times.

    Returns:
        The number of kills, lower if the command had ended before.
    """
    module, words = COMMANDS[name]
    done = 0
    for _ in range(kills):
        process = start(module, [*words, f"run_root={root}"])
        process.join(rng.uniform(0, length / 2))
        if process.exitcode is not None:
            break
        victim = _process_to_kill(process, root, rng)
        os.kill(victim, signal.SIGKILL)
        done += 1
        if victim == process.pid:
            process.join()
        else:
            process.kill()
            process.join()
    while True:  # exit code 4 (busy): a process of the killed sweep may still be writing its checkpoint
        process = start(module, [*words, f"run_root={root}"])
        process.join()
        if process.exitcode not in (1, 4):
            return done
        time.sleep(0.1)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: its arguments; None: those of the process.

    Returns:
        0 if nothing was lost, else 1.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=1000, help="total number of kills (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the random times")
    parser.add_argument(
        "--commands", nargs="+", choices=COMMANDS, default=list(COMMANDS), help="commands to kill (default: all)"
    )
    parser.add_argument("--minutes", type=float, default=60, help="time limit in minutes (default: %(default)s)")
    args = parser.parse_args(argv)
    os.environ[MARK] = f"{os.getpid()}-{time.time_ns()}"
    os.environ["PYTHONWARNINGS"] = "ignore:resource_tracker"  # semaphores of processes that were killed
    SERVER.set_forkserver_preload(["sibp.train", "sibp.tune", "sibp.experiment.runner", "sibp.tuning.study"])
    rng, until = random.Random(args.seed), time.monotonic() + 60 * args.minutes
    kills, lost = dict.fromkeys(args.commands, 0), 0
    with tempfile.TemporaryDirectory() as folder:
        whole, lengths = {}, {}
        for name in kills:
            module, words = COMMANDS[name]
            started = time.monotonic()
            process = start(module, [*words, f"run_root={folder}/whole-{name}"])
            process.join()
            lengths[name], whole[name] = time.monotonic() - started, ending(Path(f"{folder}/whole-{name}"))
            print(f"{name}: {lengths[name]:.1f} s undisturbed, exit code {process.exitcode}", flush=True)
        while sum(kills.values()) < args.kills and time.monotonic() < until:
            name = min(kills, key=lambda each: kills[each])
            root = Path(f"{folder}/{name}")
            kills[name] += disturbed(name, root, lengths[name], min(KILLS_EACH, args.kills), rng)
            if (found := ending(root)) != whole[name]:
                lost += 1
                differ = [key for key in found.keys() | whole[name].keys() if found.get(key) != whole[name].get(key)]
                print(f"{name} after {kills[name]} kills: {', '.join(sorted(differ))} differ", flush=True)
            shutil.rmtree(root, ignore_errors=True)  # a failed command may have written none
    listed = ", ".join(f"{name} {count}" for name, count in kills.items())
    print(f"{sum(kills.values())} kills ({listed}): {lost} commands ended differently from their undisturbed run.")
    return 1 if lost else 0


if __name__ == "__main__":
    sys.exit(main())
