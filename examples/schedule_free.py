"""Schedule-free Adam on a proximal direction: ProxBP fills `.grad`, `schedulefree.AdamWScheduleFree` takes the steps.

schedulefree averages weights instead of following a schedule, so call `optimizer.train()` before training, and
`optimizer.eval()` before you evaluate or save the model. `Preconditioned` has neither method. With
`direction_only=True`, ProxBP only fills `.grad`, and you call the outer optimizer yourself. AutoSIBP needs no schedule
either, but searches along its own step.

Expected output:

    loss of schedule-free Adam on ProxBP: 2.31 -> 0.02
    the same weights while it trains: 0.02
    AutoSIBP loss: 2.31 -> 0.00
"""

import schedulefree
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sibp import AutoSIBP, ProxBP

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def loss_of(model: nn.Module) -> torch.Tensor:
    return F.cross_entropy(model(images), labels)


def main(epochs: int = 8) -> None:
    model = net()
    first = loss_of(model).item()
    ProxBP(model, lr=1.0, prox_weight=10.0, direction_only=True)
    optimizer = schedulefree.AdamWScheduleFree(model.parameters(), lr=0.02, warmup_steps=10)
    optimizer.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(images[rows]), labels[rows]).backward()
            optimizer.step()
    between = loss_of(model).item()
    optimizer.eval()
    print(f"loss of schedule-free Adam on ProxBP: {first:.2f} -> {loss_of(model).item():.2f}")
    print(f"the same weights while it trains: {between:.2f}")

    model = net()
    auto = AutoSIBP(model)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(100):
            auto.zero_grad()
            loss = F.cross_entropy(model(images[rows]), labels[rows])
            loss.backward()
            auto.step(evaluate=lambda rows=rows: F.cross_entropy(model(images[rows]), labels[rows]), loss=loss)
    print(f"AutoSIBP loss: {first:.2f} -> {loss_of(model).item():.2f}")


if __name__ == "__main__":
    main()
