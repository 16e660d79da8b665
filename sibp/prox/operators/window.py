"""A convolution's patches, and which rows and columns of an image share one."""

import itertools
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

Pair = tuple[int, ...]  # of two
_BLOCK = 64  # numbers in a block of columns: enough for an efficient product
_WIDEST = 2048  # numbers of a strip: the square is the size of a product


@dataclass(frozen=True)
class Window:
    """A two-dimensional convolution's settings, in (rows, columns)."""

    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int

    def positions(self, rows: int, columns: int) -> Pair:
        """Rows and columns of the output, for an image of that size."""
        return self._along(0, rows), self._along(1, columns)

    def _along(self, axis: int, size: int) -> int:
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


@dataclass(frozen=True)
class Strips:
    """How an image's columns are cut into overlapping strips.

    Attributes:
        number: of strips.
        width: columns of each.
        patches: adjacent ones in each.
        padding: columns of zeros left of the first.
    """

    number: int
    width: int
    patches: int
    padding: int


@lru_cache
def strips(window: Window, columns: int, channels: int) -> Strips:
    """A narrow image whole, others in the strips that take the fewest products.

    Args:
        window: of the convolution.
        columns: of the image.
        channels: c.
    """
    _, positions = window.positions(0, columns)
    if columns * channels <= _WIDEST:
        return Strips(1, columns, positions, 0)
    found: list[Strips] = []
    for patches in range(1, positions + 1):
        if positions % patches == 0:
            width = (patches - 1) * window.stride[1] + (window.kernel[1] - 1) * window.dilation[1] + 1
            found.append(Strips(positions // patches, width, patches, window.padding[1]))

    def cost(cut: Strips) -> tuple[int, int]:
        products = sum((b.end - b.first) * (b.high - b.low) for b in blocks(window, cut.width, channels))
        return max(cut.width * channels, _WIDEST), cut.number * products

    return min(found, key=cost)


class Block(NamedTuple):
    """Columns `first` to `end` of a row, and columns `low` to `high` of another row that share a patch with them."""

    first: int
    end: int
    low: int
    high: int


def blocks(window: Window, width: int, channels: int, same: bool = False) -> list[Block]:
    """The band of column pairs of two rows that share a patch, in blocks.

    Args:
        window: of the convolution.
        width: columns of a row.
        channels: numbers in a column.
        same: whether both rows are the same: then a column is paired with itself and later ones only.
    """
    reach = (window.kernel[1] - 1) * window.dilation[1]
    number = -(-width // max(1, _BLOCK // channels))
    ends = [width * k // number for k in range(number + 1)]
    return [
        Block(first, end, first if same else max(0, first - reach), min(width, end + reach))
        for first, end in itertools.pairwise(ends)
    ]


@dataclass(frozen=True)
class Meeting:
    """Pairs of image rows, common to all patches that see them under the same rows of the kernel.

    Attributes:
        taps: rows of the kernel; `rows` are all that lie under each of them.
        lag: distance of `others` from `rows`, in rows of the kernel.
        rows: of the image.
        others: of the image, one for each of `rows`.
    """

    taps: list[int]
    lag: int
    rows: slice
    others: slice


@lru_cache
def meetings(window: Window, rows: int) -> tuple[Meeting, ...]:
    """All pairs of image rows that lie under one patch.

    Inside the image a row lies under every row of the kernel in turn; near its border, or with a stride, under some.

    Args:
        window: of the convolution.
        rows: of the image.
    """
    (kernel, step, padding, dilation), (positions, _) = (
        (pair[0] for pair in (window.kernel, window.stride, window.padding, window.dilation)),
        window.positions(rows, 0),
    )
    under: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for row in range(rows):
        places = {tap: divmod(row + padding - tap * dilation, step) for tap in range(kernel)}
        under[tuple(tap for tap, (p, rest) in places.items() if rest == 0 and 0 <= p < positions)].append(row)
    found = []
    for taps, lying in under.items():
        for lag in range(kernel):
            above = [tap for tap in taps if tap + lag < kernel]
            own = [row for row in lying if row + lag * dilation < rows]
            if above and own:
                first, last, down = own[0], own[-1] + 1, lag * dilation
                found.append(Meeting(above, lag, slice(first, last, step), slice(first + down, last + down, step)))
    return tuple(found)
