"""The machine's rates: floating-point operations and bytes per second, measured."""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import torch

from sibp.activations import RELU
from sibp.bench.alone import Piece
from sibp.bench.counting import Work
from sibp.bench.timing import Clock
from sibp.prox import fused
from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Span

_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}
_REPEATS, _MOST_REPEATS, _SECONDS = 7, 1000, 0.2  # a pass over a small net's memory takes microseconds
_ALONE = 0.05  # seconds per piece of a step
_SMALLEST = 2**20  # bytes; smaller passes measure the call, not memory


@dataclass(frozen=True)
class Roof:
    """The machine's limits.

    Attributes:
        operations: floating-point operations per second in a large matrix product.
        bandwidth: bytes per second in a pass over as much memory as the task uses.
        itemsize: bytes per number.
    """

    operations: float
    bandwidth: float
    itemsize: int

    def seconds(self, work: Sequence[Work]) -> float:
        """The least time for operations that run one after another.

        Args:
            work: each operation takes as long as its arithmetic or its traffic, whichever is longer.

        Returns:
            Seconds.
        """
        return sum(
            max(each.operations / self.operations, each.numbers * self.itemsize / self.bandwidth) for each in work
        )


@dataclass
class Alone:
    """Times of pieces of a step in isolation, each measured once.

    Attributes:
        roof: for operations that cannot be timed in isolation.
        device: "cpu" or "cuda".
        dtype: of the numbers.
        clock: see `device_clock`.
    """

    roof: Roof
    device: str
    dtype: torch.dtype
    clock: Clock
    _rates: dict[Hashable, float] = field(default_factory=dict)

    def seconds(self, work: Sequence[Work]) -> float:
        """The time for some work: each piece at the rate of its own shape, other operations at the roof's rates."""
        return sum(
            each.operations / self._rate(each.piece) if each.piece is not None else self.roof.seconds([each])
            for each in work
        )

    def _rate(self, piece: Piece) -> float:
        """Operations per second of the fastest implementation."""
        if piece.key not in self._rates:
            ways = [made for way in piece.ways if (made := way(self.dtype, self.device)) is not None]
            fastest = min(_fastest(way, self.clock, _ALONE, repeats=3) for way in ways)
            self._rates[piece.key] = piece.operations / fastest
        return self._rates[piece.key]


def product_rate(device: str, dtype: torch.dtype, clock: Clock, sizes: Sequence[int] = ()) -> float:
    """Operations per second in a matrix product.

    Args:
        device: "cpu" or "cuda".
        dtype: of the matrices.
        clock: see `device_clock`.
        sizes: of the square matrices that are tried; default by device.

    Returns:
        The best of several products, of torch and, on a CPU, of the compiled iterations of `sibp.prox.fused`.
    """
    best = _rate_of_iterations(dtype, clock) if device == "cpu" else 0.0
    for size in sizes or _SIZES[device]:
        A, B = torch.randn(2, size, size, dtype=dtype, device=device)
        C = torch.empty_like(A)
        best = max(best, 2 * size**3 / _fastest(lambda A=A, B=B, C=C: torch.mm(A, B, out=C), clock))
    return best


def _rate_of_iterations(dtype: torch.dtype, clock: Clock) -> float:
    """Operations per second in the products of many iterations; 0 without compiled code."""
    N, m, iterations = 512, 1024, 4
    A, Z, T = torch.randn(N, 16, dtype=dtype), *torch.randn(2, N, m, dtype=dtype)
    coordinates = Span(DenseFeatures(A))
    if not fused.usable(coordinates, Z, RELU):
        return 0.0
    constants = {"shrink_factor": 0.25, "cancellation": 0.0, "rounding_units": 4.0, "tolerance": 1.0}
    seconds = _fastest(lambda: fused.iterate(coordinates, Z, T, 1.0, RELU, iterations, **constants), clock)
    return 2 * N * N * m * iterations / seconds


def bandwidth(size: float, device: str, dtype: torch.dtype, clock: Clock) -> float:
    """Bytes per second of passes over memory, read and written together.

    Args:
        size: bytes per pass; small ones stay in the cache, like a small net's tensors.
        device: "cpu" or "cuda".
        dtype: of the numbers.
        clock: see `device_clock`.

    Returns:
        The best of several passes that copy or add.
    """
    length = int(max(size, _SMALLEST)) // (3 * dtype.itemsize)
    a, b, c = torch.ones(3, length, dtype=dtype, device=device)
    moved = length * dtype.itemsize
    copying = 2 * moved / _fastest(lambda: c.copy_(a), clock)
    return max(copying, 3 * moved / _fastest(lambda: torch.add(a, b, out=c), clock))


def _fastest(work: Callable[[], object], clock: Clock, seconds: float | None = None, repeats: int = _REPEATS) -> float:
    """The least time of some work in at least `repeats` trials, and until `_SECONDS` have passed."""
    work()
    limit, times = _SECONDS if seconds is None else seconds, list[float]()
    while len(times) < repeats or (sum(times) < limit and len(times) < _MOST_REPEATS):
        begin = clock()
        work()
        times.append(clock() - begin)
    return min(times)
