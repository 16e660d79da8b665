"""What a convolution sees of its input, and the Gram matrix of all that it sees.

An entry of the Gram matrix A'A of all patches is a sum, over the kernel's positions, of products of two numbers of the
image. Patches overlap, so the same products come again and again: here each is formed once. Rows of the image meet in
pairs, one for each distance that two rows of the kernel can have; columns in strips, that a number of patches side by
side share. The products of two strips then hold those of all their patches, along diagonals.

For a kernel k x k with stride 1 and strips of w columns with t patches each, that is c^2 k w^2 / t multiply-adds a
position, in place of c^2 k^4: on narrow images a strip is a whole row, on wide ones about 2 k columns.
"""

import itertools
from collections import defaultdict
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

Pair = tuple[int, ...]  # of two


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
    """How an image's columns are cut; neighbours overlap.

    Attributes:
        number: of strips.
        width: columns of each.
        patches: side by side in each.
        padding: columns of zeros left of the first.
    """

    number: int
    width: int
    patches: int
    padding: int


def strips(window: Window, columns: int) -> Strips:
    """The strips that take the fewest products; one without padding is the image as it is.

    Args:
        window: of the convolution.
        columns: of the image.
    """
    _, positions = window.positions(0, columns)
    found = [Strips(1, columns, positions, 0)]
    for patches in range(1, positions + 1):
        if positions % patches == 0:
            width = (patches - 1) * window.stride[1] + (window.kernel[1] - 1) * window.dilation[1] + 1
            found.append(Strips(positions // patches, width, patches, window.padding[1]))
    return min(found, key=lambda cut: cut.number * cut.width**2)


@dataclass(frozen=True)
class Meeting:
    """Image rows that meet others, the same ones for all patches of some rows of the kernel.

    Attributes:
        taps: rows of the kernel; `rows` are all that lie under each of them.
        lag: rows of the kernel further down, where `others` lie.
        rows: of the image.
        others: of the image, one for each of `rows`.
    """

    taps: list[int]
    lag: int
    rows: slice
    others: slice


def meetings(window: Window, rows: int) -> list[Meeting]:
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
    return found


def patch_gram(x: Tensor, window: Window) -> Tensor:
    """A'A for the matrix A of all patches, without the patches.

    Args:
        x: (B, g c, rows, columns).
        window: of the convolution.

    Returns:
        (g, n, n), n = c times the kernel's entries.
    """
    g, (kernel, taps), (height, columns) = window.groups, window.kernel, x.shape[2:]
    c, cut = x.shape[1] // g, strips(window, columns)
    rows = _rows_of_strips(x.unflatten(1, (g, c)), window, cut)
    gram = x.new_zeros(g, kernel, taps * c, kernel, taps * c)
    for meeting in meetings(window, height):
        here, there = (rows[:, part].flatten(1, 2) for part in (meeting.rows, meeting.others))
        products = here.mT @ there if g > 1 else (here[0].T @ there[0]).unsqueeze(0)  # faster than a batch of one
        block = _diagonals(products.unflatten(1, (-1, c)).unflatten(3, (-1, c)), window, cut)
        for tap in meeting.taps:
            gram[:, tap, :, tap + meeting.lag] += block
    for tap, later in itertools.combinations(range(kernel), 2):
        gram[:, later, :, tap] = gram[:, tap, :, later].mT
    n = c * kernel * taps
    gram = gram.unflatten(2, (taps, c)).unflatten(5, (taps, c))
    return gram.permute(0, 3, 1, 2, 6, 4, 5).reshape(g, n, n)


def _rows_of_strips(x: Tensor, window: Window, cut: Strips) -> Tensor:
    """(g, rows, strips * B, width * c) from x (B, g, c, rows, columns): strips are copied from rows of whole pixels."""
    B, g, c, height, columns = x.shape
    make = x.new_zeros if cut.padding else x.new_empty
    pixels = make(g, height, B, columns + 2 * cut.padding, c)
    pixels[:, :, :, cut.padding : cut.padding + columns] = x.permute(1, 3, 0, 4, 2)
    strips_of = pixels.unfold(3, cut.width, cut.patches * window.stride[1])
    return strips_of.permute(0, 1, 3, 2, 5, 4).flatten(4).flatten(2, 3)


def _diagonals(products: Tensor, window: Window, cut: Strips) -> Tensor:
    """(g, taps * c, taps * c) sums over the patches of a strip, from products (g, width, c, width, c)."""
    g, width, c, *_ = products.shape
    taps, step, dilation = window.kernel[1], window.stride[1], window.dilation[1]
    left = window.padding[1] - cut.padding
    right = max(0, (cut.patches - 1) * step + (taps - 1) * dilation + 1 - left - width)
    if left or right:
        products = F.pad(products, (0, 0, left, right, 0, 0, left, right))
    to_g, to_w, to_c, to_w2, to_c2 = products.stride()
    return (
        products.as_strided(
            (cut.patches, g, taps, c, taps, c),
            (step * (to_w + to_w2), to_g, dilation * to_w, to_c, dilation * to_w2, to_c2),
        )
        .sum(0)
        .view(g, taps * c, taps * c)
    )
