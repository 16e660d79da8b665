"""Peak memory of training and the time of the first step, measured in a new process.

A new process has nothing loaded or cached yet. `measure` starts it as ``python -m sibp.bench.memory``.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sibp.bench.nets import Case
from sibp.bench.workers import Worker

_STEPS = 3


def measure(case: Case, method: str, device: str, dtype: str, threads: int) -> dict[str, Any]:
    """Memory and first step of training with a method.

    Args:
        case: net and batch size.
        method: see `Worker`.
        device: "cpu" or "cuda".
        dtype: "float32" or "float64".
        threads: of torch.

    Returns:
        ``peak_bytes``, the peak memory of all tensors (weights, batches, gradients and others), and
        ``first_step_seconds``; or ``failed`` with the reason.
    """
    arguments = [case.net, str(case.batch), case.activation, method, device, dtype, str(threads)]
    ended = subprocess.run([sys.executable, "-m", "sibp.bench.memory", *arguments], capture_output=True, text=True)
    if ended.returncode != 0:
        return {"failed": (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]}
    return json.loads(ended.stdout.splitlines()[-1])


def peak_bytes(work: Callable[[], Any], device: str) -> int:
    """The peak memory of tensors that a function allocates.

    Args:
        work: the function; memory allocated before does not count.
        device: of its tensors.

    Returns:
        Bytes, as counted by torch: exact, and without the workspace of libraries.
    """
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        work()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        work()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event.get("name") == "[memory]"]
    events.sort(key=lambda event: event["args"]["Ev Idx"])
    taken = peak = 0
    for event in events:
        taken += event["args"]["Bytes"]
        peak = max(peak, taken)
    return peak


def _child(net: str, batch: str, activation: str, method: str, device: str, dtype: str, threads: str) -> dict[str, Any]:
    torch.set_num_threads(int(threads))
    case, first = Case(net, int(batch), activation), 0.0

    def train() -> None:
        nonlocal first
        worker = Worker(case, method, device, dtype, pool=1)
        for index in range(_STEPS):
            begin = time.perf_counter()
            worker.step()
            if device == "cuda":
                torch.cuda.synchronize()
            first = first if index else time.perf_counter() - begin

    return {"peak_bytes": peak_bytes(train, device), "first_step_seconds": first}


if __name__ == "__main__":
    print(json.dumps(_child(*sys.argv[1:])))
