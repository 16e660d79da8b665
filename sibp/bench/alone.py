"""Parts of a step that can be timed in isolation: the products, convolutions and solutions of the counted work."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from sibp.prox import closed
from sibp.prox.operators import ConvolutionFeatures

_LAM = 1e3  # large enough for any matrix below


@dataclass(frozen=True)
class Piece:
    """An operation of a step, to be timed at the shape that it has there.

    Attributes:
        key: equal for pieces that take the same time.
        operations: floating-point operations.
        ways: implementations. Each is a factory: for a dtype and a device it returns a function that computes the
            operation, or None if it does not support them. The fastest counts.
    """

    key: Hashable
    operations: float
    ways: tuple[Callable[[torch.dtype, str], Callable[[], object] | None], ...]


def product(a: int, b: int, c: int) -> Piece:
    """The product of (a, b) and (b, c), or of the same three sizes in another order."""

    def way(dtype: torch.dtype, device: str) -> Callable[[], object]:
        A, B = _numbers((a, b), dtype, device), _numbers((b, c), dtype, device)
        out = A.new_empty(a, c)
        return lambda: torch.mm(A, B, out=out)

    return Piece(("product", *sorted((a, b, c))), 2.0 * a * b * c, (way,))


def convolution(features: ConvolutionFeatures, neurons: int, adjoint: bool, operations: float) -> Piece:
    """A convolution, or the gradient of its weights (the adjoint).

    Args:
        features: of the layer.
        neurons: m.
        adjoint: whether it is the gradient.
        operations: floating-point operations.
    """

    def way(dtype: torch.dtype, device: str, units_last: bool = False) -> Callable[[], object]:
        here = ConvolutionFeatures(_numbers(features.x.shape, dtype, device), features.window)
        samples, positions = features.row_shape
        V = _numbers((*features.leading, here.size, neurons), dtype, device)
        if units_last:  # the output as (B, P, g m)
            here, E = here.units_last(), _numbers((samples, positions, features.groups, neurons), dtype, device)
            E = E.permute(2, 0, 1, 3)
        else:  # as (B, g m, P)
            E = _numbers((samples, features.groups, neurons, positions), dtype, device).permute(1, 0, 3, 2)
        return (lambda: here.rmatmat(E)) if adjoint else (lambda: here.matmat(V))

    def last(dtype: torch.dtype, device: str) -> Callable[[], object]:
        return way(dtype, device, units_last=True)

    return Piece(("convolution", id(features), neurons, adjoint), operations, (way, last))


def solution(r: int, m: int) -> Piece:
    """A Cholesky factor of an r x r matrix, and two triangular solves with m right-hand sides."""

    def system(dtype: torch.dtype, device: str) -> tuple[Tensor, Tensor]:
        return torch.eye(r, dtype=dtype, device=device) * _LAM, _numbers((r, m), dtype, device)

    def by_torch(dtype: torch.dtype, device: str) -> Callable[[], object]:
        G, R = system(dtype, device)
        return lambda: torch.cholesky_solve(R, torch.linalg.cholesky_ex(G)[0])

    def by_kernel(dtype: torch.dtype, device: str) -> Callable[[], object] | None:
        G, R = system(dtype, device)
        return None if closed.minus_solve(G, R, _LAM, 0.0) is None else lambda: closed.minus_solve(G, R, _LAM, 0.0)

    return Piece(("solution", r, m), r**3 / 3 + 2.0 * r * r * m, (by_torch, by_kernel))


def _numbers(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    return torch.randn(*shape, dtype=dtype, device=device, generator=torch.Generator(device).manual_seed(0))
