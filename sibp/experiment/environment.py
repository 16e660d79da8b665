"""The environment of a run, needed to judge or repeat it."""

import functools
import os
import platform
import shlex
import socket
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from sibp.experiment.plugins import digest_of, versions_of_installed
from sibp.prox import kernels


def describe(device: torch.device, plugins: Sequence[str] = ()) -> dict[str, Any]:
    """Everything in the environment that can affect a number or a time.

    Args:
        device: the training device.
        plugins: the modules named by the setting.

    Returns:
        Versions, digests of plugins, git state, machine, processor, load, device, threads, kernels, command line.
    """
    return {
        "git_commit": _git("rev-parse", "HEAD"),
        "git_dirty": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("sibp", "torch", "numpy", "hydra-core")},
            **versions_of_installed(),
        },
        **({"plugins": {name: digest_of(name) for name in plugins}} if plugins else {}),
        "host": socket.gethostname(),
        "system": platform.platform(),
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,  # when the run ended
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "kernels": kernels.description() if device.type == "cpu" else "none",
        "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def _processor() -> str:
    """The processor's name, with details that distinguish processors of the same name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    about = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines) if value}
    name = about.get("model name") or platform.processor() or platform.machine()
    known = [f"{key.removeprefix('cpu ')} {about[key]}" for key in ("cpu family", "model", "stepping") if key in about]
    return f"{name} ({', '.join(known)})" if known else name


@functools.cache
def _git(*args: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), *args], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
