"""Mixed precision: autocast with bfloat16, and no GradScaler.

Under `torch.autocast(dtype=torch.bfloat16)` products are computed in bfloat16, and every subproblem is solved in
float32 or higher. A GradScaler is refused: it multiplies the loss, and displacements are not linear in the loss, so
dividing them does not undo the scaling. bfloat16 needs no scaler, since it has the range of float32.

Expected output:

    loss in bfloat16: 2.311 -> 0.016
    GradScaler: refused
"""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sibp import SIBP, AutoSIBP


def main() -> None:
    torch.manual_seed(0)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    model = nn.Sequential(nn.Linear(64, 64), nn.GELU(), nn.Linear(64, 10))
    optimizer = AutoSIBP(model)

    def loss_of(rows: torch.Tensor) -> torch.Tensor:
        """Trials run in the same precision as the forward pass, since autocast is entered here."""
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.cross_entropy(model(x[rows]), y[rows])

    everything = torch.arange(len(x))
    first = loss_of(everything).item()
    for _ in range(3):
        for rows in torch.randperm(len(x)).split(100):
            optimizer.zero_grad()
            loss = loss_of(rows)
            loss.backward()
            optimizer.step(evaluate=lambda rows=rows: loss_of(rows), loss=loss)
    print(f"loss in bfloat16: {first:.3f} -> {loss_of(everything).item():.3f}")

    optimizer = SIBP(model, lr=0.1, prox_weight=1.0)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(loss_of(everything)).backward()
    try:
        scaler.step(optimizer)
    except RuntimeError as error:
        print("GradScaler: refused" if "GradScaler" in str(error) else error)


if __name__ == "__main__":
    main()
