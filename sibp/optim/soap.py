"""SOAP (Vyas et al., ICLR 2025, arXiv 2409.11321), by the package pytorch_optimizer."""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from sibp.optim.checks import check_settings, whole


def build(
    model: nn.Module, *, lr: float, beta1: float, beta2: float, weight_decay: float, every: int, largest: int
) -> torch.optim.Optimizer:
    """Adam in the eigenbasis of Shampoo's preconditioner; plain Adam for biases and norms.

    The first step only begins the preconditioner, in the package as in the authors' code: no weight moves. A step
    whose gradients are not finite, or too large for their squares to be summed, is left out with a warning.

    Args:
        model: as configs name them.
        lr: step size, 3e-3 in the paper.
        beta1: decay of the mean gradient, 0.95 in the paper.
        beta2: decay of the mean square and of the preconditioner, 0.95 in the paper.
        weight_decay: decoupled.
        every: steps between two eigenbases, 10 in the paper.
        largest: sides of a weight larger than this are left as they are, 10,000 in the paper.

    Returns:
        The package's optimizer, guarded.

    Raises:
        ValueError: the package is not installed, or a setting is out of range.
    """
    check_settings(lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay)
    counts = {"every": every, "largest": largest}
    for key in counts:
        whole(counts, key)
    return _guarded()(
        model.named_parameters(),
        lr,
        betas=(beta1, beta2),
        weight_decay=weight_decay,
        precondition_frequency=every,
        max_precondition_dim=largest,
    )


@cache
def _guarded() -> type[torch.optim.Optimizer]:
    """The package's SOAP, which otherwise raises from its eigenbases when some weights have moved already.

    Raises:
        ValueError: the package is not installed.
    """
    try:
        from pytorch_optimizer import SOAP
    except ImportError as error:
        raise ValueError('it is in the package pytorch_optimizer: pip install -e ".[peers]"') from error

    class Guarded(SOAP):
        """A step is whole or not at all, and an eigenbasis that cannot be found stays the one before."""

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            loss = None
            if closure is not None:
                with torch.enable_grad():
                    loss = closure()
            bad = _too_large(self.param_groups)
            if bad is None:
                super().step()
            else:
                warnings.warn(
                    f"SOAP left out a step: the gradient of {bad} is not finite, or too large to be squared; look for "
                    "inputs that are huge or not finite, or lower lr.",
                    RuntimeWarning,
                    stacklevel=2,
                )
            return loss

        def get_orthogonal_matrix_qr(self, state: Any, *args: Any) -> Any:
            """The next eigenbases, in the order of their eigenvalues, which mean squares follow."""
            before = state["Q"], state["exp_avg_sq"]
            found = super().get_orthogonal_matrix_qr(state, *args)
            if all(bool(Q.isfinite().all()) for Q in found if len(Q)):
                return found
            bases, state["exp_avg_sq"] = before
            return bases

    return Guarded


def _too_large(groups: list[dict[str, Any]]) -> str | None:
    """Names the first parameter whose gradient's squared norm is not finite; it bounds all that is kept of it."""
    params = [
        (name, p)
        for group in groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
        if p.grad is not None
    ]
    if not params:
        return None
    squares = torch.stack([_squared_norm(p.grad) for _, p in params])
    if bool(squares.isfinite().all()):
        return None
    return next(name for (name, _), square in zip(params, squares.tolist(), strict=True) if not square < torch.inf)


def _squared_norm(gradient: Tensor) -> Tensor:
    """In the gradient's own dtype, as the preconditioner is."""
    return gradient.square().sum().float()
