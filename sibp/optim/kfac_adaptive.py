"""K-FAC with clipped steps and damping that adapts (Martens & Grosse 2015, section 6.5; Ba et al., ICLR 2017)."""

import math
from collections.abc import Callable
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sibp.capture.tap import Tap
from sibp.optim.kfac import KFAC
from sibp.optim.options import PeerOptions

EVERY, RHO_HIGH, RHO_LOW = 5, 0.75, 0.25  # steps from one adaptation to the next, and thresholds for rho
DAMPING_FACTOR = (19 / 20) ** EVERY
MIN_DAMPING, MAX_DAMPING = 1e-8, 1e8  # bounds of the damping


class AdaptiveKFAC(KFAC):
    r"""K-FAC with clipped steps, and with damping that follows how well the quadratic model predicts the decrease.

    With Delta = W_old - W_new the displacement of `KFAC` and q = <grad, Delta>, the displacement taken is nu Delta,

    .. math:: \nu = \min\big(1, \sqrt{\kappa / (\eta\, q)}\big),

    so that the Kullback-Leibler divergence of the model from the old one is at most about kappa (Ba et al., section 5).
    Every fifth step, the loss of the same batch is evaluated again. The damped quadratic model predicts a decrease of
    nu q - nu^2 eta q / 2; rho is the actual decrease divided by that. If rho is above 3/4, the damping is multiplied by
    (19/20)^5. If rho is below 1/4, the damping is divided by (19/20)^5. This is the rule of Levenberg and Marquardt
    (section 6.5 of Martens & Grosse).

    Args:
        model: as for `KFAC`.
        lr: eta, as for `KFAC`.
        damping: lam before the first adaptation, > 0.
        decay: as for `KFAC`.
        inverse_every: as for `KFAC`.
        likelihood: as for `KFAC`.
        clip: kappa, > 0; 0.001 in the paper.
        generator: as for `KFAC`.
        **options: as for `KFAC`.

    Raises:
        ValueError: for hyper-parameters out of range.
        TypeError: for a model that cannot be tapped.
    """

    line_search = True
    """Always True: `step(evaluate=...)` evaluates the loss again after a step."""

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,
        damping: float = 0.1,
        decay: float = 0.95,
        inverse_every: int = 20,
        likelihood: str = "categorical",
        *,
        clip: float = 0.001,
        generator: torch.Generator | None = None,
        **options: Unpack[PeerOptions],
    ) -> None:
        if not clip > 0:
            raise ValueError(f"Invalid clip: {clip}; it has to be > 0.")
        self.clip = clip
        super().__init__(model, lr, damping, decay, inverse_every, likelihood, generator=generator, **options)
        for group in self.param_groups:
            group.setdefault("steps", 0)

    def record_step(self, tap: Tap, gradient: Tensor, displacement: Tensor, group: dict[str, Any]) -> None:
        """Stores a layer's part of eta q, and eta."""
        self._slopes[tap.name] = (gradient * displacement).sum(), group["lr"]

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        evaluate: Callable[[], Any] | None = None,
        loss: Any = None,
    ) -> Any:
        """Applies the clipped step and, every fifth step, adapts the damping.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.
            evaluate: computes the loss of the same batch, without backward; if omitted, the damping stays fixed.
            loss: the loss before the step, if no closure is given; without either, the damping stays fixed.

        Returns:
            The closure's loss, or the one given.
        """
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        slopes = [(float(eta_q), lr) for eta_q, lr in self._slopes.values() if lr > 0]
        slopes = [(eta_q, lr) for eta_q, lr in slopes if math.isfinite(eta_q) and eta_q > 0]
        self._slopes.clear()
        total = sum(eta_q for eta_q, _ in slopes)
        nu = min(1.0, math.sqrt(self.clip / total)) if total > 0 else 1.0
        moving = [p for group in self.param_groups for p in group["params"] if p.grad is not None] if nu < 1 else []
        before = [p.clone() for p in moving]
        super().step()
        for p, old in zip(moving, before, strict=True):
            p.lerp_(old, 1 - nu)
        group = self.param_groups[0]
        group["steps"] = group.get("steps", 0) + 1
        if evaluate is not None and loss is not None and slopes and group["steps"] % EVERY == 0:
            predicted = nu * sum(eta_q / lr for eta_q, lr in slopes) - nu**2 * total / 2
            with self.paused():
                self._adapt(float(loss) - float(evaluate()), predicted)
        return loss

    def _adapt(self, decrease: float, predicted: float) -> None:
        """Changes the damping of all groups, from the actual decrease of the loss and the predicted one."""
        rho = decrease / predicted if predicted > 0 and math.isfinite(decrease) else -math.inf
        factor = DAMPING_FACTOR if rho > RHO_HIGH else 1 / DAMPING_FACTOR if rho < RHO_LOW else 1.0
        for group in self.param_groups:
            group["damping"] = min(MAX_DAMPING, max(MIN_DAMPING, group["damping"] * factor))

    def __getstate__(self) -> dict[str, Any]:
        """Extends the base class by `clip`."""
        return {**super().__getstate__(), "clip": self.clip}

    def _reset(self) -> None:
        super()._reset()
        self._slopes: dict[str, tuple[Tensor, float]] = {}  # (eta q, eta) of every layer, by name


def build(
    model: nn.Module, *, lr: float, damping: float, decay: float, inverse_every: int, likelihood: str, clip: float
) -> AdaptiveKFAC:
    """Makes K-FAC with clipping and adaptive damping from a config."""
    return AdaptiveKFAC(model, lr, damping, decay, inverse_every, likelihood, clip=clip)
