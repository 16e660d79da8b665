"""Pictures of page 1: a neuron, and how it divides a plane of digits."""

from typing import Any

import numpy as np
from drawing import BACKWARD, FORWARD, FORWARD_PALE, GREY, INK, NEW, Drawing
from matplotlib.axes import Axes
from plots import plot

COLORS = {0: FORWARD, 1: BACKWARD, 9: NEW}


def draw(page: dict[str, Any]) -> dict[str, str]:
    """The page's pictures.

    Args:
        page: the names that its code defined.

    Returns:
        SVG text by file name.
    """
    return {
        "neuron.svg": _neuron(page),
        "digits-plane.svg": _plane(page),
        "boundary.svg": _boundary(page),
        "activations.svg": _activations(page),
        "strip.svg": _strip(page),
    }


def _neuron(page: dict[str, Any]) -> str:
    """The neuron applied to the first image of a one."""
    first = int(np.flatnonzero(page["labels"] == 1)[0])
    x1, x2 = page["features"][first]
    d = Drawing(760, 250, "A neuron that reads two numbers from a picture of a one")
    _digit(d, page["pictures"][first], 24, 45, 20)
    for column, color in ((1, FORWARD), (5, FORWARD), (3, BACKWARD)):
        d.rect(24 + 20 * column + 2, 85 + 2, 36, 76, stroke=color, radius=3)
    d.text(104, 228, "a picture", color=GREY)
    d.arrow((186, 100), (250, 70), color=BACKWARD)
    d.arrow((186, 150), (250, 180), color=FORWARD)
    for y, color, name, value in ((70, BACKWARD, "middle", x1), (180, FORWARD, "sides", x2)):
        d.circle(280, y, 27, stroke=color)
        d.text(280, y + 5, f"{value:.2f}", color=color)
        d.text(280, y - 34, name, color=color)
    d.arrow((308, 76), (418, 117), color=BACKWARD)
    d.arrow((308, 174), (418, 133), color=FORWARD)
    d.text(366, 82, "w_1 = 1", color=BACKWARD)
    d.text(366, 180, "w_2 = -1".replace("-", "\N{MINUS SIGN}"), color=FORWARD)
    d.circle(450, 125, 32, fill=FORWARD_PALE)
    d.text(450, 133, "+", size=26)
    d.arrow((450, 36), (450, 91))
    d.text(450, 26, "b = 0")
    d.arrow((483, 125), (572, 125))
    d.text(527, 115, f"z = {x1 - x2:.2f}")
    d.rect(574, 98, 62, 54, fill=FORWARD_PALE, radius=6)
    d.text(605, 131, "s", size=18, italic=True)
    d.arrow((637, 125), (700, 125))
    d.text(720, 131, "a", size=18, italic=True)
    d.text(450, 182, "weighs and adds", size=12, color=GREY)
    d.text(605, 174, "activation", size=12, color=GREY)
    d.text(720, 152, "output", size=12, color=GREY)
    return d.svg()


def _digit(d: Drawing, picture: np.ndarray, x: float, y: float, size: float) -> None:
    """An 8 x 8 image, ink dark."""
    for row, column in np.ndindex(picture.shape):
        grey = round(255 - 190 * float(picture[row, column]))
        d.rect(x + size * column, y + size * row, size, size, fill=f"rgb({grey},{grey},{grey})", stroke="#c4ccd4")


def _scatter(ax: Axes, page: dict[str, Any], shown: tuple[int, ...], size: float = 5, top: float = 0.8) -> None:
    """Every fourth image of the digits as a point."""
    for digit in shown:
        points = page["features"][page["labels"] == digit][::4]
        ax.scatter(*points.T, s=size, color=COLORS[digit], alpha=0.7, linewidths=0, label=f"{digit}")
    ax.set(xlim=(-0.02, 1.02), ylim=(0, top), xlabel="middle", ylabel="sides")
    ax.set_aspect("equal", adjustable="box")


def _line(ax: Axes, w: tuple[float, float], b: float, **style: Any) -> None:
    """Where w x + b = 0."""
    direction = np.array([-w[1], w[0]]) / np.hypot(*w)
    foot = -b * np.array(w) / np.dot(w, w)
    ax.plot(*np.stack([foot - 3 * direction, foot + 3 * direction]).T, **{"color": INK, **style})


def _plane(page: dict[str, Any]) -> str:
    """Zeros, ones, a few of their images, the decision boundary and w."""
    with plot(6.4, 4.6) as made:
        ax = made.figure.add_subplot()
        _scatter(ax, page, (0, 1), size=14)
        _line(ax, (1, -1), 0)
        ax.annotate("", (0.55, 0.35), (0.45, 0.45), arrowprops={"arrowstyle": "-|>", "lw": 2, "color": INK})
        ax.text(0.55, 0.365, "w", fontsize=13, style="italic")
        ax.text(0.63, 0.70, "z = 0", rotation=45, ha="center", va="center", color=INK)
        ax.text(0.77, 0.66, "z > 0: a one", color=BACKWARD)
        ax.text(0.2, 0.7, "z < 0: a zero", color=FORWARD)
        for digit, corner in ((0, (0.0, 0.22)), (1, (0.81, 0.5))):
            of_digit = page["pictures"][page["labels"] == digit]
            _thumbnail(ax, of_digit[0], corner, 0.13, COLORS[digit])
        ax.legend(loc="upper left", markerscale=2, handletextpad=0.1)
    return made.svg


def _thumbnail(ax: Axes, picture: np.ndarray, corner: tuple[float, float], size: float, color: str) -> None:
    """An image as small squares, with its lower left corner at a point of the plot."""
    pixel = size / 8
    x, y = corner
    for row, column in np.ndindex(picture.shape):
        ink = 1 - 0.75 * float(picture[row, column])
        place = (x + pixel * column, y + pixel * (7 - row))
        ax.add_patch(_square(place, pixel, f"{ink:.2f}"))
    ax.add_patch(_square(corner, size, "none", color))


def _square(corner: tuple[float, float], size: float, fill: str, edge: str = "none") -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, size, size, facecolor=fill, edgecolor=edge, linewidth=1.2)


def _boundary(page: dict[str, Any]) -> str:
    """Weights rotate the boundary, the bias shifts it, longer weights steepen the sigmoid."""
    with plot(8.6, 3.2) as made:
        turn, shift, steep = made.figure.subplots(1, 3)
        for ax in (turn, shift):
            _scatter(ax, page, (0, 1), top=1.0)
        for w, b, style, name in (((1, -1), 0, "-", "(1, \N{MINUS SIGN}1)"), ((1, 0), -0.5, "--", "(1, 0)")):
            _line(turn, w, b, linestyle=style, label=f"w = {name}")
        for b, style in ((0.1, "--"), (0, "-"), (0.4, ":")):
            _line(shift, (1, -1), b, linestyle=style, label=f"b = {b:g}")
        distance = np.linspace(-0.6, 0.6, 61)
        for scale, style in ((1, "-"), (5, "--"), (25, ":")):
            steep.plot(distance, 1 / (1 + np.exp(-scale * distance)), style, color=INK, label=f"{scale} w")
        steep.set_box_aspect(1)
        steep.set(xlabel="distance from the line", ylabel="sigmoid of z", ylim=(-0.05, 1.05))
        titles = ("weights turn it", "the bias shifts it", "longer weights are surer")
        for ax, title in zip((turn, shift, steep), titles, strict=True):
            ax.set_title(title, fontsize=11)
            lines = ax.get_lines()
            place = "upper left" if ax is steep else "upper right"
            ax.legend(
                lines, [str(line.get_label()) for line in lines], fontsize=8, loc=place, handlelength=1.8, frameon=True
            )
    return made.svg


def _activations(page: dict[str, Any]) -> str:
    """The four activation functions."""
    z = np.linspace(-3, 3, 601)
    with plot(8.6, 2.3) as made:
        for ax, (name, s) in zip(made.figure.subplots(1, 4), page["activations"].items(), strict=True):
            ax.axhline(0, color=GREY, linewidth=0.6)
            ax.axvline(0, color=GREY, linewidth=0.6)
            ax.plot(z, s(z), color=FORWARD)
            ax.set_title(name, fontsize=11)
            ax.set(xlabel="z", ylim=(-1.2, 3.1 if name == "ReLU" else 1.4), xticks=(-2, 0, 2))
    return made.svg


def _strip(page: dict[str, Any]) -> str:
    """Where each hidden neuron is active, and the resulting strip."""
    x, y = np.meshgrid(np.linspace(-0.02, 1.02, 27), np.linspace(0, 0.8, 21))
    plane = np.stack([x, y], -1)
    too_empty = page["relu"](plane @ np.array([-1.0, 1.0]) - 0.15)
    too_full = page["relu"](plane @ np.array([1.0, -1.0]) - 0.25)
    z = 0.05 - too_empty - too_full
    with plot(8.6, 2.9) as made:
        axes = made.figure.subplots(1, 3, sharey=True)
        answers = ((too_empty, "first hidden neuron"), (too_full, "second hidden neuron"))
        for ax, (answer, title) in zip(axes, answers, strict=False):
            ax.contourf(x, y, answer, levels=(0.005, 0.15, 0.3, 0.45, 0.6, 1.0), cmap="Greys", vmin=-0.2, vmax=1.2)
            ax.set_title(title, fontsize=11)
        axes[2].contourf(x, y, z, levels=(0, 1), colors=["#dff3ea"])
        axes[2].set_title("output: 9 where z > 0", fontsize=11)
        for ax in axes:
            _scatter(ax, page, (0, 1, 9))
            ax.label_outer()
        axes[2].legend(fontsize=8, loc="upper right", markerscale=2, handletextpad=0.1, borderpad=0.1)
    return made.svg
