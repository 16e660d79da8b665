"""skorch: a scikit-learn classifier trained by SIBP, in a grid search, and by AutoSIBP.

skorch passes `named_parameters` to the optimizer, but SIBP needs the module: a four-line override of
`initialize_optimizer` passes it. `optimizer__lr` and the like stay parameters of the estimator, so `set_params`,
`GridSearchCV` and `clone` work. skorch calls `step` with a closure, so AutoSIBP works, too, at the cost of a backward
pass per trial.

Expected output:

    SIBP loss: 2.31 -> 0.04
    best prox_weight: 3.0
    AutoSIBP loss: 2.31 -> 0.01
"""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetClassifier
from torch import nn

from sibp import SIBP, AutoSIBP


class ProximalClassifier(NeuralNetClassifier):
    """A classifier whose optimizer is made from the module."""

    def initialize_optimizer(self, triggered_directly: bool = True) -> "ProximalClassifier":
        settings = self.get_params_for("optimizer")
        self.optimizer_ = self.optimizer(self.module_, **settings)
        return self


class Net(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def classifier(optimizer: type[torch.optim.Optimizer], **settings: object) -> ProximalClassifier:
    """Three epochs with batches of 100; the criterion of logits is cross-entropy."""
    common = {"max_epochs": 3, "batch_size": 100, "train_split": None, "verbose": 0, "iterator_train__shuffle": True}
    return ProximalClassifier(Net, criterion=nn.CrossEntropyLoss, optimizer=optimizer, **common, **settings)


def main() -> None:
    images, labels = load_digits(return_X_y=True)
    x, y = (images / 16).astype(np.float32), labels.astype(np.int64)

    def loss(net: ProximalClassifier) -> float:
        return log_loss(y, net.predict_proba(x))

    torch.manual_seed(0)
    sibp = classifier(SIBP, optimizer__lr=1.0, optimizer__solver="cg:3")
    first = loss(sibp.initialize())
    search = GridSearchCV(sibp, {"optimizer__prox_weight": [3.0, 1000.0]}, scoring="neg_log_loss", cv=2)
    search.fit(x, y)
    print(f"SIBP loss: {first:.2f} -> {loss(search.best_estimator_):.2f}")
    print(f"best prox_weight: {search.best_params_['optimizer__prox_weight']}")

    torch.manual_seed(0)
    print(f"AutoSIBP loss: {first:.2f} -> {loss(classifier(AutoSIBP).fit(x, y)):.2f}")


if __name__ == "__main__":
    main()
