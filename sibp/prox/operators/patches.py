"""The Gram matrix of all patches of an image.

An entry of the Gram matrix A'A of all patches is a sum, over the kernel's positions, of products of two numbers of the
image. Patches overlap, so the same products recur. Where that is cheaper, each is formed once:
rows of the image are multiplied in pairs, one for each distance between two rows of the kernel; of two such rows, only
columns no further apart than those of the kernel are multiplied: a band, which is cut into blocks. Its diagonals hold
the products of all patches. Wide images are cut into strips of several adjacent patches.

For a kernel k x k with stride 1 and blocks of t columns, that is about c^2 k (t + 2k - 2) multiply-adds a position, in
place of c^2 k^4 / 2 with materialized patches. Strided patches overlap less; they are materialized, a few rows of the
image at a time.
"""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

from sibp.prox import kernels
from sibp.prox.operators.window import Block, Strips, Window, blocks, meetings, strips

Shape = tuple[int, int, int, int]
"""Of an image, (B, g c, rows, columns)."""
_COLUMNS = 96  # of a block of materialized patches


def patch_gram(x: Tensor, window: Window) -> Tensor:
    """A'A for the matrix A of all patches.

    Args:
        x: (B, g c, rows, columns).
        window: of the convolution.

    Returns:
        (g, n, n), n = c times the kernel's entries.
    """
    B, channels, rows, columns = x.shape
    make = _written_out if _is_dense(window, (B, channels, rows, columns)) else _by_meetings
    g, (kernel, taps) = window.groups, window.kernel
    gram = make(x.unflatten(1, (g, -1)), window).view(g, kernel, taps, channels // g, kernel, taps, channels // g)
    return gram.permute(0, 3, 1, 2, 6, 4, 5).flatten(4).flatten(1, 3)


def gram_products(window: Window, shape: Shape) -> list[tuple[int, int, int]]:
    """The products (a, b) by (b, c) that make up `patch_gram`, in each group.

    Args:
        window: of the convolution.
        shape: of the image.
    """
    B, channels, rows, columns = shape
    c = channels // window.groups
    if _is_dense(window, shape):
        P, n = window.positions(rows, columns), c * window.kernel[0] * window.kernel[1]
        return [(end - first, B * P[0] * P[1], end) for first, end in _halves(n)]
    cut, found = strips(window, columns, c), []
    for meeting in meetings(window, rows):
        K = len(range(*meeting.rows.indices(rows))) * B * cut.number
        band = blocks(window, cut.width, c, same=meeting.lag == 0)
        found += [((b.end - b.first) * c, K, (b.high - b.low) * c) for b in band]
    return found


def numbers_copied(window: Window, shape: Shape) -> float:
    """Numbers that are read and written to make the factors contiguous.

    Args:
        window: of the convolution.
        shape: of the image.
    """
    B, channels, rows, columns = shape
    image, P = B * channels * rows * columns, window.positions(rows, columns)
    if _is_dense(window, shape):
        return 2 * image + 2 * B * P[0] * P[1] * channels * window.kernel[0] * window.kernel[1]
    cut = strips(window, columns, channels // window.groups)
    return image * (2 + 2 * (cut.padding > 0) * cut.number * cut.width / columns)


def pixels_of(x: Tensor, rows: int, columns: int) -> Tensor:
    """(g, height + 2 rows, B, width + 2 columns, c) channels last, padded with zeros.

    Args:
        x: (B, g, c, height, width), in any order in memory.
        rows: of zeros, above and below.
        columns: of zeros, left and right.
    """
    B, g, c, height, width = x.shape
    make = x.new_zeros if rows or columns else x.new_empty
    pixels = make(g, height + 2 * rows, B, width + 2 * columns, c)
    library = kernels.library(x) if x.is_contiguous() and x.numel() else None
    if library is None:
        pixels[:, rows : rows + height, :, columns : columns + width] = x.permute(1, 3, 0, 4, 2)
    else:
        library.pixels(x.data_ptr(), pixels.data_ptr(), B, g, c, height, width, rows, columns)
    return pixels


def _is_dense(window: Window, shape: Shape) -> bool:
    """Whether materialized patches take fewer products."""
    return _is_cheaper_dense(window, *shape[1:])


@lru_cache
def _is_cheaper_dense(window: Window, channels: int, rows: int, columns: int) -> bool:
    c, (above, beside) = channels // window.groups, window.positions(rows, columns)
    cut = strips(window, columns, c)
    met = sum(
        len(range(*meeting.rows.indices(rows)))
        * sum((b.end - b.first) * (b.high - b.low) for b in blocks(window, cut.width, c, same=meeting.lag == 0))
        for meeting in meetings(window, rows)
    )
    n = window.kernel[0] * window.kernel[1] * c
    return above * beside * sum((end - first) * end for first, end in _halves(n)) < met * cut.number * c * c


def _halves(n: int) -> list[tuple[int, int]]:
    """Columns of A in blocks: each is multiplied with itself and those before."""
    number = -(-n // _COLUMNS)
    return [(n * k // number, n * (k + 1) // number) for k in range(number)]


def _written_out(x: Tensor, window: Window) -> Tensor:
    """The Gram matrix (g, n, n) of patches of (kernel rows, kernel columns, c), from x (B, g, c, rows, columns)."""
    B, g, c, height, width = x.shape
    (kernel, taps), (P, Q) = window.kernel, window.positions(height, width)
    pixels, n = pixels_of(x, *window.padding), kernel * taps * c
    to_g, to_row, to_sample, to_pixel, _ = pixels.stride()
    down, right = window.stride[0] * to_row, window.stride[1] * to_pixel
    gram = x.new_zeros(g, n, n)
    for row in range(P):
        patches = pixels.as_strided(
            (g, B, Q, kernel, taps, c),
            (to_g, to_sample, right, window.dilation[0] * to_row, window.dilation[1] * to_pixel, 1),
            pixels.storage_offset() + row * down,
        ).reshape(g, B * Q, n)
        for (first, end), group in itertools.product(_halves(n), range(g)):  # torch.bmm with a batch of one is slower
            gram[group, first:end, :end] += patches[group, :, first:end].T @ patches[group, :, :end]
    for first, end in _halves(n):
        gram[:, :first, first:end] = gram[:, first:end, :first].mT
    return gram


def _by_meetings(x: Tensor, window: Window) -> Tensor:
    """The same from products of the image's own rows."""
    (kernel, taps), (_, g, c, height, columns) = window.kernel, x.shape
    cut = strips(window, columns, c)
    rows, left, right = _rows_of_strips(x, window, cut), *_beyond(window, cut)
    products = x.new_zeros(g, left + cut.width + right, c, left + cut.width + right, c)
    inside = products[:, left : left + cut.width, :, left : left + cut.width]
    gram = x.new_zeros(g, kernel, taps * c, kernel, taps * c)
    for meeting in meetings(window, height):
        here, there = (rows[:, part].flatten(1, 2) for part in (meeting.rows, meeting.others))
        same = meeting.lag == 0
        _multiply(here, there, blocks(window, cut.width, c, same), inside)
        block = _diagonals(products, window, cut)
        if same:
            _mirror(block.view(g, taps, c, taps, c))
        for tap in meeting.taps:
            gram[:, tap, :, tap + meeting.lag] += block
    _mirror(gram)
    return gram


def _mirror(gram: Tensor) -> None:
    """Copies the blocks above the diagonal below it, gram (g, blocks, c, blocks, c) being symmetric."""
    for tap, later in itertools.combinations(range(gram.shape[1]), 2):
        gram[:, later, :, tap] = gram[:, tap, :, later].mT


def _multiply(here: Tensor, there: Tensor, band: Sequence[Block], products: Tensor) -> None:
    """Products of the columns of a band, (g, width, c, width, c), from two tensors (g, K, width * c)."""
    g, width, c, *_ = products.shape
    to_g, to_row, _, _, _ = products.stride()
    matrix = products.as_strided((g, width * c, width * c), (to_g, to_row // c, 1), products.storage_offset())
    for first, end, low, high in band:
        a, b = here[..., first * c : end * c], there[..., low * c : high * c]
        to = matrix[:, first * c : end * c, low * c : high * c]
        for group in range(g):
            torch.mm(a[group].T, b[group], out=to[group])


def _rows_of_strips(x: Tensor, window: Window, cut: Strips) -> Tensor:
    """(g, rows, strips * B, width * c) from x (B, g, c, rows, columns): strips are copied from rows of whole pixels."""
    pixels = pixels_of(x, 0, cut.padding)
    if cut.number == 1 and not cut.padding:
        return pixels.flatten(3)
    strips_of = pixels.unfold(3, cut.width, cut.patches * window.stride[1])
    return strips_of.permute(0, 1, 3, 2, 5, 4).flatten(4).flatten(2, 3)


def _beyond(window: Window, cut: Strips) -> tuple[int, int]:
    """Columns of zeros that patches see left and right of a strip."""
    left = window.padding[1] - cut.padding
    last = (cut.patches - 1) * window.stride[1] + (window.kernel[1] - 1) * window.dilation[1] + 1
    return left, max(0, last - left - cut.width)


def _diagonals(products: Tensor, window: Window, cut: Strips) -> Tensor:
    """(g, taps * c, taps * c) sums over the patches of a strip, from products (g, width, c, width, c)."""
    g, _, c, *_ = products.shape
    taps, step, dilation = window.kernel[1], window.stride[1], window.dilation[1]
    to_g, to_w, to_c, to_w2, to_c2 = products.stride()
    return (
        products.as_strided(
            (cut.patches, g, taps, c, taps, c),
            (step * (to_w + to_w2), to_g, dilation * to_w, to_c, dilation * to_w2, to_c2),
        )
        .sum(0)
        .view(g, taps * c, taps * c)
    )
