"""A training loop in plain PyTorch: AutoSIBP, which needs no tuning, and SIBP with settings of your own.

Two things differ from a loop with `torch.optim.Adam`: the optimizer gets the model itself, and AutoSIBP's `step` gets a
function that evaluates the loss at trial weights. SIBP's `step()` needs nothing.

Expected output:

    AutoSIBP loss: 2.314 -> 0.000
    AutoSIBP right on held-out digits: 93 %
    SIBP loss: 2.314 -> 0.016
    SIBP right on held-out digits: 93 %
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sibp import SIBP, AutoSIBP


def digits() -> tuple[Tensor, Tensor]:
    """1797 images of 8 x 8 as rows of 64 numbers in [0, 1], and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)


def train(name: str, model: nn.Module, optimizer: torch.optim.Optimizer, epochs: int = 5) -> None:
    images, labels = digits()
    train_rows, held_out = torch.arange(1500), torch.arange(1500, len(images))
    first = F.cross_entropy(model(images), labels).item()
    for _ in range(epochs):
        for rows in train_rows[torch.randperm(1500)].split(100):
            x, y = images[rows], labels[rows]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            if isinstance(optimizer, AutoSIBP):
                optimizer.step(evaluate=lambda x=x, y=y: F.cross_entropy(model(x), y), loss=loss)
            else:
                optimizer.step()
    with torch.no_grad():
        last = F.cross_entropy(model(images[train_rows]), labels[train_rows]).item()
        right = (model(images[held_out]).argmax(1) == labels[held_out]).float().mean().item()
    print(f"{name} loss: {first:.3f} -> {last:.3f}")
    print(f"{name} right on held-out digits: {100 * right:.0f} %")


def main() -> None:
    for name in ("AutoSIBP", "SIBP"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        if name == "AutoSIBP":
            train(name, model, AutoSIBP(model))
        else:
            train(name, model, SIBP(model, lr=1.0, prox_weight=3.0, solver="cg:3"))


if __name__ == "__main__":
    main()
