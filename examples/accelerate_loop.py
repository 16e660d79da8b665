"""accelerate: SIBP and AutoSIBP in a loop with `Accelerator`, with accumulation and clipping.

Make the optimizer before `prepare`, for the plain model. `accelerator.backward` divides the loss by the number of
accumulated batches. SIBP needs each batch's undivided mean, so `loss_average` is that number times the batch's rows.
For several processes, make the optimizer with `data_parallel=True`. `mixed_precision="bf16"` works; "fp16" uses a
GradScaler and is refused.

`step` of accelerate's wrapper accepts only a closure. For AutoSIBP, call `optimizer.optimizer.step`, which accepts
`evaluate`.

Expected output:

    SIBP loss: 2.31 -> 0.09
    AutoSIBP loss: 2.31 -> 0.01
"""

from itertools import chain

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sibp import SIBP, AutoSIBP

BATCH, ACCUMULATE = 50, 2


def train(name: str, x: Tensor, y: Tensor) -> None:
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=ACCUMULATE)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    terms, auto = BATCH * ACCUMULATE, name == "AutoSIBP"
    if auto:
        optimizer = AutoSIBP(model, loss_average=terms)
    else:
        optimizer = SIBP(model, lr=0.3, prox_weight=3.0, solver="cg:3", loss_average=terms)
    first = F.cross_entropy(model(x), y).item()
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, drop_last=True)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    parts = []
    for part in chain.from_iterable(loader for _ in range(3)):
        with accelerator.accumulate(model):
            parts.append(part)
            accelerator.backward(F.cross_entropy(model(part[0]), part[1]))
            if not accelerator.sync_gradients:  # not yet the last part of a batch
                continue
            accelerator.clip_grad_norm_(model.parameters(), 5.0)
            if auto:
                whole, targets = (torch.cat(column) for column in zip(*parts, strict=True))
                optimizer.optimizer.step(evaluate=lambda x=whole, y=targets: F.cross_entropy(model(x), y))
            else:
                optimizer.step()
            optimizer.zero_grad()
            parts = []
    print(f"{name} loss: {first:.2f} -> {F.cross_entropy(model(x), y).item():.2f}")


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    for name in ("SIBP", "AutoSIBP"):
        train(name, x, y)


if __name__ == "__main__":
    main()
