"""Proximal backpropagation (Frerix et al., ICLR 2018, arXiv 1706.04638) as a torch optimizer."""

import math
from typing import Unpack

import torch
from torch import nn

from sibp.activations import IDENTITY
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.optim.options import Options
from sibp.optim.proximal import ProximalOptimizer, builder
from sibp.optim.solvers import Solver, as_update, linear_update, zero_unless_finite
from sibp.prox.scalars import choose, is_finite
from sibp.prox.solvers.coordinates import Direct, smaller_side
from sibp.prox.solvers.nonlinear import solve_nonlinear
from sibp.prox.status import Measure, Stats, Status, squared_norm


class ProxBP(ProximalOptimizer):
    r"""Proximal backpropagation (Frerix et al., ICLR 2018, arXiv 1706.04638).

    For every layer with input A, pre-activation Z = A W^T + b and error signal E = dL/dZ of the loss summed over the
    batch, from ordinary back propagation (through the old weights):

    $$
    W_{\text{new}}, b_{\text{new}} = \arg\min_{V, c} \tfrac12 \|A V^\top + c - (Z - \eta E)\|^2
        + \tfrac{\lambda}{2} (\|V - W\|^2 + \|c - b\|^2)
    $$

    The paper writes tau for 1/lam. As in the authors' code, W and b form one joint subproblem. `SIBP` shows how to use
    the optimizer.

    Args:
        model: any module. `nn.Linear`, `nn.Conv1d` and `nn.Conv2d` are updated proximally.
        lr: eta, the step on the neurons, >= 0 (1 in the authors' code, with E not multiplied by the batch size).
        prox_weight: lam = 1/tau, > 0.
        solver: "exact", in closed form; "cg:K", K iterations of conjugate gradients; "gradient", one gradient step of
            length 1/lam on the subproblem, which is SGD with step size lr/prox_weight on the summed loss.
        loss_average: whether the loss is a mean over the batch, or a sum (False); or the number of averaged terms.
        weight_decay: w, decoupled: p is multiplied by 1 - lr w at each step.
        backward_weights: which weights propagate the error signal to the layer below, "new" or "old"; "old" in the
            paper.
        prox_weight_scaling: as for `SIBP`.
        line_search: whether `step(evaluate=...)` evaluates the loss and shortens steps that would raise it.
        **options: `params`, `fallback`, `explicit`, `direction_only`, `data_parallel`: see
            `sibp.optim.options.Options`.

    Raises:
        ValueError: for hyper-parameters out of range, unknown solvers, parameters that are not the model's.
        TypeError: for a model that cannot be tapped.
    """

    solvers = ("exact", "cg", "gradient")

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,  # eta; tau_grad
        prox_weight: float = 1.0,  # 1/tau in the paper
        solver: str = "exact",
        loss_average: bool | int = True,
        *,
        weight_decay: float = 0.0,
        backward_weights: str = "old",
        prox_weight_scaling: str = "absolute",
        line_search: bool = False,
        **options: Unpack[Options],
    ) -> None:
        defaults = {
            "lr": lr,
            "prox_weight": prox_weight,
            "solver": solver,
            "weight_decay": weight_decay,
            "backward_weights": backward_weights,
            "prox_weight_scaling": prox_weight_scaling,
        }
        super().__init__(model, defaults=defaults, loss_average=loss_average, line_search=line_search, **options)

    def wants_activation(self, tap: object) -> bool:
        """Always False: the subproblem is stated on the linear pre-activation."""
        del tap
        return False

    def update(
        self, problem: LayerProblem, solver: Solver, eta: float, prox_weight: float
    ) -> tuple[LayerUpdate, Measure]:
        """Solves one layer's subproblem; see `ProximalOptimizer.update`."""
        if solver.kind == "exact":
            return linear_update(problem, eta, prox_weight)
        if solver.kind == "gradient":
            return _gradient_update(problem, eta, prox_weight)
        coordinates = smaller_side(problem.features)
        target = -eta * problem.D_z  # Z - eta E, with Z shifted to 0: only T - Z matters
        origin = torch.zeros_like(target)
        solution = solve_nonlinear(coordinates, origin, target, prox_weight, IDENTITY, solver.iterations)
        return as_update(solution)


build = builder(ProxBP, backward_weights="old")


def _gradient_update(problem: LayerProblem, eta: float, prox_weight: float) -> tuple[LayerUpdate, Measure]:
    """W_new = W - (eta/lam) E^T A: one explicit gradient step on the subproblem."""
    coordinates = Direct(problem.features)
    decrease = coordinates.adjoint((eta / prox_weight) * problem.D_z)
    W_decrease, b_decrease = coordinates.displacement(decrease)
    squared = squared_norm(W_decrease, b_decrease)
    finite = is_finite(squared) & is_finite(prox_weight)  # a relative proximal weight may overflow
    W_decrease, b_decrease = (zero_unless_finite(finite, change) for change in (W_decrease, b_decrease))
    stats = Stats.of(
        Status.GRADIENT, finite, 0.0, 0.0, iterations=1, step_length=1 / prox_weight, squared_change=squared
    )
    change = choose(finite, lambda: squared, lambda: math.inf)
    return LayerUpdate(W_decrease, b_decrease, change_bound=change), lambda: stats
