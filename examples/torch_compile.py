"""torch.compile: what works with SIBP, and what is refused.

The optimizer is made for the plain model. `torch.compile(model)` afterwards works: layers that SIBP solves for run as
they are, everything between them is compiled, and the steps are the same. What is refused, in one sentence each: an
optimizer made for a compiled model, whose layers it could not see. To have a fast forward pass where nothing is solved
for (evaluation, a teacher), compile a copy.

Expected output:

    loss, compiled after the optimizer was made: 2.36 -> 0.06
    the same weights as without: True
    SIBP(torch.compile(model)): refused
"""

import copy

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sibp import SIBP


def train(model: nn.Module, wrap: bool, x: Tensor, y: Tensor) -> float:
    """The loss of all data after two epochs."""
    optimizer = SIBP(model, lr=1.0, prox_weight=3.0, solver="cg:3")
    # backend="eager" traces as the default does, and generates no code, which would take a minute.
    network = torch.compile(model, backend="eager") if wrap else model
    torch.manual_seed(1)
    for _ in range(2):
        for rows in torch.randperm(len(x)).split(100)[:-1]:  # batches of one size: nothing is compiled twice
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return F.cross_entropy(model(x), y).item()


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.GELU(), nn.Linear(64, 10))
    plain = copy.deepcopy(model)
    first = F.cross_entropy(model(x), y).item()
    last = train(model, True, x, y)
    train(plain, False, x, y)
    print(f"loss, compiled after the optimizer was made: {first:.2f} -> {last:.2f}")
    pairs = zip(model.parameters(), plain.parameters(), strict=True)
    print(f"the same weights as without: {all(torch.allclose(p, q, atol=1e-4) for p, q in pairs)}")
    try:
        SIBP(torch.compile(plain))
    except TypeError:
        print("SIBP(torch.compile(model)): refused")


if __name__ == "__main__":
    main()
