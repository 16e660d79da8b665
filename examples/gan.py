"""A GAN on two-dimensional points: each player has an optimizer of its own, and `paused()` keeps them apart.

The generator's loss travels through the discriminator. If that has an SIBP, its backward pass would solve the
discriminator's subproblems for the generator's loss too, and leave displacements in `.grad` that belong to no step of
its own. Inside `d_optimizer.paused()` the discriminator is an ordinary network: the generator gets the ordinary error
signal, and nothing of the discriminator's is touched but its `.grad`, which holds ordinary gradients then. Freezing
its parameters meanwhile (`requires_grad_(False)`) saves these as well, so that none can be applied by mistake.

What happens without: `step()` refuses what lies in `.grad` and is no displacement of its own, and names the layer.
AutoSIBP searches along the discriminator's own loss; the generator's would move under it.

Expected output:

    distance from the circle, discriminator by SIBP: 0.80 -> 0.17
    distance from the circle, discriminator by AutoSIBP: 0.80 -> 0.05
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP, AutoSIBP


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


def circle(n: int) -> Tensor:
    angle = 2 * torch.pi * torch.rand(n)
    return torch.stack([angle.cos(), angle.sin()], 1)


def fool(discriminator: nn.Module, points: Tensor) -> Tensor:
    """The generator's loss: that its points are taken for real ones."""
    return F.softplus(-discriminator(points)).mean()


def play(name: str, steps: int = 250, batch: int = 128) -> None:
    torch.manual_seed(0)
    generator, discriminator = mlp(4, 2), mlp(2, 1)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    d_optimizer = AutoSIBP(discriminator)
    if name == "SIBP":
        d_optimizer = SIBP(discriminator, lr=0.3, prox_weight=10.0, solver="cg:2")
    distances = []
    for step in range(steps + 1):
        if step in (0, steps):
            distances.append((generator(torch.randn(1000, 4)).norm(dim=1) - 1).abs().mean().item())
        points = torch.cat(
            [circle(batch), generator(torch.randn(batch, 4)).detach()]
        )  # one pass: one subproblem a layer
        real = torch.arange(2 * batch) < batch

        def loss(points: Tensor = points, real: Tensor = real) -> Tensor:
            return F.binary_cross_entropy_with_logits(discriminator(points).squeeze(1), real.float())

        d_optimizer.zero_grad()
        loss().backward()
        d_optimizer.step(**({"evaluate": loss} if name == "AutoSIBP" else {}))

        g_optimizer.zero_grad()
        with d_optimizer.paused():
            discriminator.requires_grad_(False)
            fool(discriminator, generator(torch.randn(batch, 4))).backward()
            discriminator.requires_grad_(True)
        g_optimizer.step()
    print("distance from the circle, discriminator by {}: {:.2f} -> {:.2f}".format(name, *distances))


if __name__ == "__main__":
    for each in ("SIBP", "AutoSIBP"):
        play(each)
