"""A convolution's patches, and the products of pixels that several entries of their Gram matrix share."""

from collections import defaultdict
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise, product
from typing import NamedTuple, Self

import torch
from torch import Tensor

Pair = tuple[int, ...]  # two integers


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
        return self.along(0, rows), self.along(1, columns)

    def along(self, axis: int, size: int) -> int:
        """Rows (axis 0) or columns (axis 1) of the output, for an image with `size` rows or columns."""
        reach = self.dilation[axis] * (self.kernel[axis] - 1) + 1
        return (size + 2 * self.padding[axis] - reach) // self.stride[axis] + 1


class Stretch(NamedTuple):
    """Rows (or columns) of an image, each multiplied by the one `lag` further on.

    Attributes:
        first: index of the first.
        number: their number.
        step: distance from one to the next.
        lag: distance to the other factor; may be negative.
    """

    first: int
    number: int
    step: int
    lag: int

    @property
    def own(self) -> slice:
        """These rows."""
        return slice(self.first, self.first + self.step * self.number, self.step)

    @property
    def others(self) -> slice:
        """The rows that they are multiplied by."""
        return slice(self.first + self.lag, self.first + self.lag + self.step * self.number, self.step)


Shared = dict[Pair, list[Stretch]]
"""For each pair of kernel rows, the stretches of image rows that lie under the first of them in some patch."""


def shared(window: Window, axis: int, size: int) -> Shared:
    """The stretches along one axis: the smallest set such that every pair of kernel rows uses whole stretches.

    As patches slide over the image, an image row lies under each row of the kernel in turn. So pairs of kernel rows at
    the same distance see the same pairs of image rows, except near the border. Rows outside the image are 0, and left
    out.

    Args:
        window: of the convolution.
        axis: 0 for rows, 1 for columns.
        size: rows of the image.
    """
    stride, positions = window.stride[axis], window.along(axis, size)
    seen: dict[Pair, dict[Pair, Pair]] = defaultdict(dict)  # by lag and phase: pair of kernel rows -> first and end
    for pair in product(range(window.kernel[axis]), repeat=2):
        start, other = (tap * window.dilation[axis] - window.padding[axis] for tap in pair)
        low, high = min(start, other), max(start, other)
        before, after = max(0, -(low // stride)), min(positions, (size - 1 - high) // stride + 1)
        if before < after:
            seen[other - start, start % stride][pair] = (start + stride * before, start + stride * after)
    found: Shared = {}
    for (lag, _), spans in seen.items():
        cuts = sorted({end for span in spans.values() for end in span})
        parts = [Stretch(a, (b - a) // stride, stride, lag) for a, b in pairwise(cuts)]
        for pair, (first, end) in spans.items():
            found[pair] = [part for part in parts if first <= part.first < end]
    return found


@dataclass(frozen=True, eq=False)
class Sharing:
    """The products of pixels that make up the Gram matrix of all patches.

    Attributes:
        regions: regions of the image, each given by a stretch of rows and one of columns. A region's matrix (c, c) is
            the sum of x^T x_other over its pixels, where x and x_other (1, c) are the channels of a pixel and of the
            one it is multiplied by.
        pairs: number of pairs of kernel entries t <= u; they are numbered as by `torch.triu_indices`.
        shares: (pair, region) wherever the region's matrix is a summand of the pair's block of the Gram matrix.
    """

    regions: tuple[tuple[Stretch, Stretch], ...]
    pairs: int
    shares: tuple[Pair, ...]

    @classmethod
    @lru_cache
    def of(cls, window: Window, rows: int, columns: int) -> Self:
        """The products for a convolution of images of that size."""
        above, beside = shared(window, 0, rows), shared(window, 1, columns)
        taps = list(product(range(window.kernel[0]), range(window.kernel[1])))
        places: dict[tuple[Stretch, Stretch], int] = {}
        pairs, shares = 0, []
        for t, (row, column) in enumerate(taps):
            for other_row, other_column in taps[t:]:
                stretches = above.get((row, other_row), ()), beside.get((column, other_column), ())
                shares += [(pairs, places.setdefault(region, len(places))) for region in product(*stretches)]
                pairs += 1
        return cls(tuple(places), pairs, tuple(shares))

    @cached_property
    def table(self) -> Tensor:
        """(regions, 8) int64: first, number, step and lag of rows, then of columns; a row is a `Region` in lagged.c."""
        return torch.tensor([[*above, *beside] for above, beside in self.regions])

    @lru_cache  # noqa: B019 (instances are cached, too)
    def incidence(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """(pairs, regions) 1 for each of `shares`, else 0; made on the device, since a copy would make the CPU wait."""
        matrix = torch.zeros(self.pairs, len(self.regions), dtype=dtype, device=device)
        for pair, region in self.shares:
            matrix[pair, region] = 1
        return matrix

    @property
    def products(self) -> int:
        """Pairs of pixels that are multiplied, in one image."""
        return sum(rows.number * columns.number for rows, columns in self.regions)
