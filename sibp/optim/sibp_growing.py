"""Semi-implicit back propagation whose proximal weight grows where others' step size falls: a hybrid of ours."""

from typing import Any

from torch import nn

from sibp.capture.tap import LayerProblem, LayerUpdate, Tap
from sibp.optim.checks import in_range
from sibp.optim.sibp import SIBP


class GrowingSIBP(SIBP):
    """`SIBP` with step size `neuron_step` and proximal weight `prox_weight` / lr: with lr = 1 it is that.

    Where steps are small, a weight moves by about eta / lam times its gradient, so that a schedule of lr slows the
    weights as it does in `SIBP`; but the targets of the neurons stay as far away as they were.
    """

    def __init__(self, model: nn.Module, lr: float, neuron_step: float, prox_weight: float, solver: str) -> None:
        super().__init__(model, lr, prox_weight, solver)
        self.neuron_step = in_range({"neuron_step": neuron_step}, "neuron_step", 0.0)  # eta

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """Solves a layer's subproblem; with lr = 0 the targets are where the neurons are."""
        factor = group["lr"]
        eta, lam = (self.neuron_step, group["prox_weight"] / factor) if factor else (0.0, group["prox_weight"])
        return super().layer_update(tap, problem, {**group, "lr": eta, "prox_weight": lam})


def build(model: nn.Module, *, lr: float, neuron_step: float, prox_weight: float, solver: str) -> GrowingSIBP:
    """The hybrid, as a config names it."""
    return GrowingSIBP(model, lr, neuron_step, prox_weight, solver)
