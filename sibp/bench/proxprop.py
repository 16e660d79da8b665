"""ProxBP's step as its authors compute it, for comparing speed.

Frerix et al. (ICLR 2018, arXiv 1706.04638) solve each linear layer's subproblem

    min  1/2 ||Phi X - (Z - eta E)||^2 + lam/2 ||X - X_old||^2        Phi = [A, 1] (B, n + 1),  X = [W, b]^T (n + 1, m)

by its normal equations in all n + 1 features at every step, for any batch size:

    (Phi^T Phi + lam I) X = Phi^T (Z - eta E) + lam X_old
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _ProxLinear(torch.autograd.Function):
    """Z = A W^T + b; its backward pass gives W_old - W_new as gradients and propagates through the old weights."""

    @staticmethod
    def forward(ctx: Any, A: Tensor, W: Tensor, b: Tensor, eta: float, lam: float) -> Tensor:
        Z = F.linear(A, W, b)
        ctx.save_for_backward(A, W, b, Z)
        ctx.eta, ctx.lam = eta, lam
        return Z

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        A, W, b, Z = ctx.saved_tensors
        E = grad_outputs[0] * A.shape[0]  # from the gradient of a mean to that of a sum
        phi = torch.cat([A, torch.ones_like(A[:, :1])], 1)
        system = phi.T @ phi
        system.diagonal().add_(ctx.lam)
        old = torch.cat([W, b.unsqueeze(1)], 1).T
        decrease = old - torch.linalg.solve(system, phi.T @ (Z - ctx.eta * E) + ctx.lam * old)
        grad_A = grad_outputs[0] @ W if ctx.needs_input_grad[0] else None
        return grad_A, decrease[:-1].T, decrease[-1], None, None


class ProxPropNet(nn.Module):
    """A net of linear and elementwise layers whose backward pass takes ProxProp's steps.

    `torch.optim.SGD` with lr=1 applies them.
    """

    def __init__(self, layers: nn.Sequential, eta: float, lam: float) -> None:
        """Replaces a net's layers.

        Args:
            layers: the net, whose `nn.Linear` layers have biases.
            eta: step on the neurons.
            lam: proximal weight, 1/tau.
        """
        super().__init__()
        self.layers, self.eta, self.lam = layers, eta, lam

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, n) to (B, classes)."""
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                z: Any = _ProxLinear.apply(x, layer.weight, layer.bias, self.eta, self.lam)
                x = z
            else:
                x = layer(x)
        return x
