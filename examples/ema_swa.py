"""Averages of the weights: an exponential moving average (EMA) and stochastic weight averaging (SWA).

Both of `torch.optim.swa_utils` copy the model. The copies belong to no optimizer: their layers are ordinary ones, and
running them solves nothing. So averages are updated after `step()`, and evaluated whenever it suits.
`SWALR` writes learning rates into all groups; those of the fallback follow in proportion.

Expected output:

    loss of the model: 2.314 -> 0.016
    loss of the EMA: 2.314 -> 0.019
    loss of the SWA: 2.314 -> 0.018
    averages are solved for: False
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn

from sibp import SIBP


def main(epochs: int = 6) -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = SIBP(model, lr=1.0, prox_weight=3.0, solver="cg:3")
    ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.95))
    swa = AveragedModel(model)
    quiet = SWALR(optimizer, swa_lr=0.2, anneal_epochs=2)

    def loss_of(network: nn.Module) -> float:
        with torch.no_grad():
            return F.cross_entropy(network(x), y).item()

    first = loss_of(model)
    for epoch in range(epochs):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            F.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
            ema.update_parameters(model)
        if epoch >= epochs // 2:
            swa.update_parameters(model)
            quiet.step()
    for name, network in {"model": model, "EMA": ema, "SWA": swa}.items():
        print(f"loss of the {name}: {first:.3f} -> {loss_of(network):.3f}")

    before = [p.clone() for p in ema.parameters()]
    F.cross_entropy(ema(x), y).backward()  # ordinary gradients of the copy
    moved = any(not torch.equal(p, old) for p, old in zip(ema.parameters(), before, strict=True))
    gradient = torch.autograd.grad(F.cross_entropy(ema(x), y), ema.module[0].weight)[0]
    print(f"averages are solved for: {moved or not torch.allclose(gradient, ema.module[0].weight.grad)}")


if __name__ == "__main__":
    main()
