"""The Gram matrix of all patches of an image.

An entry of the Gram matrix Phi^T Phi of all patches is a sum, over the kernel's positions, of products of two numbers
of the image. Patches overlap, so the same products recur: inside the image, an entry depends only on how far apart the
two pixels are. Each product is formed once. Products of pixels at the same distance are summed, separately for the
interior of the image and for strips along its border, which lie under some of the kernel's entries only. A block of the
Gram matrix is the sum of a few of these sums.

For a k x k kernel with stride 1, that takes about c^2 (2k - 1)^2 / 2 multiply-adds per position, instead of c^2 k^4 / 2
with materialized patches. Patches that hardly overlap are materialized, one row of positions at a time. Without
compiled kernels, so are those of few channels.
"""

import itertools
import math
from functools import lru_cache

import torch
from torch import Tensor

from sibp.prox import kernels
from sibp.prox.operators.window import Sharing, Window

Shape = tuple[int, int, int, int]
"""Of an image, (B, g c, rows, columns)."""
_COLUMNS = 96  # columns of a block of materialized patches
_TILE = (4, 16)  # channels in a tile of lagged.c: of a pixel, and of the pixel it is multiplied by
_SQUARE = 4  # channels of either pixel in a tile, where a vector holds one channel of 16 images
_MOST = 2**22  # largest number of entries of `Sharing.incidence`, enough for 9 x 9 kernels
_PARALLEL = 1_000_000  # multiply-adds above which several threads pay off


def patch_gram(x: Tensor, window: Window) -> Tensor:
    """Phi^T Phi for the matrix Phi of all patches.

    Args:
        x: (B, g c, rows, columns).
        window: of the convolution.

    Returns:
        (g, n, n), n = c times the kernel's entries.
    """
    B, channels, rows, columns = x.shape
    dense = is_dense(window, (B, channels, rows, columns), kernels.library(x) is not None)
    return _gram_from_patches(x, window) if dense else _gram_from_pixel_products(x, window)


def gram_products(window: Window, shape: Shape, compiled: bool) -> list[tuple[int, int, int]]:
    """The sizes (a, b, c) of the products (a x b) (b x c) that make up `patch_gram`, in each group.

    Args:
        window: of the convolution.
        shape: of the image.
        compiled: whether there are kernels for the image.
    """
    B, channels, rows, columns = shape
    c = channels // window.groups
    if is_dense(window, shape, compiled):
        P, n = window.positions(rows, columns), c * window.kernel[0] * window.kernel[1]
        return [(end - first, B * P[0] * P[1], end) for first, end in _column_blocks(n)]
    sharing = Sharing.of(window, rows, columns)
    return [
        *((c, B * above.number * beside.number, c) for above, beside in sharing.regions),
        (sharing.pairs, len(sharing.regions), c * c),
    ]


def numbers_copied(window: Window, shape: Shape, compiled: bool) -> float:
    """Numbers that are read and written to make the factors contiguous.

    Args:
        window: of the convolution.
        shape: of the image.
        compiled: whether there are kernels for the image.
    """
    B, channels, rows, columns = shape
    image, P = B * channels * rows * columns, window.positions(rows, columns)
    if is_dense(window, shape, compiled):
        return 2 * image + 2 * B * P[0] * P[1] * channels * window.kernel[0] * window.kernel[1]
    return 2 * image


@lru_cache
def is_dense(window: Window, shape: Shape, compiled: bool) -> bool:
    """Whether materialized patches take fewer multiply-adds.

    Args:
        window: of the convolution.
        shape: of the image.
        compiled: whether there are kernels for the image.
    """
    B, channels, rows, columns = shape
    c, (above, beside) = channels // window.groups, window.positions(rows, columns)
    taps = window.kernel[0] * window.kernel[1]
    dense = above * beside * sum((end - first) * end for first, end in _column_blocks(taps * c))
    if taps * taps * (taps + 1) // 2 > _MOST:  # one region or more for each distance from the kernel's first entry
        return True
    sharing = Sharing.of(window, rows, columns)
    if len(sharing.regions) * sharing.pairs > _MOST:
        return True
    side_by_side = min(_by_channels(c), _by_images(B, c)) if compiled else _by_channels(c)
    return dense < sharing.products * side_by_side


def _by_channels(c: int) -> float:
    """Multiply-adds of a product of two pixels of c channels, if a vector holds a pixel's channels."""
    height, width = (-(-c // side) * side for side in _TILE)
    return height * width


def _by_images(batch: int, c: int) -> float:
    """Multiply-adds of the same product, averaged over a batch, if a vector holds one channel of several images.

    Each multiply-add counts twice, since it reads twice as many vectors. Infinite if most of a vector would be empty.
    """
    images = _TILE[1]
    if batch < images / 2:
        return math.inf
    side = min(c, _SQUARE)
    return 2 * (-(-c // side) * side) ** 2 * (-(-batch // images) * images / batch)


def _column_blocks(n: int) -> list[tuple[int, int]]:
    """Blocks of columns of Phi; each block is multiplied with itself and those before it."""
    number = -(-n // _COLUMNS)
    return [(n * k // number, n * (k + 1) // number) for k in range(number)]


def _gram_from_patches(x: Tensor, window: Window) -> Tensor:
    """The Gram matrix from materialized patches, one row of positions at a time."""
    (kernel, taps), (B, channels, height, width) = window.kernel, x.shape
    P, Q = window.positions(height, width)
    g, c = window.groups, channels // window.groups
    padded = x.new_zeros(g, height + 2 * window.padding[0], B, width + 2 * window.padding[1], c)
    inside = slice(window.padding[0], window.padding[0] + height), slice(window.padding[1], window.padding[1] + width)
    padded[:, inside[0], :, inside[1]] = x.unflatten(1, (g, c)).permute(1, 3, 0, 4, 2)
    to_g, to_row, to_sample, to_pixel, _ = padded.stride()
    down, right, n = window.stride[0] * to_row, window.stride[1] * to_pixel, kernel * taps * c
    gram = x.new_zeros(g, n, n)
    for row in range(P):
        patches = padded.as_strided(
            (g, B, Q, kernel, taps, c),
            (to_g, to_sample, right, window.dilation[0] * to_row, window.dilation[1] * to_pixel, 1),
            padded.storage_offset() + row * down,
        ).reshape(g, B * Q, n)
        # Group by group: torch.bmm with a batch of one is slower.
        for (first, end), group in itertools.product(_column_blocks(n), range(g)):
            gram[group, first:end, :end] += patches[group, :, first:end].T @ patches[group, :, :end]
    for first, end in _column_blocks(n):
        gram[:, :first, first:end] = gram[:, first:end, :first].mT
    entries = gram.view(g, kernel * taps, c, kernel * taps, c)
    return entries.permute(0, 2, 1, 4, 3).reshape(g, n, n)


def _gram_from_pixel_products(x: Tensor, window: Window) -> Tensor:
    """The Gram matrix from products of pixels, each formed once."""
    channels, *size = x.shape[1:]
    sharing = Sharing.of(window, *size)
    g, c, taps = window.groups, channels // window.groups, window.kernel[0] * window.kernel[1]
    found = _sums(x, sharing, g).flatten(2)  # (g, regions, c c)
    blocks = (sharing.incidence(x.dtype, x.device) @ found).unflatten(2, (c, c))
    gram = x.new_empty(g, taps, taps, c, c)
    first, second = torch.triu_indices(taps, taps, device=x.device)
    gram[:, second, first] = blocks.mT
    gram[:, first, second] = blocks
    return gram.permute(0, 3, 1, 4, 2).reshape(g, c * taps, c * taps)


def _sums(x: Tensor, sharing: Sharing, groups: int) -> Tensor:
    """(g, regions, c, c): for each region the sum of x^T x_other over its pixels."""
    B, channels, height, width = x.shape
    c, regions = channels // groups, sharing.regions
    sums = x.new_empty(groups, len(regions), c, c)
    library = kernels.library(x) if x.numel() else None
    if library is None:
        pixels = x.permute(0, 2, 3, 1).unflatten(3, (groups, c))
        for place, (above, beside) in enumerate(regions):
            here = pixels[:, above.own, beside.own].flatten(0, 2)
            there = pixels[:, above.others, beside.others].flatten(0, 2)
            torch.bmm(here.permute(1, 2, 0), there.transpose(0, 1), out=sums[:, place])
        return sums
    threads = torch.get_num_threads() if B * sharing.products * c * c >= _PARALLEL else 1
    by_images = _by_images(B, c) <= _by_channels(c)
    pixels = x.new_empty(library.pixels_size(B, channels, height * width, by_images))
    if not by_images and x.is_contiguous(memory_format=torch.channels_last):
        pixels[: x.numel()] = x.permute(0, 2, 3, 1).reshape(-1)
        pixels[x.numel() :] = 0
    else:
        x = x.contiguous()
        library.pixels(x.data_ptr(), pixels.data_ptr(), B, channels, height * width, by_images, threads)
    table, size = sharing.table.data_ptr(), (len(regions), B, height, width, channels)
    for group in range(groups):
        to = sums[group].data_ptr()
        library.lagged(pixels.data_ptr(), to, table, *size, group * c, c, by_images, threads)
    return sums
