"""Lightning: SIBP with automatic optimization, AutoSIBP with manual optimization, so that `step` gets `evaluate`.

With automatic optimization, Lightning divides each loss by `accumulate_grad_batches`. SIBP needs the undivided mean of
each batch, so `loss_average` is that number times the rows. With manual optimization, nothing is divided.

Expected output:

    SIBP loss: 2.314 -> 0.137
    SIBP loss, resumed: 0.137 -> 0.045
    AutoSIBP loss: 2.314 -> 0.016
    AutoSIBP loss, resumed: 0.016 -> 0.004
"""

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader

from sibp import SIBP, AutoSIBP

BATCH, ACCUMULATE = 60, 2
X, Y = (torch.tensor(part) for part in load_digits(return_X_y=True))
X = X.float() / 16
BATCHES = DataLoader(list(zip(X, Y, strict=True)), BATCH, shuffle=True, drop_last=True)


class Automatic(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return SIBP(self.net, lr=0.3, prox_weight=3.0, solver="cg:3", loss_average=BATCH * ACCUMULATE)


class Manual(Automatic):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization, self.parts = False, []

    def training_step(self, batch: list[Tensor], index: int) -> None:
        optimizer, loss = self.optimizers(), super().training_step
        self.parts.append(batch)
        self.manual_backward(loss(batch, index))
        if len(self.parts) == ACCUMULATE:
            self.clip_gradients(optimizer, gradient_clip_val=50.0)
            optimizer.step(evaluate=lambda: sum(loss(part, index) for part in self.parts))
            optimizer.zero_grad()
            self.parts.clear()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return AutoSIBP(self.net)


def fit(model: Automatic, epochs: int, checkpoint: str | None = None) -> float:
    settings = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    if model.automatic_optimization:
        settings |= {"gradient_clip_val": 5.0, "accumulate_grad_batches": ACCUMULATE}
    trainer = lightning.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, precision="bf16-mixed", **settings)
    trainer.fit(model, BATCHES, ckpt_path=checkpoint)
    trainer.save_checkpoint("last.ckpt")
    return F.cross_entropy(model.net(X), Y).item()


def main() -> None:
    for name, kind in (("SIBP", Automatic), ("AutoSIBP", Manual)):
        lightning.seed_everything(0, verbose=False)
        model = kind()
        first, half = F.cross_entropy(model.net(X), Y).item(), fit(model, 2)
        print(f"{name} loss: {first:.3f} -> {half:.3f}")
        print(f"{name} loss, resumed: {half:.3f} -> {fit(kind(), 6, 'last.ckpt'):.3f}")


if __name__ == "__main__":
    main()
