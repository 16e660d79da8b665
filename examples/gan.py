"""A GAN on two-dimensional points: each network has its own optimizer, and `paused()` keeps them apart.

The generator's loss passes through the discriminator. With an SIBP optimizer, that backward pass would solve the
discriminator's subproblems for the generator's loss, and leave displacements in its `.grad`. Inside
`d_optimizer.paused()` the discriminator is an ordinary network, and the generator gets the ordinary error signal. The
discriminator's `.grad` then holds ordinary gradients, which `step()` refuses; `requires_grad_(False)` saves computing
them.

AutoSIBP is for the discriminator alone: it searches along the discriminator's own loss, but the generator's loss
changes whenever the discriminator does.

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
    """The generator's loss, which is low if the discriminator takes its points for real ones."""
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
