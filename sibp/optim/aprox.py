"""Implicit SGD with the truncated model (Asi & Duchi, SIAM J. Optim. 2019, arXiv 1810.05633): aProx."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sibp.optim.checks import check_settings


class AProx(torch.optim.Optimizer):
    r"""A proximal step on the tangent model of the batch's loss, truncated at a lower bound of the loss.

    .. math::
        \theta \leftarrow \operatorname{argmin}_x\ \max(f + \langle g, x - \theta \rangle, f_*)
            + \tfrac{1}{2 \eta} \lVert x - \theta \rVert^2
            = \theta - \min\Big(\eta, \frac{f - f_*}{\lVert g \rVert^2}\Big) g

    (section 2 of the paper). It needs only the loss f of the batch and its gradient g. A step never goes beyond the
    point where the tangent reaches the lower bound, so no eta is too large for a convex loss.

    Args:
        params: parameters, as torch's optimizers take them.
        lr: eta, >= 0.
        least: f_*, a lower bound of the loss; 0 for cross-entropy and squared errors.

    Raises:
        ValueError: if lr is out of range.
    """

    def __init__(self, params: Any, lr: float = 1.0, least: float = 0.0) -> None:
        check_settings(lr=lr)
        super().__init__(params, {"lr": lr})
        self.least = least

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Steps all parameters.

        Takes no step if the loss is NaN or at most `least`, if a gradient is not finite, or if all gradients are 0.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.

        Returns:
            The closure's loss.

        Raises:
            RuntimeError: if there is no closure, as the step needs the loss.
        """
        if closure is None:
            raise RuntimeError("AProx needs the loss of the batch: call step(closure), as for torch's L-BFGS.")
        with torch.enable_grad():
            loss = closure()
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return loss
        square = torch.stack([torch.linalg.vector_norm(g).double() ** 2 for g in gradients]).sum()
        gap = torch.as_tensor(loss).detach().double() - self.least
        reach = torch.where(torch.isfinite(square) & (square > 0), gap.clamp(min=0) / square, 0.0)
        for group in self.param_groups:
            size = torch.clamp(reach, max=group["lr"]).nan_to_num(0.0)
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(_times(p.grad, size))
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """Includes the lower bound, for `deepcopy` and `pickle`."""
        return {**super().__getstate__(), "least": self.least}


def _times(gradient: Tensor, size: Tensor) -> Tensor:
    """The gradient times size; zero if the size is 0, even if the gradient is not finite."""
    return torch.where(size > 0, gradient * size.to(gradient.device, gradient.dtype), torch.zeros_like(gradient))


def build(model: nn.Module, *, lr: float, least: float) -> AProx:
    """Makes implicit SGD with the truncated model from a config."""
    return AProx(model.parameters(), lr, least)
