"""LocoProp-S and LocoProp-M (Amid, Anil & Warmuth, AISTATS 2022, arXiv 2106.06199) as a torch optimizer."""

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.checks import in_range, whole
from sibp.optim.guard import GuardedOptimizer, all_finite, nan_unless
from sibp.optim.options import PeerOptions
from sibp.optim.solvers import MAX_ITERATIONS
from sibp.prox.scalars import Flag, choose

VARIANTS = ("squared", "matching")
OUTPUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda z: z,
    "softmax": lambda z: z.softmax(-1),
    "sigmoid": torch.sigmoid,
}
EPS = 1e-5  # added to RMSprop's mean square, under the root
MIN_STEP_FACTOR = 0.25  # the inner step sizes decrease linearly to this factor


class LocoProp(GuardedOptimizer):
    r"""Local losses: several steps of RMSprop on each layer's own problem, all from one backward pass.

    For every layer with input A, pre-activation Z, transfer function f and error signal E = dL/dZ of the summed
    loss, from ordinary back propagation, the target and the local loss are

    .. math::
        \text{S (squared):} \quad T &= Z - \gamma E, \qquad \tfrac12 \|A W^\top + b - T\|^2 \\
        \text{M (matching):} \quad T &= f(Z) - \gamma E, \qquad \text{the Bregman divergence that matches } f

    whose gradients are (A W^T + b - T)^T A and (f(A W^T + b) - T)^T A. K inner steps of RMSprop with momentum follow,
    i = 0..K-1, with step sizes lr max(1 - i/K, 1/4). As in the authors' published code (google-research/locoprop), the
    mean squares start at 1, and they and the velocities are kept from batch to batch. Also as in that code, there is no
    proximal term: the small number of steps keeps the weights near their old values.

    Args:
        model: as for `SIBP`; layers other than linear ones and convolutions are left to the fallback.
        lr: step size of the inner steps; 1e-5 in the authors' code, with momentum 0.999.
        activation_lr: gamma, the step on the pre-activations (S) or activations (M). The authors' code has 10, for the
            mean loss over 1,000 images, which is 0.01 here.
        variant: "squared" (S) or "matching" (M).
        output: f of the last layer, which the loss contains: "softmax" for cross-entropy, "sigmoid" for binary
            cross-entropy, "identity" for a squared error. Only M uses it. For other layers that no known activation
            follows, f is the identity.
        inner_steps: K, 10 in the authors' code.
        momentum: momentum of RMSprop.
        decay: decay of RMSprop's mean square, 0.9 in the authors' code.
        **options: `loss_average`, `params`, `weight_decay`, `fallback`, `explicit`: see `PeerOptions`.

    Raises:
        ValueError: for hyper-parameters out of range.
        TypeError: for a model that cannot be tapped.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 1e-5,
        activation_lr: float = 0.01,  # gamma
        variant: str = "squared",
        output: str = "softmax",
        inner_steps: int = 10,
        momentum: float = 0.999,
        decay: float = 0.9,
        **options: Unpack[PeerOptions],
    ) -> None:
        defaults = {
            "lr": lr,
            "activation_lr": activation_lr,
            "variant": variant,
            "output": output,
            "inner_steps": inner_steps,
            "momentum": momentum,
            "decay": decay,
        }
        super().__init__(model, defaults, **options)

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of range."""
        super().check(group)
        in_range(group, "activation_lr", 0)
        for key in ("momentum", "decay"):
            in_range(group, key, 0, 1)
        whole(group, "inner_steps", MAX_ITERATIONS)
        for key, known in (("variant", VARIANTS), ("output", tuple(OUTPUTS))):
            if group[key] not in known:
                raise ValueError(f"Invalid {key}: {group[key]!r}; choose one of {', '.join(known)}.")

    def wants_activation(self, tap: Tap) -> bool:
        """Always True: Z is captured only together with the activation, and M needs f."""
        del tap
        return True

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """K steps on one layer's local loss."""
        features, K = problem.features, group["inner_steps"]
        zero = problem.W.new_zeros(problem.W.shape[:-1])
        start = problem.W, zero if problem.b is None else problem.b
        W, b = (value.clone() for value in start)
        f = self._transfer(tap, problem, group)
        Z = features.forward(W, b) if problem.Z is None else problem.Z
        T = f(Z) - group["activation_lr"] * problem.terms * problem.D_z
        moving = {"weight": W} if problem.features.weight else {}
        moving |= {"bias": b} if problem.features.bias else {}
        averages = {key: self._averages(tap, key, value) for key, value in moving.items()}
        for i in range(K):
            Z = Z if i == 0 else features.forward(W, b)
            E = f(Z) - T
            size = group["lr"] * max(1 - i / K, MIN_STEP_FACTOR)
            for value, key, g in zip((W, b), ("weight", "bias"), features.displacement(E), strict=True):
                if g is not None:
                    value -= self._step(averages[key], g, size, group)
        finite = all_finite(W, b, *(value for pair in averages.values() for value in pair.values()))
        for key, value in moving.items():
            self._keep(finite, tap, key, averages[key], self._averages(tap, key, value))
        return LayerUpdate(
            nan_unless(finite, start[0] - W) if features.weight else None,
            nan_unless(finite, start[1] - b) if features.bias else None,
        )

    def _keep(self, finite: Flag, tap: Tap, key: str, after: dict[str, Tensor], before: dict[str, Tensor]) -> None:
        """Stores a parameter's averages after the inner steps; those before them if the steps are not finite."""
        self.state[tap.parameters[key]].update(
            {name: choose(finite, partial(after.get, name), partial(before.get, name)) for name in after}
        )

    def _averages(self, tap: Tap, key: str, like: Tensor) -> dict[str, Tensor]:
        """Copies of a parameter's mean squares and velocities, or their initial values."""
        kept = self.state[tap.parameters[key]]
        if "square" not in kept:
            return {"square": torch.ones_like(like), "velocity": torch.zeros_like(like)}
        return {name: kept[name].clone() for name in ("square", "velocity")}

    @staticmethod
    def _step(averages: dict[str, Tensor], g: Tensor, size: float, group: dict[str, Any]) -> Tensor:
        """One step of RMSprop with momentum along the gradient g, to be subtracted; updates the averages."""
        averages["square"].lerp_(g.square(), 1 - group["decay"])
        averages["velocity"].mul_(group["momentum"]).addcmul_(g, (averages["square"] + EPS).rsqrt_(), value=size)
        return averages["velocity"]

    def _transfer(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> Callable[[Tensor], Tensor]:
        """The transfer function f; the identity for S."""
        if group["variant"] == "squared":
            return OUTPUTS["identity"]
        if problem.activation is not None:
            return problem.activation.value
        return OUTPUTS[group["output"] if problem.name == problem.ends[1] else "identity"]


def build(
    model: nn.Module,
    *,
    lr: float,
    activation_lr: float,
    variant: str,
    output: str,
    inner_steps: int,
    momentum: float,
    decay: float,
) -> LocoProp:
    """Makes LocoProp from a config."""
    return LocoProp(model, lr, activation_lr, variant, output, inner_steps, momentum, decay)
