"""(S + lam I)^-1 as a matrix, for a covariance S that serves many steps."""

import torch
from torch import Tensor


def damped_inverse(S: Tensor, lam: float | Tensor) -> Tensor:
    """The inverse of S + lam I.

    It never raises on numbers: a lam below the rounding of S is raised to that, and what is not finite gives NaN.

    Args:
        S: (..., n, n) symmetric, positive semi-definite.
        lam: damping, > 0; a tensor has S's leading dimensions.

    Returns:
        (..., n, n).
    """
    scale = S.abs().sum(-1).amax(-1)  # ||S||_inf >= its largest eigenvalue
    damping = torch.maximum(torch.as_tensor(lam, dtype=S.dtype, device=S.device), 2 * torch.finfo(S.dtype).eps * scale)
    factor, info = torch.linalg.cholesky_ex(S + torch.diag_embed(damping.unsqueeze(-1).expand(S.shape[:-1])))
    inverse = torch.cholesky_inverse(factor)
    return torch.where((info == 0)[..., None, None], inverse, torch.nan)
