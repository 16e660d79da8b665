"""Block coordinate descent (Zeng, Lau, Lin & Yao, ICML 2019, arXiv 1803.00225), batch by batch."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sibp.activations import Activation
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.checks import in_range
from sibp.optim.guard import all_finite
from sibp.optim.options import TargetOptions
from sibp.optim.solvers import as_update
from sibp.optim.targets import TargetOptimizer
from sibp.prox.solvers.coordinates import smaller_side
from sibp.prox.solvers.inverse import damped_inverse
from sibp.prox.solvers.linear import solve_linear


class BCD(TargetOptimizer):
    r"""One sweep of block coordinate descent from the last layer to the first, on the variables of one batch.

    Pre-activations U_l and activations V_l are separate variables, tied to the network by penalties (the paper's
    three-splitting). For every batch they start from a forward pass, U_l = W_l V_{l-1} + b_l and V_l = s(U_l). With D
    the error signal on U_N of the summed loss, a sweep is

    .. math::
        V_N &= U_N - \eta D, \qquad U_N = \frac{\gamma V_N + \rho U_N}{\gamma + \rho}
            && \text{(prox-linear step on the loss)} \\
        U_l &= \arg\min_U \gamma \|V_l - s(U)\|^2 + (\rho + \alpha) \|U - U_l\|^2 && \text{(neuron by neuron)} \\
        W_l, b_l &= \arg\min_{W, b} \rho \|U_l - W V_{l-1} - b\|^2 + \alpha \|[W, b] - [W_l, b_l]\|^2 \\
        V_{l-1} &= \arg\min_V \gamma \|V - s(U_{l-1})\|^2 + \rho \|U_l - W_l V - b_l\|^2 && \text{(with the new } W_l)

    The paper keeps U and V for the whole data set between sweeps, and treats W and b as two blocks, not one.

    Args:
        model: linear layers followed by ReLU, LeakyReLU or no activation.
        lr: eta, the step of V_N; 1/(gamma + alpha) in the paper's prox-linear form.
        gamma: weight of V_l = s(U_l); 1 in the authors' code.
        rho: weight of U_l = W_l V_{l-1} + b_l; 1 in the authors' code.
        prox_weight: alpha, weight of the distance from the old values; 5 in the authors' code, on 60,000 images at
            once.
        **options: `loss_average`, `params`, `weight_decay`: see `TargetOptions`.

    Raises:
        ValueError: for hyper-parameters out of range, and for layers that are not linear.
        TypeError: for a model that cannot be tapped.
        RuntimeError: in a backward pass, if another activation follows a layer.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1.0,  # eta
        gamma: float = 1.0,
        rho: float = 1.0,
        prox_weight: float = 5.0,  # alpha in the paper
        **options: Unpack[TargetOptions],
    ) -> None:
        defaults = {"lr": lr, "gamma": gamma, "rho": rho, "prox_weight": prox_weight}
        super().__init__(model, defaults, **options)

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of range."""
        super().check(group)
        for key in ("gamma", "rho", "prox_weight"):
            in_range(group, key, 0, open_at_low=True)

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """The blocks U_l, [W_l, b_l] and V_{l-1}, in this order."""
        gamma, rho, alpha = group["gamma"], group["rho"], group["prox_weight"]
        first, last = (tap.name == name for name in problem.ends)
        s, Z, difference = self.output(problem)
        if s.negative_slope is None:
            raise RuntimeError(f"layer '{tap.name}': BCD supports ReLU, LeakyReLU and the identity only, not {s.name}.")
        if last:
            U = Z - gamma / (gamma + rho) * group["lr"] * problem.terms * problem.D_z
        else:
            U = split(s.value(Z) - difference, Z, (rho + alpha) / gamma, s)
        coordinates = smaller_side(problem.features)
        if all_finite(U) is False:
            self.warn(tap)
        update, _ = as_update(solve_linear(coordinates, Z - U, alpha / rho))
        if first:
            return update
        W = problem.W if update.W_decrease is None else problem.W - update.W_decrease
        b = problem.b if problem.b is None or update.b_decrease is None else problem.b - update.b_decrease
        residual = U - problem.features.forward(W, b)
        return LayerUpdate(
            update.W_decrease, update.b_decrease, input_difference=-input_change(residual, W, gamma / rho)
        )


def split(V: Tensor, Z: Tensor, kappa: float, s: Activation) -> Tensor:
    """The elementwise minimiser U of (V - s(U))^2 + kappa (U - Z)^2, with s(u) = u above 0 and a u below.

    Args:
        V: (N, m) values that s(U) aims at.
        Z: (N, m) the old U.
        kappa: (rho + alpha) / gamma.
        s: the activation, with slope a below 0.

    Returns:
        (N, m); exactly Z where V = s(Z).
    """
    a = s.negative_slope or 0.0
    above = (Z + (V - Z) / (1 + kappa)).clamp_min(0)  # exactly Z where V = s(Z)
    below = (Z + a * (V - a * Z) / (a * a + kappa)).clamp_max(0)
    costs = [(V - s.value(U)).square() + kappa * (U - Z).square() for U in (above, below)]
    return torch.where(costs[0] < costs[1], above, below)


def input_change(residual: Tensor, W: Tensor, damping: float) -> Tensor:
    """The change X (N, n) of a layer's input that minimises ||residual - X W^T||^2 + damping ||X||^2.

    Args:
        residual: (N, m).
        W: (m, n); the system that is solved has the size of its smaller side.
        damping: gamma / rho.
    """
    m, n = W.shape
    if m <= n:
        return residual @ damped_inverse(W @ W.mT, damping) @ W
    return residual @ W @ damped_inverse(W.mT @ W, damping)


def build(model: nn.Module, *, lr: float, gamma: float, rho: float, prox_weight: float) -> BCD:
    """Makes block coordinate descent from a config."""
    return BCD(model, lr, gamma, rho, prox_weight)
