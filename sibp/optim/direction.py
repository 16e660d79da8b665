r"""AutoSIBP's search direction: Muon's rule at low rank, applied to the subproblems' steps.

A step is dominated by the few directions of weight space along which a batch's features and error signals are large.
Muon (Jordan et al. 2024, kellerjordan.github.io/posts/muon) gives all directions equal weight: it replaces a running
mean M = U S V^T of steps by U V^T. For M of 500 x 784 that costs several times as much as the training step, so here U
is restricted to a subspace of `RANK` dimensions, which follows M by one subspace iteration per step, as in Dion (Ahn et
al. 2025, arXiv 2504.05295). The remainder is mostly noise of single batches, which consecutive steps do not share.
"""

import torch
from torch import Tensor

from sibp.optim.muon import POLYNOMIAL

MOMENTUM = 0.5  # weight of earlier steps in the running mean
RANK = 64
ITERATIONS = 4  # Newton-Schulz iterations
LENGTH_FACTOR = 1.7  # length of the longest step, as a multiple of the length of the subproblems' own step


def update_mean(mean: Tensor, step: Tensor) -> Tensor:
    """Adds a step to a running mean, and looks ahead like Nesterov: to the mean after another step like this one.

    Args:
        mean: of the earlier steps, initially 0; becomes MOMENTUM mean + (1 - MOMENTUM) step.
        step: the current one.

    Returns:
        MOMENTUM mean + (1 - MOMENTUM) step, with the new mean.
    """
    return torch.lerp(step, mean.lerp_(step, 1 - MOMENTUM), MOMENTUM)


def orthogonal_rows(B: Tensor) -> Tensor:
    """Approximately U V^T of B = U S V^T, with singular values between 0.7 and 1.2.

    The Newton-Schulz iterations X <- (a + b X X^T + c (X X^T)^2) X all multiply B from the left, so it suffices to
    iterate the product of these factors and T = X X^T <- Q T Q, which are matrices of the size of the smaller side.

    Args:
        B: (k, n), k <= n; of any scale.

    Returns:
        (k, n); zero for B = 0.
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
    """Whether both sides of a weight exceed `RANK`; a convolution's kernel counts as a matrix, a row per channel."""
    return min(shape[0], shape[1:].numel()) > RANK


def orthogonal(M: Tensor, basis: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Approximately U V^T of M = U S V^T, restricted to the `RANK` leading singular vectors that the basis has found.

    That is P times `orthogonal_rows(P^T M)`, with P an orthonormal basis of M `basis`.

    Args:
        M: (m, n), in single precision at least.
        basis: (n, RANK), approximate right singular vectors; initially 0. None if a side of M is at most RANK: then all
            singular values are used.

    Returns:
        (m, n), and the basis for the next step.
    """
    if basis is None:
        return (orthogonal_rows(M) if len(M) <= M.shape[1] else orthogonal_rows(M.T).T), None
    start = basis if bool(basis.any()) else M[:RANK].T
    left = torch.linalg.qr(M @ start).Q
    right = orthogonal_rows(left.T @ M)
    return left @ right, right.T
