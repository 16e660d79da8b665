"""A variational autoencoder on the digits, trained by SIBP and by AutoSIBP.

The loss, minus the evidence lower bound, is a sum over pixels and latent variables and a mean over images, so
`loss_average` stays True. (With torch's `reduction="mean"` over all pixels, it would be the number of pixels of a
batch.) The model draws random numbers. AutoSIBP's trials draw the same ones as the forward pass before, so that only
losses with the same noise are compared.

Expected output:

    SIBP loss above the pixels' entropy: 31.6 -> 13.4
    AutoSIBP loss above the pixels' entropy: 31.6 -> 10.8
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sibp import SIBP, AutoSIBP


class VAE(nn.Module):
    def __init__(self, latent: int = 4) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2 * latent))
        self.decoder = nn.Sequential(nn.Linear(latent, 64), nn.ReLU(), nn.Linear(64, 64))

    def forward(self, x: Tensor) -> Tensor:
        """Minus the evidence lower bound: summed over pixels, mean over images."""
        mean, log_variance = self.encoder(x).chunk(2, dim=1)
        z = mean + (0.5 * log_variance).exp() * torch.randn_like(mean)
        pixels = F.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum")
        divergence = 0.5 * (mean.square() + log_variance.exp() - log_variance - 1).sum()
        return (pixels + divergence) / len(x)


def main() -> None:
    images = torch.tensor(load_digits().images / 16, dtype=torch.float32).flatten(1)
    # The least possible loss: above 0, since pixels are gray.
    entropy = F.binary_cross_entropy(images, images, reduction="sum").item() / len(images)
    for name in ("SIBP", "AutoSIBP"):
        torch.manual_seed(0)
        model = VAE()
        auto = name == "AutoSIBP"
        optimizer = AutoSIBP(model) if auto else SIBP(model, lr=0.1, prox_weight=3.0, solver="cg:3")
        first = model(images).item() - entropy
        for _ in range(5):
            for rows in torch.randperm(len(images)).split(100):
                x = images[rows]
                optimizer.zero_grad()
                loss = model(x)
                loss.backward()
                if auto:
                    optimizer.step(evaluate=lambda x=x, model=model: model(x), loss=loss)
                else:
                    optimizer.step()
        with torch.no_grad():
            print(f"{name} loss above the pixels' entropy: {first:.1f} -> {model(images).item() - entropy:.1f}")


if __name__ == "__main__":
    main()
