"""Pictures of page 4: one node forward and backward, the five nodes, and a whole graph with its numbers."""

from typing import Any

import numpy as np
from drawing import BACKWARD, BACKWARD_PALE, FORWARD, FORWARD_PALE, GREY, PALE, Drawing

MINUS = "\N{MINUS SIGN}"
# Name, sign in the circle, inputs, result, and what goes back.
NODES = (
    ("add", "+", ("x", "y"), "x + y", ("G", "G")),
    ("multiply", "×", ("x", "y"), "x × y", ("G × y", "G × x")),
    ("matrix product", "·", ("X", "Y"), "X Y", ("G Y^T", "X^T G")),
    ("ReLU", "s", ("x",), "max(x, 0)", ("G if x > 0",)),
    ("softmax and cross-entropy", "L", ("Z",), "L", (f"Ŷ {MINUS} Y",)),
)


def draw(page: dict[str, Any]) -> dict[str, str]:
    """The page's pictures.

    Args:
        page: the names that its code defined.

    Returns:
        SVG text by file name.
    """
    return {"node.svg": _node(), "nodes.svg": _nodes(), "graph.svg": _graph(page)}


def _node() -> str:
    d = Drawing(800, 300, "A node: forward on the left, backward on the right")
    d.text(200, 36, "forward", size=18, color=FORWARD, bold=True)
    d.text(600, 36, "backward", size=18, color=BACKWARD, bold=True)
    d.path([(400, 30), (400, 280)], color="#cbd2d9", dashed=True)
    for x, fill, color in ((200, FORWARD_PALE, FORWARD), (600, BACKWARD_PALE, BACKWARD)):
        d.circle(x, 150, 38, fill=fill, stroke=color)
        d.text(x, 157, "f", size=22, italic=True)
    for y, name in ((90, "x"), (210, "y")):
        d.arrow((70, y), (163, 150 + (y - 150) * 0.35), color=FORWARD, width=2.4)
        d.text(52, y + 6, name, size=20, color=FORWARD, italic=True)
        d.arrow((563, 150 + (y - 150) * 0.35), (480, y), color=BACKWARD, width=2.4)
        d.text(447, y + 6, f"∂L/∂{name}", size=18, color=BACKWARD)
    d.arrow((240, 150), (330, 150), color=FORWARD, width=2.4)
    d.text(348, 156, "z", size=20, color=FORWARD, italic=True)
    d.arrow((725, 150), (640, 150), color=BACKWARD, width=2.4)
    d.text(757, 156, "∂L/∂z", size=18, color=BACKWARD)
    d.text(200, 272, "z = f(x, y)", size=16)
    d.text(600, 254, "∂L/∂x = ∂L/∂z · ∂z/∂x", size=15)
    d.text(600, 280, "∂L/∂y = ∂L/∂z · ∂z/∂y", size=15)
    return d.svg()


def _nodes() -> str:
    step = 104
    d = Drawing(800, 50 + step * len(NODES), "Five nodes, forward and backward")
    d.text(300, 30, "forward", size=16, color=FORWARD, bold=True)
    d.text(610, 30, "backward, with G = ∂L/∂z", size=16, color=BACKWARD, bold=True)
    for i, (name, sign, inputs, result, back) in enumerate(NODES):
        y = 95 + step * i
        if i:
            d.path([(20, y - step / 2), (780, y - step / 2)], color=PALE)
        first, *rest = name.split(" and ")
        d.text(24, y + 5 - 9 * len(rest), first + (" and" if rest else ""), anchor="start", size=14)
        for word in rest:
            d.text(24, y + 16, word, anchor="start", size=14)
        offsets = (-26, 26) if len(inputs) == 2 else (0,)
        d.circle(300, y, 24, fill=FORWARD_PALE, stroke=FORWARD)
        d.text(300, y + 6, sign, size=18)
        d.circle(650, y, 24, fill=BACKWARD_PALE, stroke=BACKWARD)
        d.text(650, y + 6, sign, size=18)
        for offset, given, gradient in zip(offsets, inputs, back, strict=True):
            d.arrow((218, y + offset), (276, y + 0.3 * offset), color=FORWARD)
            d.text(204, y + offset + 5, given, color=FORWARD, italic=True)
            d.arrow((626, y + 0.3 * offset), (578, y + offset), color=BACKWARD)
            d.text(570, y + offset + 5, gradient, color=BACKWARD, anchor="end")
        d.arrow((325, y), (372, y), color=FORWARD)
        d.text(380, y + 5, result, color=FORWARD, anchor="start")
        d.arrow((732, y), (676, y), color=BACKWARD)
        d.text(748, y + 5, "1" if sign == "L" else "G", color=BACKWARD)
    return d.svg()


def _graph(page: dict[str, Any]) -> str:
    """The network of page 2: values above the edges, gradients below."""
    d = Drawing(900, 330, "The graph of a network with two layers, values above and gradients below")
    columns = (
        ("·", "W_1", page["W1"], page["dW1"]),
        ("+", "b_1", page["b1"], page["db1"]),
        ("s", "", None, None),
        ("·", "W_2", page["W2"], page["dW2"]),
        ("+", "b_2", page["b2"], page["db2"]),
        ("L", "labels", None, None),
    )
    product1, product2 = page["X"] @ page["W1"].T, page["A1"] @ page["W2"].T
    edges = (
        ("X", page["X"], None),
        ("", product1, page["E1"]),  # a sum passes its gradient on unchanged
        ("Z_1", page["Z1"], page["E1"]),
        ("A_1", page["A1"], page["D1"]),
        ("", product2, page["E2"]),
        ("Z_2", page["Z2"], page["E2"]),
    )
    y, step, left = 205, 142, 150
    for i, ((sign, name, value, gradient), (edge, above, below)) in enumerate(zip(columns, edges, strict=True)):
        x = left + step * i
        d.circle(x, y, 19, fill="#ffffff")
        d.text(x, y + 6, sign, size=17)
        d.arrow((max(x - step + 21, 24), y - 4), (x - 21, y - 4), color=FORWARD)
        if below is not None:
            d.arrow((x - 21, y + 4), (x - step + 21, y + 4), color=BACKWARD)
            _table(d, x - step / 2, y + 26, below, BACKWARD)
        d.text(x - step / 2, y - 50, edge, size=12, color=GREY)
        _table(d, x - step / 2 - 6 * (above.shape[1] - 2), y - 30, above, FORWARD)
        if name:
            d.arrow((x - 4, 116), (x - 4, y - 21), color=FORWARD)
            d.text(x, 30, name, size=12, color=GREY)
        if value is not None and gradient is not None:
            d.arrow((x + 4, y - 21), (x + 4, 116), color=BACKWARD)
            _table(d, x, 50, value, FORWARD)
            _table(d, x, 86, gradient, BACKWARD)
        if name == "labels":
            d.text(x, 100, "0, 1", size=12, color=FORWARD)
    x = left + step * 5
    d.text(x, y + 42, f"{float(-np.log(page['Y_hat'][[0, 1], page['labels']]).sum()):.2f}", size=14)
    d.text(450, 300, "above the line: forward, from left to right", size=13, color=FORWARD)
    d.text(450, 318, "below it, and under the parameters: backward, from right to left", size=13, color=BACKWARD)
    return d.svg()


def _table(d: Drawing, x: float, y: float, values: np.ndarray, color: str) -> None:
    """A small matrix around x, its first row at y; columns of 40 pixels."""
    for (i, j), value in np.ndenumerate(np.atleast_2d(values) + 0.0):
        end = x + 40 * (j - (values.shape[-1] - 1) / 2) + 16
        d.text(end, y + 15 * i, f"{value:.2g}".replace("-", MINUS), size=12, color=color, anchor="end")
