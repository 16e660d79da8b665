"""Operations on implicit patches equal those with the explicit patch matrix."""

from collections.abc import Iterator
from itertools import product

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_problems import randn
from torch.utils.flop_counter import FlopCounterMode

from sibp.prox import kernels
from sibp.prox.operators import ConvolutionFeatures, patches
from sibp.prox.operators.patches import gram_products, is_dense, patch_gram
from sibp.prox.operators.window import Sharing, Window

PAIRS = {
    "kernel": st.tuples(st.integers(1, 5), st.integers(1, 5)),
    "stride": st.tuples(st.integers(1, 3), st.integers(1, 3)),
    "padding": st.tuples(st.integers(0, 3), st.integers(0, 3)),
    "dilation": st.tuples(st.integers(1, 2), st.integers(1, 2)),
}


def by_hand(patches: ConvolutionFeatures) -> torch.Tensor:
    """Phi (g, B * P, size), built kernel entry by kernel entry."""
    window, (B, channels, height, width) = patches.window, patches.x.shape
    rows, columns = patches.positions
    padded = patches.x.new_zeros(B, channels, height + 2 * window.padding[0], width + 2 * window.padding[1])
    padded[:, :, window.padding[0] :, window.padding[1] :][:, :, :height, :width] = patches.x
    entries = []
    for channel in range(channels // window.groups):
        for i in range(window.kernel[0]):
            for j in range(window.kernel[1]):
                top, left = i * window.dilation[0], j * window.dilation[1]
                seen = padded[:, channel :: channels // window.groups, top:, left:]
                entries.append(seen[:, :, :: window.stride[0], :: window.stride[1]][:, :, :rows, :columns])
    A = torch.stack(entries, -1).movedim(1, 0).flatten(1, 3)
    return torch.cat([A] * patches.weight + [torch.ones_like(A[..., :1])] * patches.bias, -1)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    **PAIRS,
    groups=st.integers(1, 3),
    channels=st.integers(1, 3),
    batch=st.integers(1, 3),
    size=st.tuples(st.integers(1, 11), st.integers(1, 11)),
    moves=st.sampled_from([(True, True), (True, False), (False, True)]),
    channels_last=st.booleans(),
)
def test_products_are_those_of_the_patch_matrix(
    kernel, stride, padding, dilation, groups, channels, batch, size, moves, channels_last
):
    window = Window(kernel, stride, padding, dilation, groups)
    assume(min(window.positions(*size)) >= 1)
    x = randn(batch, groups * channels, *size)
    x = x.contiguous(memory_format=torch.channels_last) if channels_last else x
    patches = ConvolutionFeatures(x, window, *moves)
    P, phi = patches.rows // batch, by_hand(patches)
    E, V = randn(groups, batch, P, 4, seed=1), randn(groups, patches.size, 4, seed=2)
    close = {"rtol": 1e-10, "atol": 1e-10}
    torch.testing.assert_close(patches.materialize(), phi, **close)
    torch.testing.assert_close(patches.gram(), phi.mT @ phi, **close)
    torch.testing.assert_close(patches.squared_norm(), phi.square().sum((1, 2)), **close)
    torch.testing.assert_close(patches.rmatmat(E), phi.mT @ E.flatten(1, 2), **close)
    torch.testing.assert_close(patches.matmat(V).flatten(1, 2), phi @ V, **close)
    torch.testing.assert_close(patches.over_rows(E), E.sum((1, 2)), **close)
    z = randn(batch, groups * 4, *patches.positions, seed=3)
    expected = z.reshape(batch, groups, 4, P)
    torch.testing.assert_close(patches.in_rows(z)[0, 0, :, 1], expected[0, 0, 1], rtol=0, atol=0)
    torch.testing.assert_close(patches.in_rows(z)[-1, -1, -1], expected[-1, -1, :, -1], rtol=0, atol=0)


def test_single_precision_is_as_good_as_with_patches():
    """On images whose mean is far from zero, as activations are: no result cancels from large sums."""
    window = Window((5, 5), (1, 1), (2, 2), (1, 1), 1)
    x = 3 + randn(20, 4, 16, 16)
    exact, patches = ConvolutionFeatures(x, window).gram(), ConvolutionFeatures(x.float(), window)
    phi = patches.materialize()
    error, usual = (patches.gram() - exact).abs().max(), (phi.mT @ phi - exact).abs().max()
    assert error < 2 * usual


def pixels_of_patches(window: Window, rows: int, columns: int) -> Iterator[list[tuple[int, int]]]:
    """The pixels of each patch, without those outside of the image."""
    for row, column in product(*(range(number) for number in window.positions(rows, columns))):
        seen = (
            (
                row * window.stride[0] - window.padding[0] + i * window.dilation[0],
                column * window.stride[1] - window.padding[1] + j * window.dilation[1],
            )
            for i, j in product(*(range(size) for size in window.kernel))
        )
        yield [(y, x) for y, x in seen if 0 <= y < rows and 0 <= x < columns]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(**PAIRS, size=st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_each_product_is_formed_once(kernel, stride, padding, dilation, size):
    """As many products as there are pairs of pixels that share a patch."""
    window = Window(kernel, stride, padding, dilation, 1)
    assume(min(window.positions(*size)) >= 1)
    pairs = {frozenset((a, b)) for seen in pixels_of_patches(window, *size) for a in seen for b in seen}
    assert Sharing.of(window, *size).products == len(pairs)


def test_the_number_of_sums_grows_with_the_kernel_alone():
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 1)
    # Along an axis three stretches at lag 0 (the first row, the interior, the last), one at each of 1, 2, -1 and -2.
    at_lag_0, with_others = 3 * (3 + 1 + 1), 3 + 4
    assert len(Sharing.of(window, 10, 12).regions) == at_lag_0 + 2 * with_others
    assert len(Sharing.of(window, 200, 100).regions) == at_lag_0 + 2 * with_others


CONVOLUTIONS = [
    # kernel, stride, padding, dilation, groups, size, channels of a group
    ((3, 3), (1, 1), (1, 1), (1, 1), 1, (9, 33), 40),
    ((3, 3), (1, 1), (1, 1), (1, 1), 2, (5, 70), 70),
    ((3, 3), (2, 2), (1, 1), (1, 1), 1, (16, 15), 40),
    ((3, 3), (1, 1), (2, 2), (2, 2), 3, (8, 9), 5),
    ((1, 1), (2, 2), (0, 0), (1, 1), 2, (7, 9), 40),
    ((5, 4), (1, 2), (2, 3), (2, 1), 1, (12, 20), 24),
    ((2, 2), (2, 2), (0, 0), (1, 1), 1, (16, 16), 40),  # nothing is shared
    ((3, 3), (2, 2), (1, 1), (1, 1), 1, (40, 41), 5),  # several bands of rows
]


@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation", "groups", "size", "channels"), CONVOLUTIONS)
@pytest.mark.parametrize("dense", [False, True])
def test_gram_of_many_channels(monkeypatch, dense, kernel, stride, padding, dilation, groups, size, channels):
    """Both ways, with and without the compiled one; and what is counted is what is computed."""
    monkeypatch.setattr(patches, "is_dense", lambda *_: dense)
    window = Window(kernel, stride, padding, dilation, groups)
    x = randn(2, groups * channels, *size)
    phi = ConvolutionFeatures(x, window, bias=False).materialize()
    torch.testing.assert_close(patch_gram(x, window), phi.mT @ phi, rtol=1e-10, atol=1e-10)
    with FlopCounterMode(display=False) as counter, kernels.disabled():
        gram = patch_gram(x, window)
    torch.testing.assert_close(gram, phi.mT @ phi, rtol=1e-10, atol=1e-10)
    products = gram_products(window, (2, groups * channels, *size), False)
    assert counter.get_total_flops() == groups * sum(2 * a * b * c for a, b, c in products)


def test_the_work_on_meta_tensors_is_that_on_the_cpu(monkeypatch):
    """For lower bounds in sibp.bench. Three channels are the case in which kernels take other products than torch."""
    monkeypatch.setattr(kernels, "available", lambda: True)
    monkeypatch.setattr(kernels, "library", lambda x: object() if x.is_cpu else None)
    x, window = randn(20, 3, 32, 32), Window((3, 3), (1, 1), (1, 1), (1, 1), 1)
    real, meta = ConvolutionFeatures(x, window), ConvolutionFeatures(x.to("meta"), window)
    assert meta.gram_products() == real.gram_products()
    assert meta.numbers_copied() == real.numbers_copied()


@pytest.mark.parametrize("images", [False, True])
@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_vectors_hold_channels_or_images(monkeypatch, images, channels, dtype):
    """Any number of images, whole vectors of them or not."""
    monkeypatch.setattr(patches, "is_dense", lambda *_: False)
    monkeypatch.setattr(patches, "_by_images", lambda *_: 0 if images else torch.inf)
    window = Window((3, 2), (1, 2), (1, 1), (2, 1), 2)
    for B in (1, 2, 8, 16, 17, 35):
        x = randn(B, 2 * channels, 7, 6, dtype=dtype)
        x = x.contiguous(memory_format=torch.channels_last) if B % 2 else x
        phi = ConvolutionFeatures(x.double(), window, bias=False).materialize()
        tolerance = 1e-5 if dtype is torch.float32 else 1e-13
        error = (patch_gram(x, window) - phi.mT @ phi).abs().amax()
        assert error <= tolerance * (phi.mT @ phi).abs().amax()


@pytest.mark.parametrize("threads", [2, 3])
@pytest.mark.parametrize(("batch", "channels"), [(9, 12), (40, 3)])
def test_threads_do_not_change_the_gram(threads, batch, channels):
    x, window = randn(batch, 2 * channels, 40, 40, dtype=torch.float32), Window((3, 3), (1, 1), (1, 1), (1, 1), 2)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = patch_gram(x, window)
        torch.set_num_threads(threads)
        assert torch.equal(patch_gram(x, window), one)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("kernel", "stride", "channels", "compiled", "dense"),
    [
        ((3, 3), (1, 1), 16, False, False),  # 13 products of pixels a position, in place of 45
        ((3, 3), (2, 2), 16, False, False),  # 34
        ((3, 3), (1, 1), 3, False, True),  # of 3 channels, where 4 x 16 are taken at a time
        ((3, 3), (1, 1), 3, True, False),  # 3 x 3 are, of 16 images
        ((3, 3), (2, 2), 3, True, False),
        ((2, 2), (2, 2), 16, True, False),  # ten of 16 x 16, in place of one of 64 x 64
        ((2, 2), (2, 2), 8, False, True),
        ((2, 2), (2, 2), 8, True, True),
        ((16, 16), (16, 16), 3, True, True),
        ((11, 11), (4, 4), 3, False, True),
        ((9, 9), (1, 1), 16, False, False),
        ((11, 11), (1, 1), 16, True, True),  # too many sums
    ],
)
def test_patches_are_materialized_where_that_takes_fewer_products(kernel, stride, channels, compiled, dense):
    window = Window(kernel, stride, (kernel[0] // 2 * (stride[0] < kernel[0]),) * 2, (1, 1), 1)
    assert is_dense(window, (16, channels, 32, 32), compiled) is dense


@pytest.mark.parametrize(("batch", "fewer"), [(0, False), (1, False), (7, False), (8, True), (16, True), (17, True)])
def test_vectors_hold_images_where_that_takes_fewer_products(batch, fewer):
    """Of three channels: 4 x 16 products for each image, or twice 3 x 3, unless most of a vector of 16 is empty."""
    assert (patches._by_images(batch, 3) <= patches._by_channels(3)) is fewer
