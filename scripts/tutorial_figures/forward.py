"""Pictures of page 2: the small network, and the shapes of its forward pass."""

from typing import Any

from drawing import FORWARD, FORWARD_PALE, GREY, PALE, Drawing

MINUS = "\N{MINUS SIGN}"


def draw(page: dict[str, Any]) -> dict[str, str]:
    """The page's pictures.

    Args:
        page: the names that its code defined.

    Returns:
        SVG text by file name.
    """
    return {"network.svg": _network(page), "shapes.svg": _shapes()}


def number(value: float) -> str:
    """A number with a typographic minus sign."""
    return f"{value:.4g}".replace("-", MINUS)


def _network(page: dict[str, Any]) -> str:
    """The forward pass of the first sample, weights on the arrows; arrows of weight 0 are pale."""
    d = Drawing(
        760, 330, "A network with three inputs, two hidden neurons and two outputs, at work on the first sample"
    )
    inputs = [(90, 75), (90, 165), (90, 255)]
    hidden = [(350, 110), (350, 220)]
    outputs = [(610, 110), (610, 220)]
    for W, sources, targets, radius in ((page["W1"], inputs, hidden, 30), (page["W2"], hidden, outputs, 34)):
        for j, target in enumerate(targets):
            for k, source in enumerate(sources):
                _weight(d, source, target, radius, W[j, k], 0.3)
    for (x, y), value, name in zip(inputs, page["X"][0], ("x_1", "x_2", "x_3"), strict=True):
        d.circle(x, y, 26)
        d.text(x, y + 5, number(value))
        d.text(x - 46, y + 5, name, color=GREY)
    for i, (x, y) in enumerate(hidden):
        d.circle(x, y, 34, fill=FORWARD_PALE, stroke=FORWARD)
        d.text(x, y - 3, f"z = {number(page['Z1'][0, i])}", size=12)
        d.text(x, y + 15, f"a = {number(page['A1'][0, i])}", size=12)
        d.text(x, y + (-46 if i == 0 else 56), f"bias {number(page['b1'][i])}", size=12, color=GREY)
    for i, (x, y) in enumerate(outputs):
        d.circle(x, y, 34, fill=FORWARD_PALE, stroke=FORWARD)
        d.text(x, y + 5, f"z = {number(page['Z2'][0, i])}", size=12)
        d.text(x, y + (-46 if i == 0 else 56), f"bias {number(page['b2'][i])}", size=12, color=GREY)
        d.text(x + 50, y + 5, f"p = {page['Y_hat'][0, i]:.2f}", anchor="start")
    for x, words in ((90, "the first sample"), (350, "hidden layer: ReLU"), (610, "output layer: softmax")):
        d.text(x, 316, words, color=GREY)
    return d.svg()


def _weight(
    d: Drawing, source: tuple[float, float], target: tuple[float, float], radius: float, weight: float, place: float
) -> None:
    """An arrow between two circles with its weight on it."""
    (x0, y0), (x1, y1) = source, target
    length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
    dx, dy = (x1 - x0) / length, (y1 - y0) / length
    color = FORWARD if weight else "#aab4be"
    d.arrow(
        (x0 + 35 * dx, y0 + 35 * dy), (x1 - (radius + 6) * dx, y1 - (radius + 6) * dy), color=color, dashed=not weight
    )
    x, y = x0 + place * (x1 - x0), y0 + place * (y1 - y0)
    d.circle(x, y, 11, stroke="none")
    d.text(x, y + 4, number(weight), size=12, color=color)


def _shapes() -> str:
    """Matrices as boxes, to scale: B = 2, widths 3, 2, 2."""
    d = Drawing(760, 235, "Shapes of the matrices in the forward pass")
    unit = 24

    def row(y: float, A: str, W: str, b: str, Z: str, n: int, m: int, after: str) -> None:
        x = 30.0
        d.matrix(x, y, unit * n, unit * 2, A, f"B × {n}", fill=FORWARD_PALE)
        x += unit * n + 26
        d.text(x, y + 30, "·")
        x += 26
        d.matrix(x, y - unit * (n - 2) / 2, unit * m, unit * n, W, f"{n} × {m}", fill=PALE)
        x += unit * m + 26
        d.text(x, y + 30, "+")
        x += 26
        d.matrix(x, y + unit / 2, unit * m, unit, b, f"{m}", fill=PALE)
        x += unit * m + 26
        d.text(x, y + 30, "=")
        x += 26
        d.matrix(x, y, unit * 2, unit * 2, Z, f"B × {m}", fill=FORWARD_PALE)
        x += unit * 2 + 16
        d.arrow((x, y + unit), (x + 90, y + unit), color=FORWARD)
        d.text(x + 45, y + unit - 9, after, size=12, color=FORWARD)
        d.matrix(x + 106, y, unit * 2, unit * 2, "A_1" if m and Z == "Z_1" else "Ŷ", f"B × {m}", fill=FORWARD_PALE)

    row(45, "A_0 = X", "W_1^T", "b_1", "Z_1", 3, 2, "ReLU")
    row(160, "A_1", "W_2^T", "b_2", "Z_2", 2, 2, "softmax")
    d.text(610, 64, "rows: samples (B = 2)", color=GREY, size=12, anchor="start")
    d.text(610, 82, "W^T is W transposed", color=GREY, size=12, anchor="start")
    return d.svg()
