"""Semi-implicit back propagation whose proximal weight grows where a schedule lowers lr: this project's variant."""

from typing import Any

from torch import nn

from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.checks import in_range
from sibp.optim.sibp import SIBP


class GrowingSIBP(SIBP):
    """`SIBP` with step size `neuron_step` and proximal weight `prox_weight` / lr; equal to it at lr = 1.

    A small step changes a weight by about eta / lam times its gradient. A schedule of lr therefore slows the weights as
    it does in `SIBP`, but the distance of the neurons from their targets stays the same.

    Args:
        model: as for `SIBP`.
        lr: factor of the schedule, >= 0.
        neuron_step: eta, the step on the neurons, >= 0.
        prox_weight: lam at lr = 1, > 0.
        solver: as for `SIBP`.

    Raises:
        ValueError: for hyper-parameters out of range, or an unknown solver.
        TypeError: for a model that cannot be tapped.
    """

    def __init__(self, model: nn.Module, lr: float, neuron_step: float, prox_weight: float, solver: str) -> None:
        group = {"params": list(model.parameters()), "neuron_step": neuron_step}
        super().__init__(model, lr, prox_weight, solver, params=[group])
        self.defaults["neuron_step"] = neuron_step  # of groups that are added later

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of range."""
        super().check(group)
        in_range(group, "neuron_step", 0.0)

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """Solves a layer's subproblem; with lr = 0 the targets equal the neurons' values."""
        factor, eta, lam = group["lr"], group["neuron_step"], group["prox_weight"]
        eta, lam = (eta, lam / factor) if factor else (0.0, lam)
        return super().layer_update(tap, problem, {**group, "lr": eta, "prox_weight": lam})


def build(model: nn.Module, *, lr: float, neuron_step: float, prox_weight: float, solver: str) -> GrowingSIBP:
    """Makes the variant from a config."""
    return GrowingSIBP(model, lr, neuron_step, prox_weight, solver)
