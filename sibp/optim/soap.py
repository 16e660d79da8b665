"""SOAP (Vyas et al., ICLR 2025, arXiv 2409.11321), by the package pytorch_optimizer."""

import torch
from torch import nn


def build(
    model: nn.Module, *, lr: float, beta1: float, beta2: float, weight_decay: float, every: int, largest: int
) -> torch.optim.Optimizer:
    """Adam in the eigenbasis of Shampoo's preconditioner; plain Adam for biases and norms.

    The first step only begins the preconditioner, in the package as in the authors' code: no weight moves.

    Args:
        model: as configs name them.
        lr: step size, 3e-3 in the paper.
        beta1: decay of the mean gradient, 0.95 in the paper.
        beta2: decay of the mean square and of the preconditioner, 0.95 in the paper.
        weight_decay: decoupled.
        every: steps between two eigenbases, 10 in the paper.
        largest: sides of a weight larger than this are left as they are, 10,000 in the paper.

    Returns:
        The package's optimizer.

    Raises:
        ValueError: the package is not installed, or it refuses a setting.
    """
    try:
        from pytorch_optimizer import SOAP
        from pytorch_optimizer.base.exception import NegativeLRError
    except ImportError as error:
        raise ValueError('it is in the package pytorch_optimizer: pip install -e ".[peers]"') from error
    try:
        return SOAP(
            model.parameters(),
            lr,
            betas=(beta1, beta2),
            weight_decay=weight_decay,
            precondition_frequency=every,
            max_precondition_dim=largest,
        )
    except NegativeLRError as error:
        raise ValueError(str(error)) from error
