"""Lightning with AutoSIBP: manual optimization, since `step` evaluates the loss again.

`self.automatic_optimization = False`, and five lines that every training step has. `self.optimizers()` is Lightning's
wrapper, whose `step` hands `evaluate` and `loss` on, and counts the training step. Inside the Trainer's precision
everything is autocast, the trials as well. Clipping is `self.clip_gradients(...)` before `step`. To accumulate, call
`manual_backward` for each part of a batch, and let `evaluate` return the mean loss of all parts.

(With automatic optimization AutoSIBP works too: the Trainer hands over a closure, which is called for every trial, at
the price of a backward pass each, and of a `training_step` that logs each trial. Not with accumulation, where that
closure sees the last part only.)

Expected output:

    loss: 2.314 -> 0.024
    steps that Lightning counted: 54
    searches that found no step: 0
"""

import logging
import warnings

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sibp import AutoSIBP


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
        self.refused = 0

    def training_step(self, batch: list[Tensor], index: int) -> None:
        x, y = batch
        optimizer = self.optimizers()
        optimizer.zero_grad()
        loss = F.cross_entropy(self.net(x), y)
        self.manual_backward(loss)
        optimizer.step(evaluate=lambda: F.cross_entropy(self.net(x), y), loss=loss)
        self.refused += optimizer.search_stats()["status"] == 2

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return AutoSIBP(self.net)


def main() -> None:
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    loader = DataLoader(TensorDataset(x, y), batch_size=100, shuffle=True)
    model = Classifier()
    first = F.cross_entropy(model.net(x), y).item()
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    trainer = lightning.Trainer(max_epochs=3, accelerator="cpu", devices=1, precision="bf16-mixed", **quiet)
    trainer.fit(model, loader)
    print(f"loss: {first:.3f} -> {F.cross_entropy(model.net(x), y).item():.3f}")
    print(f"steps that Lightning counted: {trainer.global_step}")
    print(f"searches that found no step: {model.refused}")


if __name__ == "__main__":
    main()
