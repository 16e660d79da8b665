"""Optuna: a sweep over SIBP's settings outside Hydra, with pruning, beside AutoSIBP, which needs none.

`lr` and `prox_weight` are searched together on logarithmic scales, since a larger `lr` needs a larger `prox_weight`.
The number of CG iterations is a hyper-parameter, too. Choose by a held-out loss, as here, and judge the chosen setting
on data that the search has not used.

Expected output:

    trials: 12
    held-out loss, best trial of SIBP: 2.32 -> 0.29
    held-out loss, one run of AutoSIBP: 2.32 -> 0.44
"""

import optuna
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from sibp import SIBP, AutoSIBP

images, labels = load_digits(return_X_y=True)
X, Y = torch.tensor(images / 16, dtype=torch.float32), torch.tensor(labels)
TRAIN, HELD_OUT = slice(0, 1200), slice(1200, None)


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))


def epoch(model: nn.Module, optimizer: SIBP) -> float:
    """Trains for one epoch; the held-out loss."""
    x, y = X[TRAIN], Y[TRAIN]
    for rows in torch.randperm(len(x)).split(100):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[rows]), y[rows])
        loss.backward()
        searching = {"evaluate": lambda rows=rows: F.cross_entropy(model(x[rows]), y[rows]), "loss": loss}
        optimizer.step(**(searching if isinstance(optimizer, AutoSIBP) else {}))
    with torch.no_grad():
        return F.cross_entropy(model(X[HELD_OUT]), Y[HELD_OUT]).item()


def objective(trial: optuna.Trial) -> float:
    model = net()
    optimizer = SIBP(
        model,
        lr=trial.suggest_float("lr", 0.1, 3.0, log=True),
        prox_weight=trial.suggest_float("prox_weight", 1.0, 100.0, log=True),
        solver=f"cg:{trial.suggest_int('iterations', 2, 5)}",
    )
    for number in range(2):
        loss = epoch(model, optimizer)
        trial.report(loss, number)
        if trial.should_prune():
            raise optuna.TrialPruned
    return loss


def main() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0), pruner=optuna.pruners.MedianPruner())
    study.optimize(objective, n_trials=12)
    model = net()
    first = F.cross_entropy(model(X[HELD_OUT]), Y[HELD_OUT]).item()
    optimizer = AutoSIBP(model)
    auto = [epoch(model, optimizer) for _ in range(2)][-1]
    print(f"trials: {len(study.trials)}")
    print(f"held-out loss, best trial of SIBP: {first:.2f} -> {study.best_value:.2f}")
    print(f"held-out loss, one run of AutoSIBP: {first:.2f} -> {auto:.2f}")


if __name__ == "__main__":
    main()
