"""Data parallel training: bytes moved, and a check that all ranks take the steps of a single process.

On this machine, compared with one process that holds the whole batch::

    torchrun --nproc-per-node 2 scripts/data_parallel.py --net 784-500-10 --batch 100 --solver cg:5

An estimate for any number of ranks::

    python scripts/data_parallel.py --estimate 64
"""

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from sibp import SIBP
from sibp.bench.nets import Case, choose_cases
from sibp.capture.problem import LayerProblem
from sibp.optim.parallel import Plan, plan
from sibp.optim.solvers import Solver, parse_solver

LINK, PEAK = 40e9, 40e12  # assumed for the estimate: a GPU's network, bytes/s, and its arithmetic, FLOP/s in float32


class Shapes(SIBP):
    """SIBP that keeps each layer's subproblem."""

    def update(self, problem: LayerProblem, solver: Solver, eta: float, prox_weight: float) -> Any:
        """One layer's update; see `SIBP`."""
        vars(self).setdefault("seen", []).append(problem)
        return super().update(problem, solver, eta, prox_weight)


def main() -> None:
    """Trains or estimates, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", action="append", help="widths such as 784-500-10, or proxprop_convnet (default: all)")
    parser.add_argument("--batch", action="append", type=int, help="of each rank")
    parser.add_argument("--solver", default="cg:5")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument(
        "--estimate", type=int, metavar="RANKS", help="estimate for this number of ranks, without running"
    )
    args = parser.parse_args()
    cases = choose_cases(args.net or [], args.batch or [])
    if args.estimate:
        for case in cases:
            estimate(case, args.solver, args.estimate)
        return
    device = f"cuda:{torch.cuda.current_device()}" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    for case in cases:
        train(case, args.solver, args.steps, torch.device(device))
    dist.destroy_process_group()


def train(case: Case, solver: str, steps: int, device: torch.device) -> None:
    """A few steps on random data, `case.batch` rows per rank, in float64; then the same steps in one process."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    generator = torch.Generator().manual_seed(0)
    data = [
        (
            torch.randn(ranks * case.batch, *case.shape, generator=generator, dtype=torch.float64).to(device),
            torch.randint(case.classes, (ranks * case.batch,), generator=generator).to(device),
        )
        for _ in range(steps)
    ]
    mine = slice(rank * case.batch, (rank + 1) * case.batch)
    together, alone = (case.model().double().to(device) for _ in range(2))
    optimizer = SIBP(together, lr=0.3, solver=solver, data_parallel=True)
    dist.barrier()
    before = loopback()
    for x, y in data:
        step(together, optimizer, x[mine], y[mine])
    dist.barrier()
    moved = loopback() - before
    for x, y in data if rank == 0 else []:
        step(alone, SIBP(alone, lr=0.3, solver=solver), x, y)
    assert optimizer.parallel is not None, "start this script with torchrun and two processes or more"
    counted = optimizer.parallel.exchange.received / steps
    weights = optimizer.parallel.exchange.all_gather(torch.cat([p.detach().flatten() for p in together.parameters()]))
    if rank == 0:
        pairs = zip(together.parameters(), alone.parameters(), strict=True)
        difference = max(((p - q).abs().max() / q.abs().max()).item() for p, q in pairs)
        print(f"\n{case.title} a rank, {ranks} ranks, {solver}, float64, {device.type}")
        for name, one in optimizer.parallel.plans.items():
            print(f"  layer {name:3} {one.mode:7} {one.received / 1e6:9.3f} MB a step received by each rank")
        print(f"  counted {counted / 1e6:.3f} MB a step, on the loopback device {moved / steps / ranks / 1e6:.3f} MB")
        print(f"  DistributedDataParallel would move {gradients(together, ranks) / 1e6:.3f} MB")
        print(f"  after {steps} steps, all ranks hold the same bits: {bool((weights == weights[0]).all())};")
        print(f"  largest difference from one process's weights: {difference:.1e} of the largest weight")


def step(model: nn.Module, optimizer: SIBP, x: Tensor, y: Tensor) -> None:
    """One training step."""
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def loopback() -> int:
    """Bytes carried by this machine's loopback device, for all processes; 0 if unknown."""
    devices = Path("/proc/net/dev")
    lines = devices.read_text().splitlines() if devices.exists() else []
    return next((int(line.split()[1]) for line in lines if line.lstrip().startswith("lo:")), 0)


def gradients(model: nn.Module, ranks: int) -> float:
    """Bytes that a rank receives when gradients are averaged."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) * 2 * (ranks - 1) / ranks


def estimate(case: Case, solver: str, ranks: int) -> None:
    """Bytes and arithmetic of a step by `plan`, in float32, next to those of averaged gradients."""
    model = case.model()
    optimizer = Shapes(model, solver=solver)
    step(model, optimizer, torch.randn(case.batch, *case.shape), torch.zeros(case.batch, dtype=torch.long))
    moved, work, sgd = 0.0, 0.0, 0.0
    print(f"\n{case.title} a rank, {ranks} ranks, {solver}, float32")
    for problem in reversed(vars(optimizer)["seen"]):
        known = problem.activation is not None
        kind = parse_solver(solver if known else "exact", SIBP.solvers)
        features, m = problem.features, problem.D_z.shape[-1]
        N, size, groups = features.rows, features.size, features.groups
        one = plan([N] * ranks, features.inputs, size, m, groups=groups, activation=known, solver=kind, itemsize=4)
        flops = arithmetic(one, N, ranks, size, m, kind.iterations) * groups
        gradient = 2 * N * size * m * groups
        moved, work, sgd = moved + one.received, work + flops, sgd + gradient
        print(f"  layer {problem.name:3} {one.mode:7} {one.received / 1e6:9.2f} MB {flops / 1e9:9.2f} GFLOP")
    usual = gradients(model, ranks)
    print(f"  total           {moved / 1e6:9.2f} MB {work / 1e9:9.2f} GFLOP for updates: {cost(moved, work)}")
    print(f"  averaged gradients {usual / 1e6:6.2f} MB {sgd / 1e9:9.2f} GFLOP for gradients: {cost(usual, sgd)}")


def arithmetic(one: Plan, N: int, ranks: int, size: int, m: int, K: int) -> float:
    """FLOP of a rank for a layer's update (the Gram matrix, its factorisation or K iterations, the displacement)."""
    if one.mode == "sum":
        return 4 * K * N * size * m if K else 2 * N * size * (size + m) + size**3 / 3 + 2 * size * size * m
    N, share = N * ranks, -(-m // ranks)
    if size < N:
        return 4 * K * N * size * share if K else 2 * N * size * (size + share) + size**3 / 3
    return 2 * N * N * size + (2 * K * N * N * share if K else N**3 / 3) + 2 * N * size * m


def cost(received: float, flops: float) -> str:
    """Milliseconds of communication and of arithmetic."""
    return f"{received / LINK * 1e3:.2f} ms of network, {flops / PEAK * 1e3:.2f} ms of arithmetic"


if __name__ == "__main__":
    main()
