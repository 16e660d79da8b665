"""(S + lam I)^-1 as a matrix, for a covariance S that is used for many training steps."""

import torch
from torch import Tensor

_FLOOR = 2.0  # least lam / (eps ||S||)


def damped_inverse(S: Tensor, lam: float | Tensor) -> Tensor:
    """The inverse of S + lam I.

    It is computed in float64: the error of an inverse computed in S's dtype grows with S's condition number. A lam
    below the rounding of S is raised to it, and non-finite input gives NaN, so nothing raises for numerical reasons.

    Args:
        S: (..., n, n) symmetric, positive semi-definite.
        lam: damping, > 0; a tensor has S's leading dimensions.

    Returns:
        (..., n, n), in S's dtype.
    """
    wide = S.double()
    norm = torch.linalg.vector_norm(wide, dim=(-2, -1))
    damping = torch.maximum(
        torch.as_tensor(lam, dtype=wide.dtype, device=S.device), _FLOOR * torch.finfo(S.dtype).eps * norm
    )
    factor, info = torch.linalg.cholesky_ex(wide + torch.diag_embed(damping.unsqueeze(-1).expand(S.shape[:-1])))
    succeeded = ((info == 0) & damping.isfinite())[..., None, None]
    # A failed factorisation leaves zeros on the diagonal, for which cholesky_inverse raises.
    identity = torch.eye(S.shape[-1], dtype=wide.dtype, device=S.device)
    inverse = torch.cholesky_inverse(torch.where(succeeded, factor, identity)).to(S.dtype)
    return torch.where(succeeded, inverse, torch.nan)
