"""Averages of the weights: an exponential moving average (EMA) and stochastic weight averaging (SWA).

Both use `torch.optim.swa_utils`, which copies the model. The copies belong to no optimizer: their layers are ordinary,
and running them solves nothing. So update averages after `step()`, and evaluate them at any time.
`SWALR` writes learning rates into all groups, and the fallback's follow in proportion. SIBP uses the rate as it is;
for AutoSIBP only its ratio to the initial `lr`, 10, matters.

Expected output:

    SIBP, loss of the model: 2.314 -> 0.016
    SIBP, loss of the EMA: 2.314 -> 0.019
    SIBP, loss of the SWA: 2.314 -> 0.018
    AutoSIBP, loss of the model: 2.314 -> 0.000
    AutoSIBP, loss of the EMA: 2.314 -> 0.000
    AutoSIBP, loss of the SWA: 2.314 -> 0.000
    averages are solved for: False
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from sibp import SIBP, AutoSIBP

images, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
images = images.float() / 16


def loss_of(network: nn.Module, rows: slice | torch.Tensor = slice(None)) -> torch.Tensor:
    return F.cross_entropy(network(images[rows]), labels[rows])


def train(name: str, epochs: int = 6) -> AveragedModel:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    auto = name == "AutoSIBP"
    optimizer = AutoSIBP(model) if auto else SIBP(model, lr=1.0, prox_weight=3.0, solver="cg:3")
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
    swa = AveragedModel(model)
    quiet = SWALR(optimizer, swa_lr=2.0 if auto else 0.2, anneal_epochs=2)
    first = loss_of(model).item()
    for epoch in range(epochs):
        for rows in torch.randperm(len(images)).split(100):
            optimizer.zero_grad()
            loss = loss_of(model, rows)
            loss.backward()
            optimizer.step(**({"evaluate": lambda rows=rows: loss_of(model, rows), "loss": loss} if auto else {}))
            ema.update_parameters(model)
        if epoch >= epochs // 2:
            swa.update_parameters(model)
            quiet.step()
    for kind, network in {"model": model, "EMA": ema, "SWA": swa}.items():
        print(f"{name}, loss of the {kind}: {first:.3f} -> {loss_of(network).item():.3f}")
    return ema


def main() -> None:
    train("SIBP")
    ema = train("AutoSIBP")
    before = [p.clone() for p in ema.parameters()]
    loss_of(ema).backward()  # ordinary gradients of the copy
    moved = any(not torch.equal(p, old) for p, old in zip(ema.parameters(), before, strict=True))
    weight = ema.module[0].weight
    (gradient,) = torch.autograd.grad(loss_of(ema), weight)
    print(f"averages are solved for: {moved or not torch.allclose(gradient, weight.grad)}")


if __name__ == "__main__":
    main()
