"""What `test_lightning_ranks.py` runs: Lightning trains by AutoSIBP in two processes, each with half of every batch.

It is a program of its own, as Lightning forks it: the processes share one import of Lightning, the slowest part.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from sibp import AutoSIBP

BATCH, STEPS = 16, 6


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Linear(8, 3)).double()


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(BATCH * STEPS, 6, generator=torch.Generator().manual_seed(1)).double()
    return x, (x[:, 0] > 0).long() + (x[:, 1] > 0).long()


def main(folder: Path) -> None:
    """Trains, and leaves each rank's weights in the folder."""
    import lightning  # takes seconds, and the test itself needs none of it

    class Module(lightning.LightningModule):
        """The module of the page "in your stack", with `data_parallel=True`."""

        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.net = network()

        def training_step(self, batch: list[Tensor], index: int) -> None:
            x, y = batch
            optimizer = self.optimizers()
            optimizer.zero_grad()
            loss = F.cross_entropy(self.net(x), y)
            self.manual_backward(loss)
            optimizer.step(evaluate=lambda: F.cross_entropy(self.net(x), y), loss=loss)

        def train_dataloader(self) -> DataLoader:
            """Every second row of a batch: Lightning's own sampler shuffles."""
            rows, ranks = TensorDataset(*data()), self.trainer.world_size
            return DataLoader(rows, BATCH // ranks, sampler=DistributedSampler(rows, shuffle=False))

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return AutoSIBP(self.net, data_parallel=True)

        def on_train_end(self) -> None:
            torch.save(self.net.state_dict(), folder / f"{self.global_rank}.pt")

    torch.set_num_threads(1)
    silent = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp_fork", use_distributed_sampler=False, **silent
    )
    trainer.fit(Module())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
