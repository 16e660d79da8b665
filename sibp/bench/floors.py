"""The least ratio to SGD that a step can have on this machine: counted work, and the machine's measured rates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch

from sibp.bench.counting import Layer, layers_of, operations, step_work
from sibp.bench.nets import Case
from sibp.bench.rates import Alone, Roof, bandwidth, product_rate
from sibp.bench.timing import Clock, quartiles, ratio_clock
from sibp.bench.workers import PEERS, PORTS, SGD

NOTE = (
    "The floor is a lower bound on the ratio: SGD takes its measured time, and the method adds only the roof of its "
    "additional operations. An operation's roof is the longer of two times: that of its arithmetic at the rate of a "
    "large matrix product, and that of its traffic at the rate of a pass over memory of the net's size. A target below "
    "the floor cannot be met by computing the step this way. Pieces is the same bound, but each product, convolution "
    "and factorisation counts with the time measured for it alone, at its own shape: a target below it needs faster "
    "routines than the installed libraries have."
)


@dataclass(frozen=True)
class Machine:
    """The rates by which counted work is converted to time.

    Attributes:
        product_rate: floating-point operations a second in a large matrix product.
        device: "cpu" or "cuda".
        dtype: of the numbers.
        clock: of processor time on a CPU.
    """

    product_rate: float
    device: str
    dtype: torch.dtype
    clock: Clock

    @classmethod
    def of(cls, device: str, dtype: str) -> Self:
        """Measures the rates now.

        Args:
            device: "cpu" or "cuda".
            dtype: "float32" or "float64".
        """
        clock, kind = ratio_clock(device), getattr(torch, dtype)
        return cls(product_rate(device, kind, clock), device, kind, clock)

    def counted(self, case: Case, methods: Sequence[str]) -> dict[str, Any]:
        """The counted work of some methods' steps, and the least time for it on this machine.

        Args:
            case: the net.
            methods: those without formulas are left out.

        Returns:
            ``size_bytes`` of the net's tensors, ``bandwidth`` of passes over as much memory, and ``counted``: method ->
            ``operations``, ``bytes``, ``roof_seconds`` and ``pieces_seconds``.
        """
        layers = layers_of(case.model(), case.shape, case.batch)
        size = _numbers(layers) * self.dtype.itemsize
        roof = Roof(self.product_rate, bandwidth(size, self.device, self.dtype, self.clock), self.dtype.itemsize)
        alone, found = Alone(roof, self.device, self.dtype, self.clock), {}
        for method in (name for name in methods if name not in (*PORTS, *PEERS) and "+" not in name):
            work = step_work(method, layers)
            found[method] = {
                "operations": operations(work),
                "bytes": sum(each.numbers for each in work) * self.dtype.itemsize,
                "roof_seconds": roof.seconds(work),
                "pieces_seconds": alone.seconds(work),
            }
        return {"size_bytes": size, "bandwidth": roof.bandwidth, "counted": found}


def floor(case: Mapping[str, Any], method: str, by: str = "roof_seconds") -> float | None:
    """A lower bound on a method's ratio to SGD's measured time.

    Args:
        case: one of a record's.
        method: the method.
        by: "roof_seconds", or "pieces_seconds" for the rates of the pieces timed in isolation.

    Returns:
        1 + (the method's least time - SGD's least time) / SGD's measured time; None if that was not counted.
    """
    counted = case.get("counted", {})
    if by not in counted.get(method, {}):
        return None
    return 1 + (counted[method][by] - counted[SGD][by]) / quartiles(best_samples(case)[SGD]).median


def best_samples(case: Mapping[str, Any]) -> dict[str, list[float]]:
    """Method -> seconds of a step: processor time on a CPU, otherwise wall-clock time.

    Args:
        case: one of a record's.
    """
    on_cpu = case.get("device", "cpu") == "cpu"
    return (case.get("processor_seconds_per_step") if on_cpu else None) or case["seconds_per_step"]


def below(case: Mapping[str, Any], method: str, target: float) -> str:
    """The end of a verdict: the bound that makes the target impossible; empty if there is no such bound."""
    for by, name in (("roof_seconds", "floor"), ("pieces_seconds", "pieces")):
        bound = floor(case, method, by)
        if bound is not None and bound > target:
            return f", below the {name}"
    return ""


def _numbers(layers: Sequence[Layer]) -> int:
    """Approximate count of numbers in a step's tensors: weights, activations, and a gradient of each."""
    return sum(2 * a.inputs * a.neurons + 2 * a.rows * a.neurons + a.entries for a in layers)
