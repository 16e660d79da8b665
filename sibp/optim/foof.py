"""FOOF, gradient descent on neurons (Benzing, ICML 2022, arXiv 2201.12250), as a torch optimizer."""

from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import nn

from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.checks import in_range, whole
from sibp.optim.guard import GuardedOptimizer, finite_or
from sibp.optim.options import PeerOptions
from sibp.prox.solvers.coordinates import Direct
from sibp.prox.solvers.inverse import damped_inverse


class FOOF(GuardedOptimizer):
    r"""Gradient descent on neurons: the linear proximal subproblem with a running covariance of the inputs.

    For every layer with inputs Phi = [A, 1], one row per sample, and error signal E = dL/dZ of the loss summed over the
    batch, from ordinary back propagation (algorithm 1 of the paper, which writes A for our Phi^T):

    .. math::
        \Sigma &\leftarrow m \Sigma + (1 - m) \Phi^\top \Phi, \qquad
        P \leftarrow (\Sigma + \lambda I)^{-1} \text{ every } T \text{ steps} \\
        [W, b] &\leftarrow [W, b] - \eta E^\top \Phi P

    With m = 0 and T = 1 this is `ProxBP` with its exact solver. The paper's networks have no biases, and its Sigma
    starts with 50 batches before training. Here P is computed in the first step and after 1, 2, 4, 8, ... of the first
    T steps, and Sigma is divided by the sum of its weights.

    Args:
        model: as for `SIBP`; layers other than linear ones and convolutions are left to the fallback.
        lr: eta, the step on the neurons: the paper's step size (for the mean loss) divided by the batch size.
        damping: lam, "typically" 100 in the paper.
        decay: m, 0.95 in the paper.
        inverse_every: T; 1, 100 and 500 in the paper.
        covariance_steps: S. Only the last S batches before an inversion update Sigma. In the paper S is T (all batches)
            for fully connected layers and 10 for convolutions.
        **options: `loss_average`, `params`, `weight_decay`, `fallback`, `explicit`: see `PeerOptions`.

    Raises:
        ValueError: for hyper-parameters out of range.
        TypeError: for a model that cannot be tapped.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.3,  # eta in the paper, over the batch size
        damping: float = 100.0,  # lambda in the paper
        decay: float = 0.95,  # m in the paper
        inverse_every: int = 100,  # T in the paper
        covariance_steps: int = 100,  # S in the paper
        **options: Unpack[PeerOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "damping": damping,
            "decay": decay,
            "inverse_every": inverse_every,
            "covariance_steps": covariance_steps,
        }
        super().__init__(model, defaults, **options)

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of range."""
        super().check(group)
        in_range(group, "damping", 0, open_at_low=True)
        in_range(group, "decay", 0, 1)
        whole(group, "inverse_every")
        whole(group, "covariance_steps")

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """Algorithm 1, lines 6 to 12, for one layer."""
        phi, memory = Direct(problem.features), self.statistics(tap, problem)
        t, T, S, m = memory.get("step", 0), group["inverse_every"], group["covariance_steps"], group["decay"]
        memory["step"] = t + 1
        if t < T or (t + S - 1) % T < S:
            memory["weight"] = m * memory.get("weight", 0.0) + (1 - m)
            gram = finite_or(phi.gram, lambda: memory.get("covariance", torch.zeros_like(phi.gram)))
            memory["covariance"] = memory.get("covariance", gram).lerp(gram, (1 - m) / memory["weight"])
        if t % T == 0 or (t < T and t & (t - 1) == 0):
            inverse = damped_inverse(memory["covariance"], group["damping"])
            memory["inverse"] = finite_or(inverse, lambda: memory.get("inverse", torch.zeros_like(inverse)))
        eta = group["lr"] * problem.terms
        return LayerUpdate(*phi.displacement(memory["inverse"] @ phi.adjoint(eta * problem.D_z)))


def builder(method: Callable[..., FOOF]) -> Callable[..., FOOF]:
    """Returns a function that makes `FOOF` or a subclass from a config; its keyword arguments are the config's keys.

    Args:
        method: the optimizer's class.
    """

    def build(
        model: nn.Module, *, lr: float, damping: float, decay: float, inverse_every: int, covariance_steps: int
    ) -> FOOF:
        return method(model, lr, damping, decay, inverse_every, covariance_steps)

    return build


build = builder(FOOF)
