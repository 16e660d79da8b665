"""Two processes train on halves of each batch, and take the step that one process takes with the whole batch.

`data_parallel=True` is all that is needed. DistributedDataParallel alone is refused, because an average of
displacements solves none of the subproblems. AutoSIBP averages the losses of its trials over the ranks, so that all
take the same step.

    torchrun --nproc-per-node 2 examples/torchrun_two_ranks.py

Without torchrun, as `python examples/torchrun_two_ranks.py`, it starts torchrun itself.

Expected output:

    loss: 2.325 -> 0.081
    rank 0 and rank 1 have the same weights: True
    and those of one process, to rounding: True
"""

import os
import subprocess
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import AutoSIBP


def train(rank: int, ranks: int, steps: int = 20) -> tuple[float, float, Tensor]:
    """Losses of the first batch before and after, and all weights in one row; float64, so that rounding is small."""
    torch.manual_seed(0)
    x = torch.randn(1280, 64).double()
    y = (x @ torch.randn(64, 10).double()).argmax(1)
    model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)).double()
    optimizer = AutoSIBP(model, data_parallel=ranks > 1)
    first = F.cross_entropy(model(x), y).item()
    for step in range(steps):
        rows = (torch.arange(256) + 256 * (step % 5)).chunk(ranks)[rank]
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        optimizer.step(evaluate=lambda rows=rows: F.cross_entropy(model(x[rows]), y[rows]), loss=loss)
    return first, F.cross_entropy(model(x), y).item(), nn.utils.parameters_to_vector(model.parameters()).detach()


def main() -> None:
    dist.init_process_group("gloo")  # "nccl" on GPUs
    rank = dist.get_rank()
    first, last, weights = train(rank, dist.get_world_size())
    every = [torch.empty_like(weights) for _ in range(dist.get_world_size())]
    dist.all_gather(every, weights)
    dist.destroy_process_group()
    if rank == 0:
        print(f"loss: {first:.3f} -> {last:.3f}")
        print(f"rank 0 and rank 1 have the same weights: {torch.equal(*every)}")
        alone = train(0, 1)[2]
        print(f"and those of one process, to rounding: {torch.allclose(weights, alone, rtol=1e-6, atol=1e-9)}")


if __name__ == "__main__":
    if "RANK" in os.environ:
        main()
    else:
        words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
        done = subprocess.run([sys.executable, *words], check=True, stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="")
