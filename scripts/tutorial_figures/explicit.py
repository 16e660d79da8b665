"""Pictures of page 5: the valley, the range of step lengths, vanishing gradients."""

from typing import Any

import numpy as np
from drawing import BACKWARD, FORWARD, GREY, INK, NEW
from plots import plot, three_digits


def draw(page: dict[str, Any]) -> dict[str, str]:
    """The page's pictures.

    Args:
        page: the names that its code defined.

    Returns:
        SVG text by file name.
    """
    return {"valley.svg": _valley(page), "step-lengths.svg": _windows(page), "vanishing.svg": _vanishing(page)}


def _valley(page: dict[str, Any]) -> str:
    with plot(8.6, 3.6) as made:
        axes = made.figure.subplots(2, 2, sharex=True, sharey=True)
        for ax, (h, path) in zip(axes.flat, page["paths"].items(), strict=True):
            contours(ax, page["curvature"])
            ax.plot(*np.array(path[:26]).T, "o-", color=BACKWARD, markersize=2.5, linewidth=1)
            ax.set_title(f"h = {h:g}", fontsize=11)
    return made.svg


def contours(ax: Any, curvature: np.ndarray) -> None:
    """Contour lines of the valley, and its minimum."""
    around = np.linspace(0, 2 * np.pi, 61)
    for level in (0.5, 4, 12, 26, 45):
        radius = np.sqrt(2 * level / curvature)
        ax.plot(radius[0] * np.cos(around), radius[1] * np.sin(around), color="#c4ccd4", linewidth=0.8)
    ax.plot(0, 0, "+", color=INK)
    ax.set(xlim=(-10, 4), ylim=(-2.1, 2.1))


def _windows(page: dict[str, Any]) -> str:
    losses = page["losses"]
    with plot(6.4, 3.2) as made:
        ax = made.figure.add_subplot()
        ax.axhline(np.log(10), color=GREY, linestyle="--", linewidth=1)
        ax.text(0.011, np.log(10) + 0.05, "knowing nothing", color=GREY, fontsize=9)
        ax.plot(list(losses), three_digits(losses.values()), "o-", color=FORWARD, markersize=4)
        ax.set(xscale="log", xlabel="length of the step h", ylabel="loss after 42 steps", ylim=(0, 2.6))
    return made.svg


def _vanishing(page: dict[str, Any]) -> str:
    with plot(6.4, 3.2) as made:
        ax = made.figure.add_subplot()
        for (name, norms), color, marker in zip(
            page["sizes_of_gradients"].items(), (BACKWARD, NEW, FORWARD), "osd", strict=True
        ):
            ax.plot(range(1, len(norms) + 1), three_digits(norms), marker + "-", color=color, markersize=4, label=name)
        ax.set(yscale="log", xlabel="layer", ylabel="size of its gradient", xticks=range(1, 11))
        ax.legend()
    return made.svg
