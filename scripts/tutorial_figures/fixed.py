"""Picture of page 8: gradient and change per step as methods converge."""

from typing import Any

from drawing import BACKWARD, FORWARD, NEW
from plots import plot, three_digits


def draw(page: dict[str, Any]) -> dict[str, str]:
    """The page's picture.

    Args:
        page: the names that its code defined.

    Returns:
        SVG text by file name.
    """
    with plot(6.4, 3.2) as made:
        ax = made.figure.add_subplot()
        for (name, history), color in zip(page["histories"].items(), (FORWARD, NEW, BACKWARD), strict=True):
            ax.plot(three_digits(history[:, 1]), color=color, label=f"{name}: gradient")
            ax.plot(three_digits(history[:, 2]), color=color, linestyle="--", label=f"{name}: change")
        ax.set(yscale="log", xlabel="step", ylabel="size")
        ax.legend()
    return {"fixed-point.svg": made.svg}
