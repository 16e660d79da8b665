"""Semi-implicit back propagation (Liu & Zhang 2020, arXiv 2002.03516) as a torch optimizer."""

from typing import Unpack

from torch import nn

from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.optim.options import Options
from sibp.optim.proximal import ProximalOptimizer, builder
from sibp.optim.solvers import Solver, cg_update, linear_update, paper_update
from sibp.prox.status import Measure


class SIBP(ProximalOptimizer):
    r"""Semi-implicit back propagation (Liu & Zhang 2020, arXiv 2002.03516).

    For every layer, from the last to the first, with input A, pre-activation Z = A W^T + b, activation s and error
    signal D = dL/ds(Z) of the loss summed over the batch (the paper's difference):

    $$
    \begin{aligned}
    T &= s(Z) - \eta D \\
    W_{\text{new}}, b_{\text{new}} &= \arg\min_{V, c} \|s(A V^\top + c) - T\|^2 + \lambda (\|V - W\|^2 + \|c - b\|^2) \\
    D_{l-1} &= (D \odot s'(Z)) W_{\text{new}}
    \end{aligned}
    $$

    The step is semi-implicit: the weights solve the subproblem instead of following its gradient, and the error signal
    goes backward through the new weights (equation 10 of the paper). Use it like any optimizer:

        opt = SIBP(model, lr=0.3, prox_weight=1.0)
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()

    `backward` solves the subproblems and leaves W_old - W_new in `.grad`; `step` subtracts it. Several backward passes
    before a step add up their displacements, each computed from the same weights; clipping `.grad` clips the
    displacement. As lam grows, the step tends to SGD's with step size eta/lam on the summed loss.

    Args:
        model: any module. `nn.Linear`, `nn.Conv1d` and `nn.Conv2d` are updated proximally.
        lr: eta, the step on the neurons, >= 0.
        prox_weight: lam, the proximal weight, > 0.
        solver: "cg:K", K iterations (at most 1000) of conjugate gradients on the subproblem with its activation; in
            closed form where no activation known to `sibp.activations` follows; "exact", the linearised subproblem
            (target Z - eta D s'(Z)) in closed form at every layer; "paper", the authors' own solver (linear layers,
            ReLU), slow, for comparison.
        loss_average: whether the loss is a mean over the batch (the leading dimension at the first layer), or a sum
            (False); a number if it averages over that many terms, such as tokens.
        weight_decay: w, decoupled: p is multiplied by 1 - lr w at each step.
        backward_weights: which weights propagate the error signal to the layer below, "new" as in the paper or "old" as
            in ordinary back propagation.
        prox_weight_scaling: "absolute", lam is `prox_weight`; "relative", it is `prox_weight` times the mean squared
            norm of the layer's feature rows [a, 1], so that one value serves layers of every width and scale.
        line_search: whether `step(evaluate=...)` evaluates the loss and shortens steps that would raise it.
        **options: `params`, `fallback`, `explicit`, `direction_only`, `data_parallel`: see
            `sibp.optim.options.Options`.

    Raises:
        ValueError: for hyper-parameters out of range, unknown solvers, parameters that are not the model's.
        TypeError: for a model that cannot be tapped.
    """

    activation_inside = True
    solvers = ("cg", "exact", "paper")

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,  # eta in the paper
        prox_weight: float = 1.0,  # lambda in the paper
        solver: str = "cg:5",
        loss_average: bool | int = True,
        *,
        weight_decay: float = 0.0,
        backward_weights: str = "new",
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

    def update(
        self, problem: LayerProblem, solver: Solver, eta: float, prox_weight: float
    ) -> tuple[LayerUpdate, Measure]:
        """Solves one layer's subproblem; see `ProximalOptimizer.update`."""
        if solver.kind == "cg":
            return cg_update(problem, eta, prox_weight, solver.iterations)
        if solver.kind == "paper":
            return paper_update(problem, eta, prox_weight)
        return linear_update(problem, eta, prox_weight)


build = builder(SIBP, backward_weights="new")
