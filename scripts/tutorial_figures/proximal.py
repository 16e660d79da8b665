"""Plots of page 6: implicit steps, the proximal map, ReLU inside the subproblem, step lengths, line search."""

from typing import Any

import numpy as np
from drawing import BACKWARD, FORWARD, GREY, INK, NEW
from explicit import contours
from plots import plot, three_digits
from sweep import frames


def draw(page: dict[str, Any]) -> dict[str, str]:
    """The page's plots.

    Args:
        page: the names that its code defined.

    Returns:
        SVG text by file name.
    """
    return {
        "euler.svg": _euler(page),
        "proximal-map.svg": _proximal_map(page),
        "inside.svg": _inside(),
        "windows.svg": _windows(page),
        "searched.svg": _searched(page),
        **frames(),
    }


def _euler(page: dict[str, Any]) -> str:
    with plot(8.6, 2.4) as made:
        explicit, implicit = made.figure.subplots(1, 2, sharey=True)
        before, after = page["paths"]["explicit"][:2]
        h = 1 - after[0] / before[0]  # along the axis of curvature 1
        for ax, name, color in ((explicit, "explicit", BACKWARD), (implicit, "implicit", NEW)):
            contours(ax, page["curvature"])
            path = np.array(page["paths"][name][: 3 if name == "explicit" else None])
            ax.plot(*path.T, "o-", color=color, markersize=3.5, linewidth=1.2)
            ax.set_title(f"{name}, h = {h:g}", fontsize=11)
        explicit.annotate("leaves at once", (-6.5, 1.6), xytext=(-5.5, 1.5), color=BACKWARD)
    return made.svg


def _proximal_map(page: dict[str, Any]) -> str:
    x, h = 2.0, 1.0
    at = np.linspace(-1, 3, 201)
    near = (at - x) ** 2 / (2 * h)
    both = page["loss"](at) + near
    new = at[both.argmin()]
    with plot(6.4, 3.2) as made:
        ax = made.figure.add_subplot()
        ax.plot(at, page["loss"](at), color=FORWARD, label="the loss L(v)")
        ax.plot(at, near, color=GREY, linestyle="--", label="distance (v \N{MINUS SIGN} x)² / 2h")
        ax.plot(at, both, color=NEW, label="both together")
        ax.plot(new, both.min(), "o", color=NEW)
        ax.plot(x, page["loss"](x), "o", color=INK)
        ax.annotate("x", (x, page["loss"](x)), xytext=(x + 0.06, page["loss"](x) - 0.45), color=INK)
        ax.annotate("new x", (new, both.min()), xytext=(new - 0.12, both.min() + 0.35), color=NEW)
        ax.set(ylim=(0, 6), xlabel="v")
        ax.legend(loc="upper center")
    return made.svg


def _inside() -> str:
    """A sample's term (s(z_new) - t)^2, or its linear substitute (z_new - t)^2, against z_new."""
    z = np.linspace(-2.5, 2.5, 201)
    with plot(8.6, 2.9) as made:
        axes = made.figure.subplots(1, 2, sharey=True)
        for ax, at, D, title in (
            (axes[0], -1.2, 0.5, "silent: z = \N{MINUS SIGN}1.2, asked for less"),
            (axes[1], 0.6, 1.4, "active: z = 0.6, asked for less than 0"),
        ):
            linear = at - D * (at > 0)
            target = max(at, 0) - D
            ax.plot(z, (z - linear) ** 2, color=BACKWARD, linestyle="--", label="linear: ProxBP, exact")
            least = min(target**2, 0 if target > 0 else target**2)
            ax.plot(z, (np.maximum(z, 0) - target) ** 2 - least, color=NEW, label="ReLU inside: cg")
            ax.plot(at, 0, "^", color=INK, markersize=8, clip_on=False, label="now")
            ax.set_title(title, fontsize=11)
            ax.set(ylim=(0, 4), xlabel="new pre-activation", xticks=(-2, -1, 0, 1, 2))
        axes[0].set_ylabel("what it costs")
        axes[1].legend(loc="upper left", fontsize=9)
    return made.svg


def _windows(page: dict[str, Any]) -> str:
    styles = {
        "explicit": (FORWARD, "o", "-"),
        "with momentum": (FORWARD, "v", "--"),
        "ProxBP": (GREY, "s", "-"),
        "SIBP, exact": (BACKWARD, "^", "-"),
        "SIBP, cg:3": (NEW, "d", "-"),
    }
    with plot(6.4, 3.5) as made:
        ax = made.figure.add_subplot()
        for name, (color, marker, line) in styles.items():
            found = page["losses"][name]
            ax.plot(list(found), three_digits(found.values()), marker + line, color=color, markersize=4, label=name)
        ax.set(xscale="log", yscale="log", xlabel="step length: h, or η with λ = 1", ylabel="loss after 42 steps")
        ax.set(ylim=(0.008, 4))
        ax.legend(fontsize=9, loc="lower left")
    return made.svg


def _searched(page: dict[str, Any]) -> str:
    styles = {"explicit": (FORWARD, "o", ":"), "implicit": (BACKWARD, "s", "--"), "searched": (NEW, "d", "-")}
    with plot(8.6, 3.2) as made:
        axes = made.figure.subplots(1, 2, sharey=True)
        for ax, (layers, found) in zip(axes, page["ways"].items(), strict=True):
            for name, (color, marker, line) in styles.items():
                style = {"color": color, "markersize": 4, "label": name}
                ax.plot(page["lengths"], three_digits(found[name]), marker + line, **style)
            ax.set_title(f"{layers} layers", fontsize=11)
            ax.set(xscale="log", xlabel="step length: h, or η with λ = 1", ylim=(0, 2.7))
        axes[0].set_ylabel("loss after 42 steps")
        axes[1].legend(fontsize=9, loc="lower left")
    return made.svg
