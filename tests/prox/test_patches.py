"""Operations on implicit patches equal those with the explicit patch matrix."""

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from layer_problems import randn
from torch.utils.flop_counter import FlopCounterMode

from sibp.prox.operators import ConvolutionFeatures
from sibp.prox.operators.patches import gram_products, patch_gram
from sibp.prox.operators.window import Window, blocks, meetings, strips

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


@pytest.mark.parametrize(
    ("columns", "channels", "padding", "expected"),
    [
        (32, 16, 2, (1, 32, 32)),  # unchanged
        # Each column of 300 channels is a block, and meets four others on either side. Strips of one patch take 5 * 5
        # products of columns, a patch; those of two (6 * 6 - 2) / 2; those of four are 8 * 300 numbers wide.
        (8, 300, 2, (4, 6, 2)),
        (8, 512, 2, (8, 5, 1)),  # the narrowest are too wide
    ],
)
def test_strips_need_the_fewest_products(columns, channels, padding, expected):
    cut = strips(Window((5, 5), (1, 1), (padding, padding), (1, 1), 1), columns, channels)
    assert (cut.number, cut.width, cut.patches) == expected


@pytest.mark.parametrize(("width", "channels", "same"), [(12, 16, False), (12, 16, True), (5, 3, False), (9, 70, True)])
def test_blocks_cover_every_pair_of_overlapping_columns(width, channels, same):
    window = Window((1, 3), (1, 1), (0, 0), (1, 2), 1)  # up to four columns apart
    found = [
        (a, b)
        for block in blocks(window, width, channels, same)
        for a in range(block.first, block.end)
        for b in range(block.low, block.high)
    ]
    assert len(set(found)) == len(found)
    first = 0 if same else -4
    assert {(a, b) for a in range(width) for b in range(width) if first <= b - a <= 4} <= set(found)


@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "dilation", "groups", "size"),
    [
        ((3, 3), (1, 1), (1, 1), (1, 1), 1, (9, 33)),  # blocks of columns
        ((3, 3), (1, 1), (1, 1), (1, 1), 2, (5, 70)),  # strips, two groups
        ((3, 3), (2, 2), (1, 1), (1, 1), 1, (16, 16)),  # patches written out
        ((1, 1), (2, 2), (0, 0), (1, 1), 2, (7, 9)),
        ((5, 4), (1, 2), (2, 3), (2, 1), 1, (12, 20)),
    ],
)
def test_gram_of_many_channels(kernel, stride, padding, dilation, groups, size):
    """Enough channels for several blocks of each kind; and what is counted is what is computed."""
    window = Window(kernel, stride, padding, dilation, groups)
    x = randn(2, groups * 40, *size)
    patches = ConvolutionFeatures(x, window, bias=False)
    phi = patches.materialize()
    with FlopCounterMode(display=False) as counter:
        gram = patch_gram(x, window)
    torch.testing.assert_close(gram, phi.mT @ phi, rtol=1e-10, atol=1e-10)
    products = gram_products(window, (2, groups * 40, *size))
    assert counter.get_total_flops() == groups * sum(2 * a * b * c for a, b, c in products)


def test_rows_inside_the_image_are_combined():
    """However large the image: the number of products grows with the kernel alone."""
    window = Window((3, 3), (1, 1), (1, 1), (1, 1), 1)
    found = meetings(window, 100)
    assert len(found) == len(meetings(window, 10)) == 3 + 3 + 1
    assert [m.rows for m in found if len(m.taps) == 3 and m.lag == 0] == [slice(1, 99, 1)]
