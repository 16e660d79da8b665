"""Picture of page 3: a layer's three gradients as products of boxes."""

from typing import Any

from drawing import BACKWARD, BACKWARD_PALE, FORWARD, FORWARD_PALE, GREY, INK, PALE, Drawing

B, N, M = 60, 90, 55  # pixels that stand for the batch, the layer's inputs and its neurons


def draw(page: dict[str, Any]) -> dict[str, str]:
    """The page's picture.

    Args:
        page: the names that its code defined.

    Returns:
        SVG text by file name.
    """
    del page
    d = Drawing(760, 345, "A layer's gradients: G W for what it read, G transposed times A for the weights")
    d.text(30, 32, "forward", anchor="start", bold=True, color=FORWARD)
    x = _product(d, 40, 50, ("A", B, N, FORWARD_PALE, "B × n"), ("W^T", N, M, PALE, "n × m"))
    _box(d, x, 50, ("Z", B, M, FORWARD_PALE, "B × m"), FORWARD)
    d.text(315, 85, "+ b in every row", anchor="start", color=GREY, size=12)
    d.text(30, 180, "backward, with G = ∂L/∂Z", anchor="start", bold=True, color=BACKWARD)
    x = _product(d, 40, 205, ("G", B, M, BACKWARD_PALE, "B × m"), ("W", M, N, PALE, "m × n"))
    _box(d, x, 205, ("∂L/∂A", B, N, BACKWARD_PALE, "B × n"), BACKWARD)
    x = _product(d, 410, 205, ("G^T", M, B, BACKWARD_PALE, "m × B"), ("A", B, N, FORWARD_PALE, "B × n"))
    _box(d, x, 205, ("∂L/∂W", M, N, BACKWARD_PALE, "m × n"), BACKWARD)
    d.text(195, 305, "on to the layer before", size=12, color=GREY)
    d.text(560, 305, "for the weights: a thin product for each sample, added up", size=12, color=GREY)
    d.text(380, 332, "∂L/∂b is the sum of the rows of G", size=13)
    return {"layer-gradients.svg": d.svg()}


Box = tuple[str, int, int, str, str]
"""Name, height, width, fill, shape in words."""


def _box(d: Drawing, x: float, y: float, box: Box, color: str = INK) -> float:
    """Draws a box with its middle at the height of the row; returns where it ends."""
    name, height, width, fill, shape = box
    d.matrix(x, y + (B - height) / 2, width, height, name, shape, fill=fill, color=color)
    return x + width


def _product(d: Drawing, x: float, y: float, left: Box, right: Box) -> float:
    """Draws left · right = and returns where the result goes."""
    x = _box(d, x, y, left)
    d.text(x + 13, y + B / 2 + 5, "·")
    x = _box(d, x + 26, y, right)
    d.text(x + 15, y + B / 2 + 5, "=")
    return x + 30
