"""Pictures of page 7: the span trick to scale, and what a step costs."""

from typing import Any

from drawing import BACKWARD, BACKWARD_PALE, FORWARD_PALE, GREY, INK, NEW, NEW_PALE, PALE, Drawing
from plots import plot

SCALE = 0.2  # pixels for one row or column
B, N, M = 100 * SCALE, 784 * SCALE, 500 * SCALE


def draw(page: dict[str, Any]) -> dict[str, str]:
    """The page's pictures.

    Args:
        page: the names that its code defined.

    Returns:
        SVG text by file name.
    """
    return {"span.svg": _span(), "costs.svg": _costs(page)}


Box = tuple[str, float, float, str, str]
"""Name, height, width, fill and colour."""


def _span() -> str:
    d = Drawing(800, 400, "The new weights are the old ones plus a tall thin matrix times a flat one")
    d.text(24, 30, "the change of the weights", anchor="start", bold=True, color=NEW)
    A = ("A", B, N, FORWARD_PALE, INK)
    U = ("U^T", M, B, BACKWARD_PALE, BACKWARD)
    new_W = ("W_{new}", M, N, NEW_PALE, NEW)
    _row(d, 30, 100, new_W, "=", ("W", M, N, PALE, INK), "+", U, "·", A)
    d.text(24, 200, "all that the subproblem has to know", anchor="start", bold=True, color=NEW)
    K, Z = ("K", B, B, NEW_PALE, NEW), ("Z", B, M, PALE, INK)
    Phi, transposed = ("Φ", B, N + SCALE, FORWARD_PALE, INK), ("Φ^T", N + SCALE, B, FORWARD_PALE, INK)
    _row(d, 30, 295, Phi, "·", transposed, "=", K)
    _row(d, 360, 295, ("Z_{new}", B, M, NEW_PALE, NEW), "=", Z, "+", K, "·", ("U", B, M, BACKWARD_PALE, BACKWARD))
    return d.svg()


def _row(d: Drawing, x: float, middle: float, *parts: Box | str) -> None:
    """Boxes and signs from left to right, all at one height."""
    for part in parts:
        if isinstance(part, str):
            d.text(x + 16, middle + 5, part)
            x += 32
        else:
            name, height, width, fill, color = part
            shape = f"{height / SCALE:.0f} × {width / SCALE:.0f}"
            d.matrix(x, middle - height / 2, width, height, name, shape, fill=fill, color=color)
            x += width


def _costs(page: dict[str, Any]) -> str:
    with plot(6.4, 2.4) as made:
        ax = made.figure.add_subplot()
        names = ["an explicit step", *page["ratios"]][::-1]
        ratios = [1.0, *page["ratios"].values()][::-1]
        colors = [BACKWARD if name.endswith("n + 1 unknowns") else NEW for name in names]
        ax.barh(names, ratios, color=[*colors[:-1], GREY], height=0.6)
        for place, ratio in enumerate(ratios):
            ax.text(ratio + 0.08, place, f"{ratio:.2f}", va="center")
        ax.set(xlabel="multiplications, in explicit steps", xlim=(0, 1.1 * max(ratios)))
    return made.svg
