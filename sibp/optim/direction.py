r"""Which way to go, before a search says how far: Muon's rule on the steps that the subproblems ask for, at low rank.

A step asks most of the few directions of weight space along which a batch's features and error signals are large. Muon
(Jordan et al. 2024, kellerjordan.github.io/posts/muon) makes all of them equal: of a running mean M = U S V^T of steps
it takes U V^T. With M of 500 x 784 that costs several times as much as the training step, so here the columns of U are
looked for in a space of `RANK` dimensions only, which follows M by a subspace iteration a step, as in Dion (Ahn et al.
2025, arXiv 2504.05295). What is left out is the noise of single batches, which no step has in common with the next.
"""

import torch
from torch import Tensor

from sibp.optim.muon import POLYNOMIAL

MEMORY = 0.5  # share of the mean of earlier steps in the mean with this one
RANK = 64
ITERATIONS = 4  # of Newton and Schulz
LONGER = 1.7  # the longest step, times the norm of what the subproblems ask for


def averaged(mean: Tensor, step: Tensor) -> Tensor:
    """Adds a step to a running mean, and looks ahead as Nesterov does: to the mean with another step like this one.

    Args:
        mean: of the steps before, 0 if there was none; becomes MEMORY mean + (1 - MEMORY) step.
        step: this one.

    Returns:
        MEMORY mean + (1 - MEMORY) step, with the new mean.
    """
    return torch.lerp(step, mean.lerp_(step, 1 - MEMORY), MEMORY)


def orthogonal_rows(B: Tensor) -> Tensor:
    """About U V^T of B = U S V^T, with singular values between 0.7 and 1.2.

    The Newton-Schulz iterations X <- (a + b X X^T + c (X X^T)^2) X all multiply B from the left, so that only the
    product of these factors is iterated, with T = X X^T <- Q T Q: matrices of the size of the smaller side.

    Args:
        B: (k, n), k <= n; of any scale.

    Returns:
        As B; 0 for 0.
    """
    a, b, c = POLYNOMIAL
    B = B / B.abs().amax().clamp(min=torch.finfo(B.dtype).tiny)
    T = B @ B.T
    size = T.trace().clamp(min=torch.finfo(B.dtype).tiny)
    T, factors = T / size, torch.eye(len(B), dtype=B.dtype, device=B.device) / size.sqrt()
    for _ in range(ITERATIONS):
        Q = torch.addmm(T, T, T, beta=b, alpha=c)
        Q.diagonal().add_(a)
        factors, T = Q @ factors, Q @ T @ Q
    return factors @ B


def has_basis(shape: torch.Size) -> bool:
    """Whether a matrix, or a kernel as a matrix with a row for each output channel, is larger than `RANK`."""
    return min(shape[0], shape[1:].numel()) > RANK


def orthogonal(M: Tensor, basis: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """About U V^T of M = U S V^T, of the `RANK` largest singular values as far as the basis has found them.

    With P an orthonormal basis of M `basis`, it is P times `orthogonal_rows(P^T M)`.

    Args:
        M: (m, n), at least of single precision.
        basis: (n, RANK), about the right singular vectors; 0 to begin with. None if a side of M is RANK or less: then
            all singular values count.

    Returns:
        As M, and the basis for the next step.
    """
    if basis is None:
        return (orthogonal_rows(M) if len(M) <= M.shape[1] else orthogonal_rows(M.T).T), None
    start = basis if bool(basis.any()) else M[:RANK].T
    left = torch.linalg.qr(M @ start).Q
    right = orthogonal_rows(left.T @ M)
    return left @ right, right.T
