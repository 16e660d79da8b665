"""A picture of why a GAN needs `paused()`: ``python scripts/gan_picture.py [--seeds N] [--steps N] [--out FILE]``.

The GAN of examples/gan.py is trained from the same initial weights with the generator's loss inside and outside
`d_optimizer.paused()`. Outside, the discriminator's `.grad` is cleared before its own pass, so that only the error
signal that reaches the generator differs.
"""

import argparse
import contextlib
import io
import runpy
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.patches import Circle
from torch import Tensor

from sibp import SIBP
from sibp.report.pictures import POINTS, with_views

ROOT = Path(__file__).parents[1]
BATCH, EVERY = 128, 10
NAMES = {True: "with paused()", False: "without"}
COLOURS = {True: "#0072b2", False: "#d55e00"}


def play(paused: bool, seed: int, steps: int) -> tuple[list[float], Tensor]:
    """Trains one GAN.

    Args:
        paused: whether the generator's loss is propagated through a paused discriminator.
        seed: of weights, data and noise.
        steps: of each network.

    Returns:
        Mean distance of 1,000 generated points from the circle every `EVERY` steps, and the final points.
    """
    game: dict[str, Any] = runpy.run_path(str(ROOT / "examples" / "gan.py"))
    torch.manual_seed(seed)
    generator, discriminator = game["mlp"](4, 2), game["mlp"](2, 1)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    d_optimizer = SIBP(discriminator, lr=0.3, prox_weight=10.0, solver="cg:2")
    noise = torch.randn(1000, 4)
    distances, points = [], torch.empty(0, 2)
    for step in range(steps + 1):
        if step % EVERY == 0:
            with torch.no_grad():
                points = generator(noise)
            distances.append((points.norm(dim=1) - 1).abs().mean().item())
        d_optimizer.zero_grad()
        fake = generator(torch.randn(BATCH, 4)).detach()
        labels = torch.cat([torch.ones(BATCH), torch.zeros(BATCH)])
        logits = discriminator(torch.cat([game["circle"](BATCH), fake])).squeeze(1)
        F.binary_cross_entropy_with_logits(logits, labels).backward()
        d_optimizer.step()
        g_optimizer.zero_grad()
        with d_optimizer.paused() if paused else contextlib.nullcontext():
            game["fool"](discriminator, generator(torch.randn(BATCH, 4))).backward()
        g_optimizer.step()
    return distances, points


def draw(seeds: int, steps: int, out: Path) -> dict[bool, float]:
    """Train the GANs, and draw their curves and points.

    Args:
        seeds: runs of each kind.
        steps: of each run.
        out: file of the picture.

    Returns:
        The median final distance with and without `paused()`.
    """
    games = {paused: [play(paused, seed, steps) for seed in range(seeds)] for paused in (True, False)}
    matplotlib.rcParams["svg.hashsalt"] = "gan"  # reproducible file
    figure, axes = plt.subplots(1, 3, figsize=(10, 3.2), dpi=POINTS, layout="constrained")
    for paused, played in games.items():
        for curve, _ in played:
            axes[0].plot(range(0, steps + 1, EVERY), curve, color=COLOURS[paused], alpha=0.3, linewidth=0.8)
        middle = [median(values) for values in zip(*(curve for curve, _ in played), strict=True)]
        axes[0].plot(range(0, steps + 1, EVERY), middle, color=COLOURS[paused], label=NAMES[paused])
        points, axis = played[0][1][:300], axes[1 if paused else 2]
        axis.add_patch(Circle((0, 0), 1, fill=False, color="0.7"))
        axis.scatter(points[:, 0], points[:, 1], s=3, color=COLOURS[paused])
        axis.set(xlim=(-2, 2), ylim=(-2, 2), aspect="equal", title=f"generated points, {NAMES[paused]}")
    axes[0].set(xlabel="steps", ylabel="mean distance from the circle", yscale="log")
    axes[0].legend()
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    out.write_bytes(with_views(file.getvalue(), figure, axes))
    plt.close(figure)
    return {paused: median(curve[-1] for curve, _ in played) for paused, played in games.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images" / "gan_paused.svg")
    args = parser.parse_args()
    for paused, distance in draw(args.seeds, args.steps, args.out).items():
        print(f"{NAMES[paused]}: {distance:.3f}")
