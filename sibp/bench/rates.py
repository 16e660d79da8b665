"""What the machine can do: floating-point operations and bytes a second, measured on the spot."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from sibp.activations import RELU
from sibp.bench.counting import Work
from sibp.bench.timing import Clock
from sibp.prox import fused
from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Span

_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
_REPEATS, _MOST_REPEATS, _SECONDS = 7, 1000, 0.2  # a pass over a small net's memory takes microseconds
_SMALLEST = 2**20  # bytes; below, a pass measures the call and not the memory


@dataclass(frozen=True)
class Roof:
    """The machine's limits.

    Attributes:
        operations: floating-point operations a second in a large matrix product.
        bandwidth: bytes a second in a pass over memory as large as the task's own.
        itemsize: bytes of a number.
    """

    operations: float
    bandwidth: float
    itemsize: int

    def seconds(self, work: Sequence[Work]) -> float:
        """The least time for some work whose operations are done one after another.

        Args:
            work: each operation takes as long as its arithmetic or its traffic, whichever is longer.

        Returns:
            Seconds.
        """
        return sum(
            max(each.operations / self.operations, each.numbers * self.itemsize / self.bandwidth) for each in work
        )


def product_rate(device: str, dtype: torch.dtype, clock: Clock, sizes: Sequence[int] = ()) -> float:
    """Operations a second in a matrix product.

    Args:
        device: "cpu" or "cuda".
        dtype: of the matrices.
        clock: see `device_clock`.
        sizes: of the square matrices that are tried; none for a choice that suits the device.

    Returns:
        The best of several products, by torch and, on a CPU, in the compiled rounds of `sibp.prox.fused`.
    """
    best = _rate_of_rounds(dtype, clock) if device == "cpu" else 0.0
    for size in sizes or _SIZES[device]:
        A, B = torch.randn(2, size, size, dtype=dtype, device=device)
        C = torch.empty_like(A)
        best = max(best, 2 * size**3 / _fastest(lambda A=A, B=B, C=C: torch.mm(A, B, out=C), clock))
    return best


def _rate_of_rounds(dtype: torch.dtype, clock: Clock) -> float:
    """Operations a second in the products of many rounds; 0 where there is no compiled code."""
    N, m, rounds = 512, 1024, 4
    A, Z, T = torch.randn(N, 16, dtype=dtype), *torch.randn(2, N, m, dtype=dtype)
    coordinates = Span(DenseFeatures(A))
    if not fused.usable(coordinates, Z, RELU):
        return 0.0
    constants = {"shrink_factor": 0.25, "rounding_units": 4.0, "tolerance": 1.0}
    seconds = _fastest(lambda: fused.rounds(coordinates, Z, T, 1.0, RELU, rounds, **constants), clock)
    return 2 * N * N * m * rounds / seconds


def bandwidth(size: float, device: str, dtype: torch.dtype, clock: Clock) -> float:
    """Bytes a second that passes over memory move, read and written together.

    Args:
        size: bytes that the passes go over; so small ones stay in the cache, as a small net's tensors do.
        device: "cpu" or "cuda".
        dtype: of the numbers.
        clock: see `device_clock`.

    Returns:
        The best of several passes that copy, and that add.
    """
    length = int(max(size, _SMALLEST)) // (3 * dtype.itemsize)
    a, b, c = torch.ones(3, length, dtype=dtype, device=device)
    moved = length * dtype.itemsize
    copying = 2 * moved / _fastest(lambda: c.copy_(a), clock)
    return max(copying, 3 * moved / _fastest(lambda: torch.add(a, b, out=c), clock))


def _fastest(work: Callable[[], object], clock: Clock) -> float:
    work()
    times: list[float] = []
    while len(times) < _REPEATS or (sum(times) < _SECONDS and len(times) < _MOST_REPEATS):
        begin = clock()
        work()
        times.append(clock() - begin)
    return min(times)
