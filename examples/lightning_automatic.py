"""Lightning with automatic optimization: SIBP in `configure_optimizers`, and nothing else is new.

Clipping, accumulation, bfloat16 and resuming are the Trainer's:

- `gradient_clip_val` clips the displacements in `.grad`: no step is longer than that.
- `accumulate_grad_batches=2` divides each loss by 2, since it wants the gradient of the mean over both batches. SIBP
  wants the mean loss of each batch as it is, so `loss_average` says that a batch's loss is over twice its rows.
- `precision="bf16-mixed"` is autocast without a scaler. "16-mixed" brings a GradScaler, and is refused.
- A checkpoint holds the optimizer as it holds any other.

For AutoSIBP, see lightning_manual.py.

Expected output:

    loss: 2.314 -> 0.144
    epochs after resuming: 6
    loss at the resumed epochs: 0.144 -> 0.058
"""

import logging
import warnings

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from sibp import SIBP

BATCH, ACCUMULATE = 60, 2


class Classifier(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def training_step(self, batch: list[Tensor], index: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y)

    def configure_optimizers(self) -> dict[str, object]:
        optimizer = SIBP(self.net, lr=0.3, prox_weight=3.0, solver="cg:3", loss_average=BATCH * ACCUMULATE)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)}


def trainer(epochs: int) -> lightning.Trainer:
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    settings = {"precision": "bf16-mixed", "gradient_clip_val": 5.0, "accumulate_grad_batches": ACCUMULATE}
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, **settings, **quiet)


def main() -> None:
    warnings.filterwarnings("ignore", module="lightning")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    lightning.seed_everything(0, verbose=False)
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
    loader = DataLoader(TensorDataset(x, y), batch_size=BATCH, shuffle=True, drop_last=True)

    model = Classifier()
    first = F.cross_entropy(model.net(x), y).item()
    run = trainer(epochs=2)
    run.fit(model, loader)
    halfway = F.cross_entropy(model.net(x), y).item()
    print(f"loss: {first:.3f} -> {halfway:.3f}")
    run.save_checkpoint("half.ckpt")

    again, run = Classifier(), trainer(epochs=6)
    run.fit(again, loader, ckpt_path="half.ckpt")
    print(f"epochs after resuming: {run.current_epoch}")
    print(f"loss at the resumed epochs: {halfway:.3f} -> {F.cross_entropy(again.net(x), y).item():.3f}")


if __name__ == "__main__":
    main()
