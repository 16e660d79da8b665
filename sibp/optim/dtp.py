"""Difference target propagation (Lee, Zhang, Fischer & Bengio, ECML 2015, arXiv 1412.7525) as a torch optimizer."""

from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sibp.activations import Activation
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.checks import in_range
from sibp.optim.guard import all_finite, finite_or, nan_unless
from sibp.optim.options import TargetOptions
from sibp.optim.targets import TargetOptimizer
from sibp.prox.scalars import choose

MOMENTUM, DECAY, STABILISER = 0.9, 0.95, 1e-3  # of RMSprop, as in the authors' code (donghyunlee/dtp)


class DTP(TargetOptimizer):
    r"""Targets that are propagated backward through learned inverses of all layers but the first and the last.

    With h_l = f_l(h_{l-1}) = s(W h_{l-1} + b) and the inverse g_l(h) = s(V h + c), from layer M - 1 of M downward:

    .. math::
        \hat h_{M-1} &= h_{M-1} - \hat\eta\, \partial L / \partial h_{M-1}, \qquad
        \hat h_{l-1} = h_{l-1} - g_l(h_l) + g_l(\hat h_l) \\
        W, b &: \text{a step on } \|f_l(h_{l-1}) - \hat h_l\|^2, \qquad
        V, c : \text{a step on } \|g_l(f_l(h_{l-1} + \epsilon)) - (h_{l-1} + \epsilon)\|^2, \;
        \epsilon \sim N(0, \sigma^2)

    (equations 10 to 15 of the paper). The last layer takes an ordinary gradient step. All steps are those of RMSprop
    with momentum, in the centred form of the authors' code. In that code, the inverses are trained for one epoch before
    each epoch of the network. Here they take one step per batch, before they are used.

    Args:
        model: linear layers, with activations that `SIBP` supports.
        lr: learning rate of the network's weights, 0.0149 in the authors' code.
        target_step: eta-hat, for the loss summed over the batch; in the authors' code 0.328, for the mean over 100.
        inverse_lr: learning rate of the inverses' weights, 0.00501 in the authors' code.
        noise: sigma; 0.36 in the authors' code.
        **options: `loss_average`, `params`, `weight_decay`: see `TargetOptions`.

    Raises:
        ValueError: for hyper-parameters out of range, and for layers that are not linear.
        TypeError: for a model that cannot be tapped.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.015,
        target_step: float = 0.0033,  # eta-hat in the paper, over the batch size
        inverse_lr: float = 0.005,
        noise: float = 0.36,  # sigma in the paper
        **options: Unpack[TargetOptions],
    ) -> None:
        defaults = {"lr": lr, "target_step": target_step, "inverse_lr": inverse_lr, "noise": noise}
        super().__init__(model, defaults, **options)

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of range."""
        super().check(group)
        for key in ("target_step", "inverse_lr", "noise"):
            in_range(group, key, 0)

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """One layer's step, and the distance of the layer below from its target, h_{l-1} - target."""
        B, memory = len(problem.D_z), self.layer_state(tap)
        first, last = (tap.name == name for name in problem.ends)
        s, Z, difference = self.output(problem)
        if last:
            E = problem.terms * problem.D_z / B  # error signal of the mean loss
            below = group["target_step"] * problem.terms * (problem.D_z @ problem.W)
        else:
            E = 2 * difference * s.slope(Z) / B
            below = None if first else self._input_difference(memory, problem, s, Z, difference, group)
        g_W, g_b = problem.features.displacement(E)
        return LayerUpdate(
            None if g_W is None else _rmsprop(memory, "W", g_W, group["lr"]),
            None if g_b is None else _rmsprop(memory, "b", g_b, group["lr"]),
            input_difference=below,
        )

    def _input_difference(
        self,
        memory: dict[str, Any],
        problem: LayerProblem,
        s: Activation,
        Z: Tensor,
        difference: Tensor,
        group: dict[str, Any],
    ) -> Tensor:
        """h_{l-1} minus its target; trains the inverse first."""
        self._train_inverse(memory, problem, s, group)
        h = s.value(Z)
        return self._inverse(memory, s, h) - self._inverse(memory, s, h - difference)

    def _train_inverse(
        self, memory: dict[str, Any], problem: LayerProblem, s: Activation, group: dict[str, Any]
    ) -> None:
        """One step of V and c towards an inverse of the layer near its inputs."""
        A = problem.features.moving(weight=True, bias=False).materialize()
        if "V" not in memory:
            memory["V"] = nn.init.orthogonal_(torch.empty_like(problem.W.mT))
            memory["c"] = A.new_zeros(A.shape[1])
        corrupted = A + group["noise"] * torch.randn_like(A)
        f = s.value(nn.functional.linear(corrupted, problem.W, problem.b))
        z = f @ memory["V"].mT + memory["c"]
        E = 2 * (s.value(z) - corrupted) * s.slope(z) / len(A)
        for key, g in (("V", E.mT @ f), ("c", E.sum(0))):
            moved, before = memory[key] - _rmsprop(memory, f"inverse {key}", g, group["inverse_lr"]), memory[key]
            memory[key] = finite_or(moved, lambda before=before: before)

    @staticmethod
    def _inverse(memory: dict[str, Any], s: Activation, h: Tensor) -> Tensor:
        """g_l(h) of shape (B, n), for h of shape (B, m)."""
        return s.value(h @ memory["V"].mT + memory["c"])


def _rmsprop(memory: dict[str, Any], name: str, g: Tensor, lr: float) -> Tensor:
    """A step of RMSprop with momentum along g, to be subtracted; its averages are stored under the name.

    If a value is not finite, the averages are not updated, and the step is NaN, which `GuardedOptimizer` skips.
    """
    zero = torch.zeros_like(g)
    before = tuple(memory.get(f"{name} {kind}", zero) for kind in ("mean", "square", "step"))
    mean, square = before[0].lerp(g, 1 - DECAY), before[1].lerp(g * g, 1 - DECAY)
    variance = (square - mean * mean).clamp_min(0)  # rounding can make it negative
    step = MOMENTUM * before[2] + lr * g / (variance + STABILISER).sqrt()
    finite = all_finite(mean, square, step)
    for kind, new, old in zip(("mean", "square", "step"), (mean, square, step), before, strict=True):
        memory[f"{name} {kind}"] = choose(finite, lambda new=new: new, lambda old=old: old)
    return nan_unless(finite, step)


def build(model: nn.Module, *, lr: float, target_step: float, inverse_lr: float, noise: float) -> DTP:
    """Makes difference target propagation from a config."""
    return DTP(model, lr, target_step, inverse_lr, noise)
