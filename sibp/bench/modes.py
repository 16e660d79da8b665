"""Alternatives to eager training steps: compiled by torch, or replayed as a CUDA graph."""

from collections.abc import Callable

import torch
from torch import Tensor

Step = Callable[[Tensor, Tensor], None]
"""One training step on a batch x, y."""
MODES = ("compile", "graph")
"""Modes that may follow a method's name and a plus sign."""
_WARM_UP = 3  # steps before a graph is recorded


def split(name: str) -> tuple[str, str]:
    """Splits a method's name and mode, "" for eager steps: ("exact", "graph") from "exact+graph"."""
    method, _, mode = name.partition("+")
    return method, mode


def compiled(step: Step, x: Tensor, y: Tensor) -> Step:
    """The step compiled by torch.compile; the operations of tapped layers run eagerly.

    Args:
        step: compiled on its first call.
        x: a batch.
        y: its labels.
    """
    del x, y
    made: Step = torch.compile(step)
    return made


def graph(step: Step, x: Tensor, y: Tensor) -> Step:
    """The step as one CUDA graph: recorded once, then replayed without Python.

    Args:
        step: reads tensors at the same addresses every time, and never synchronises with the CPU.
        x: a batch on the device.
        y: its labels.
    """
    x, y = x.clone(), y.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UP):
            step(x, y)
    torch.cuda.current_stream().wait_stream(side)
    recorded = torch.cuda.CUDAGraph()
    with torch.cuda.graph(recorded):
        step(x, y)

    def replay(x_next: Tensor, y_next: Tensor) -> None:
        x.copy_(x_next)
        y.copy_(y_next)
        recorded.replay()

    return replay
