"""torch.compile: what works with SIBP, and what is refused.

Make the optimizer for the plain model, then call `torch.compile(model)`. Layers that SIBP solves for run uncompiled,
everything between them is compiled, and the steps are the same, AutoSIBP's trials included. An optimizer for a compiled
model is refused, since it cannot find the layers. For a fast forward pass in evaluation, compile a copy.

Expected output:

    SIBP loss, compiled after the optimizer was made: 2.36 -> 0.06
    SIBP, the same weights as without: True
    AutoSIBP loss, compiled after the optimizer was made: 2.36 -> 0.02
    AutoSIBP, the same weights as without: True
    SIBP(torch.compile(model)): refused
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sibp import SIBP, AutoSIBP

X, Y = (torch.tensor(part) for part in load_digits(return_X_y=True))
X = X.float() / 16


def train(name: str, model: nn.Module, wrap: bool) -> float:
    """The loss of all data after two epochs."""
    auto = name == "AutoSIBP"
    optimizer = AutoSIBP(model) if auto else SIBP(model, lr=1.0, prox_weight=3.0, solver="cg:3")
    # backend="eager" traces as the default does, and generates no code, which would take a minute.
    network = torch.compile(model, backend="eager") if wrap else model
    torch.manual_seed(1)
    for _ in range(2):
        for rows in torch.randperm(len(X)).split(100)[:-1]:  # batches of one size: nothing is compiled twice
            x, y = X[rows], Y[rows]
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step(**({"evaluate": lambda x=x, y=y: F.cross_entropy(network(x), y)} if auto else {}))
    return F.cross_entropy(model(X), Y).item()


def main() -> None:
    for name in ("SIBP", "AutoSIBP"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10))
        plain = copy.deepcopy(model)
        first, last = F.cross_entropy(model(X), Y).item(), train(name, model, wrap=True)
        train(name, plain, wrap=False)
        print(f"{name} loss, compiled after the optimizer was made: {first:.2f} -> {last:.2f}")
        pairs = zip(model.parameters(), plain.parameters(), strict=True)
        print(f"{name}, the same weights as without: {all(torch.allclose(p, q, atol=1e-4) for p, q in pairs)}")
    try:
        SIBP(torch.compile(plain))
    except TypeError:
        print("SIBP(torch.compile(model)): refused")


if __name__ == "__main__":
    main()
