"""(S + lam I)^-1 as a matrix, for a covariance S that serves many steps."""

import torch
from torch import Tensor

_FLOOR = 2.0  # units of S's rounding that lam is raised to


def damped_inverse(S: Tensor, lam: float | Tensor) -> Tensor:
    """The inverse of S + lam I.

    Factored and inverted in float64: an inverse that rounds like S can be wrong by S's condition number. Never raises
    on numbers: a lam below the rounding of S is raised to it, and non-finite input gives NaN.

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
    found = ((info == 0) & damping.isfinite())[..., None, None]
    # A factorization that stopped leaves zeros on the diagonal, which cholesky_inverse raises on.
    identity = torch.eye(S.shape[-1], dtype=wide.dtype, device=S.device)
    inverse = torch.cholesky_inverse(torch.where(found, factor, identity)).to(S.dtype)
    return torch.where(found, inverse, torch.nan)
