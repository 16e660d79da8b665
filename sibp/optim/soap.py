"""SOAP (Vyas et al., ICLR 2025, arXiv 2409.11321), from the package pytorch_optimizer."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sibp.optim.checks import check_settings, from_peers, refuse_float16, whole
from sibp.optim.combined import CombinedOptimizer
from sibp.optim.fallback import evaluated

LARGEST = 32_768
"""Upper bound of `largest`. For a side of this length, preconditioner and eigenbasis take 4 GiB each in float32."""


def build(
    model: nn.Module, *, lr: float, beta1: float, beta2: float, weight_decay: float, every: int, largest: int
) -> torch.optim.Optimizer:
    """Adam in the eigenbasis of Shampoo's preconditioner; plain Adam for biases and norms.

    The first step only initialises the preconditioner, in the package as in the authors' code: no weight changes. A
    step whose gradients are not finite, or whose squared norm overflows, is skipped with a warning.

    Args:
        model: the model.
        lr: step size, 3e-3 in the paper.
        beta1: decay of the mean gradient, 0.95 in the paper.
        beta2: decay of the mean square and of the preconditioner, 0.95 in the paper.
        weight_decay: decoupled weight decay.
        every: steps from one update of the eigenbasis to the next, 10 in the paper.
        largest: sides of a weight longer than this are not preconditioned; 10,000 in the paper, at most `LARGEST`.

    Returns:
        The package's optimizer, wrapped in `WholeSteps`.

    Raises:
        ValueError: if the package is not installed, a setting is out of range, or weights are float16.
    """
    check_settings(lr=lr, beta1=beta1, beta2=beta2, weight_decay=weight_decay)
    whole({"every": every}, "every")
    whole({"largest": largest}, "largest", LARGEST)
    refuse_float16(model, "in which the 1e-8 that SOAP adds to its roots rounds to 0")
    soap = from_peers("pytorch_optimizer", "SOAP")(
        model.named_parameters(),
        lr,
        betas=(beta1, beta2),
        weight_decay=weight_decay,
        precondition_frequency=every,
        max_precondition_dim=largest,
    )
    return WholeSteps([soap])


class WholeSteps(CombinedOptimizer):
    """Skips a step if a gradient is too large: the package would raise after some weights have already changed."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Steps on the gradients of one backward pass, or skips the step with a warning.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = evaluated(closure)
        too_large = _too_large(self.param_groups)
        if too_large is None:
            super().step()
        else:
            warnings.warn(
                f"SOAP skipped a step: the gradient of {too_large} is not finite, or too large to be squared; look "
                "for inputs that are huge or not finite, or lower lr.",
                RuntimeWarning,
                stacklevel=2,
            )
        return loss


def _too_large(groups: list[dict[str, Any]]) -> str | None:
    """Name of the first parameter whose gradient has no usable squared norm; this norm bounds all of its statistics."""
    gradients = [
        (name, p.grad)
        for group in groups
        for name, p in zip(group["param_names"], group["params"], strict=True)
        if p.grad is not None
    ]
    if not gradients:
        return None
    fit = torch.stack([_fits(gradient) for _, gradient in gradients])
    return (
        None if bool(fit.all()) else next(name for (name, _), f in zip(gradients, fit.tolist(), strict=True) if not f)
    )


def _fits(gradient: Tensor) -> Tensor:
    """Whether the squared norm is finite in the gradient's dtype, and 1e4 times the squared norm in float32 or wider.

    The factor leaves room for the sums in a QR decomposition.
    """
    square = gradient.square().sum()
    margin = 1e4 * square.to(torch.promote_types(square.dtype, torch.float32))
    return square.isfinite() & margin.isfinite()
