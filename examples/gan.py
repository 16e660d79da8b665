"""A GAN on two-dimensional points: each player has an optimizer of its own, and `paused()` keeps them apart.

The generator's loss travels through the discriminator. If that has an SIBP, its backward pass would solve the
discriminator's subproblems for the generator's loss too, and leave displacements in `.grad` that belong to no step of
its own. Inside `d_optimizer.paused()` the discriminator is an ordinary network: the generator gets the ordinary error
signal, and nothing of the discriminator's is touched but its `.grad`, which holds ordinary gradients then. Freezing
its parameters meanwhile (`requires_grad_(False)`) saves these as well, so that none can be applied by mistake.

What happens without: `step()` refuses what lies in `.grad` and is no displacement of its own, and names the layer.

Expected output:

    distance of generated points from the circle: 0.80 -> 0.12
    discriminator applied by mistake: refused, layer '0'
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP


def mlp(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(
        nn.Linear(inputs, 64), nn.LeakyReLU(0.2), nn.Linear(64, 64), nn.LeakyReLU(0.2), nn.Linear(64, outputs)
    )


def circle(n: int) -> Tensor:
    angle = 2 * torch.pi * torch.rand(n)
    return torch.stack([angle.cos(), angle.sin()], 1)


def fooled(discriminator: nn.Module, points: Tensor, real: bool) -> Tensor:
    logits = discriminator(points).squeeze(1)
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, float(real)))


def main(steps: int = 300, batch: int = 128) -> None:
    torch.manual_seed(0)
    generator, discriminator = mlp(4, 2), mlp(2, 1)
    g_optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.9))
    d_optimizer = SIBP(discriminator, lr=0.3, prox_weight=10.0, solver="cg:2")

    def distance() -> float:
        with torch.no_grad():
            return (generator(torch.randn(1000, 4)).norm(dim=1) - 1).abs().mean().item()

    first = distance()
    for _ in range(steps):
        d_optimizer.zero_grad()
        fake = generator(torch.randn(batch, 4)).detach()
        labels = torch.cat([torch.ones(batch), torch.zeros(batch)])
        logits = discriminator(torch.cat([circle(batch), fake])).squeeze(1)  # one pass: one subproblem a layer
        F.binary_cross_entropy_with_logits(logits, labels).backward()
        d_optimizer.step()

        g_optimizer.zero_grad()
        with d_optimizer.paused():
            discriminator.requires_grad_(False)
            fooled(discriminator, generator(torch.randn(batch, 4)), real=True).backward()
            discriminator.requires_grad_(True)
        g_optimizer.step()
    print(f"distance of generated points from the circle: {first:.2f} -> {distance():.2f}")

    d_optimizer.zero_grad()
    with d_optimizer.paused():
        fooled(discriminator, generator(torch.randn(batch, 4)), real=True).backward()
    try:
        d_optimizer.step()
    except RuntimeError as error:
        print(f"discriminator applied by mistake: refused, {str(error).partition(':')[0]}")


if __name__ == "__main__":
    main()
