"""Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) for a network's inner matrices, AdamW for the rest."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sibp.optim.checks import check_settings
from sibp.optim.combined import CombinedOptimizer
from sibp.optim.fallback import evaluated

POLYNOMIAL = 3.4445, -4.7750, 2.0315  # coefficients of x, x^3 and x^5: steep at 0, and about 1 up to x = 1
ITERATIONS = 5


def orthogonal(G: Tensor) -> Tensor:
    """Newton-Schulz iterations, which move every singular value to between 0.7 and 1.2.

    Args:
        G: a matrix (m, n).

    Returns:
        Approximately U V^T of G = U S V^T, (m, n); in bfloat16, or in float32 on processors without bfloat16.
    """
    X = G.to(torch.bfloat16 if _multiplies_bfloat16(G.device) else torch.float32)
    X = X.T if len(G) > G.shape[1] else X
    X = X / X.norm().clamp(min=1e-7)
    a, b, c = POLYNOMIAL
    for _ in range(ITERATIONS):
        K = X @ X.T
        X = torch.addmm(X, torch.addmm(K, K, K, beta=b, alpha=c), X, beta=a)
    return X.T if len(G) > G.shape[1] else X


def _multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for bfloat16; without them, a product takes fifty times as long."""
    supported = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)  # torch has no public name for it
    return device.type != "cpu" or (supported is not None and supported())


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov's look-ahead: `torch.optim.Muon` (2.9) with `match_rms_adamw`, for all versions of torch.

    With the gradient G and the momentum mu,

        M <- mu M + (1 - mu) G
        W <- (1 - lr weight_decay) W - 0.2 lr sqrt(max(m, n)) orthogonal(mu M + (1 - mu) G)

    The factor 0.2 sqrt(max(m, n)) gives steps the size of AdamW's (Liu et al. 2025, arXiv 2502.16982).

    Args:
        params: matrices (m, n).
        lr: step size.
        momentum: mu, the decay of the mean gradient.
        weight_decay: decoupled weight decay.

    Raises:
        ValueError: if a setting is out of range.
    """

    def __init__(self, params: Iterable[Tensor], lr: float, momentum: float, weight_decay: float) -> None:
        check_settings(lr=lr, momentum=momentum, weight_decay=weight_decay)
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Steps all matrices that have a gradient.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = evaluated(closure)
        for group in self.param_groups:
            lr, momentum = group["lr"], group["momentum"]
            for W in group["params"]:
                if W.grad is None:
                    continue
                mean = self.state[W].setdefault("momentum_buffer", torch.zeros_like(W.grad))
                mean.lerp_(W.grad, 1 - momentum)
                ahead = W.grad.lerp(mean, momentum)
                W.mul_(1 - lr * group["weight_decay"])
                W.add_(orthogonal(ahead), alpha=-0.2 * lr * max(W.shape) ** 0.5)
        return loss


def build(model: nn.Module, *, lr: float, momentum: float, weight_decay: float) -> torch.optim.Optimizer:
    """Muon on the weights of all linear layers except the last, and AdamW on all other parameters.

    This is how Muon's authors use it, except for convolutions: here their kernels are left to AdamW.

    Args:
        model: the model.
        lr: step size of both optimizers.
        momentum: Muon's momentum, with Nesterov's look-ahead.
        weight_decay: decoupled weight decay of both optimizers.

    Returns:
        Both, as one optimizer.

    Raises:
        ValueError: if the model has no linear layer except its last one, or a setting is out of range.
    """
    matrices = [m.weight for m in model.modules() if isinstance(m, nn.Linear)][:-1]
    if not matrices:
        raise ValueError("Muon trains all linear layers except the last one, but the model has no others.")
    inner = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inner]
    return CombinedOptimizer(
        [Muon(matrices, lr, momentum, weight_decay), torch.optim.AdamW(rest, lr, weight_decay=weight_decay)]
    )
