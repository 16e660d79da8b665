"""Two sets of coordinates for one layer's displacement, and the choice of the smaller.

A layer maps features Phi = [A, 1] (N x n; the column of ones stands for a trainable bias) to Z = Phi [W, b]^T. Its
displacement enters the subproblem only through two things: the forward product Phi [W_new - W, b_new - b]^T that is
added to Z, and the squared norm ||W_new - W||^2 + ||b_new - b||^2. Every gradient of the subproblem is a combination of
rows of Phi, so the displacement to the minimiser can be written in two ways:

    span    [W_new - W, b_new - b] = U^T Phi    U (N x m)    forward K U, K = Phi Phi^T    squared norm tr(U^T K U)
    direct  [W_new - W, b_new - b] = V^T        V (n x m)    forward Phi V                 squared norm tr(V^T V)

The one with the smaller Gram matrix (N x N or n x n) is cheaper. All tensors may have leading batch dimensions for the
groups of a convolution. The columns of U, V and Z are the layer's m output units, whose subproblems are independent.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import ClassVar, Self

import torch
from torch import Tensor

from sibp.prox.operators import FeatureOperator
from sibp.prox.operators.base import Parts
from sibp.prox.scalars import Scalar, scalar
from sibp.prox.status import WELL_ABOVE, squared_norm

_SMALL = 2**16  # entries of a Gram matrix that metrics may keep even if there are fewer coefficients


class Coordinates(ABC):
    """Coefficients x (..., size, m) of a displacement.

    Args:
        features: of the layer.
    """

    direct: ClassVar[bool]
    """Whether coefficients are the displacement's entries themselves."""

    def __init__(self, features: FeatureOperator) -> None:
        self.features = features
        self._gram: Tensor | None = None

    def to(self, dtype: torch.dtype) -> Self:
        """These coordinates in another dtype."""
        return type(self)(self.features.to(dtype))

    def on(self, features: FeatureOperator) -> Self:
        """These coordinates, with the features in another form."""
        return self if features is self.features else type(self)(features)

    @property
    @abstractmethod
    def size(self) -> int:
        """Number of coefficients of an output unit."""

    @property
    def gram(self) -> Tensor:
        """The matrix of the normal equations, (..., size, size): (gram + lam I) x = -adjoint(R)."""
        if self._gram is None:  # `cached_property` takes a lock
            self._gram = self.find_gram()
        return self._gram

    @abstractmethod
    def find_gram(self) -> Tensor:
        """Computes `gram`."""

    @property
    @abstractmethod
    def matrix(self) -> Tensor | None:
        """The matrix of the forward product, (..., N, size); None if it is not available with all its rows."""

    @cached_property
    @abstractmethod
    def rounding(self) -> Tensor:
        """Rounding error of <x, x>, divided by x's sum of squares; (..., 1)."""

    @cached_property
    @abstractmethod
    def amplification(self) -> Tensor:
        """Factor by which `adjoint` can enlarge squared rounding errors, (..., 1)."""

    @cached_property
    @abstractmethod
    def squared_norm_of_forward(self) -> Tensor:
        """Squared Frobenius norm of the forward product's matrix, (..., 1)."""

    @abstractmethod
    def squared_residual(self, R: Tensor) -> Callable[[], Scalar]:
        """||R||^2 of R (..., N, m): evaluated lazily, or at once where R is too large to keep."""

    def norms_of(self, x: Tensor, rhs: Tensor, RR: Callable[[], Scalar]) -> Callable[[], tuple[Scalar, Scalar]]:
        """`norms` of a solution x, evaluated lazily, or at once where `gram` is too large to keep."""
        G, norms = self.gram, self.norms
        if G.numel() <= max(_SMALL, x.numel()):
            return lambda: norms(x, G @ x, rhs, RR())
        now = norms(x, G @ x, rhs, RR())
        return lambda: now

    @abstractmethod
    def adjoint(self, E: Tensor) -> Tensor:
        """Coefficients of the adjoint product Phi^T E, (..., size, m), from E (..., N, m)."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Change of Z, (..., N, m)."""

    @abstractmethod
    def inner(self, x: Tensor, y: Tensor, forward_y: Tensor) -> Tensor:
        """<x, y> of two displacements by output unit, (..., m); `forward_y` is the change of Z by y."""

    @abstractmethod
    def squared_norm(self, x: Tensor, forward_x: Tensor) -> Tensor:
        """<x, x> by output unit, (..., m); 0 where it is mere rounding."""

    @staticmethod
    @abstractmethod
    def norms(x: Tensor, gram_x: Tensor, rhs: Tensor, RR: Scalar) -> tuple[Scalar, Scalar]:
        """||R + forward(x)||^2 and <x, x> over all output units; gram_x = gram x, rhs = adjoint(R), RR = ||R||^2."""

    @staticmethod
    @abstractmethod
    def minimum(start: Scalar, product: Scalar, lam: float) -> Scalar:
        """The objective at the solution x of the normal equations; start = ||R||^2, product = <adjoint(R), x>."""

    @staticmethod
    @abstractmethod
    def squared_norm_by(energy: float, XX: float, lam: float) -> float:
        """<x, x> from energy = x^T (gram + lam I) x and XX, x's sum of squares, all over all output units."""

    @abstractmethod
    def entries(self, x: Tensor) -> Tensor:
        """The displacement of x in direct coordinates, (..., n, m)."""

    @abstractmethod
    def displacement(self, x: Tensor, factor: float = 1.0) -> Parts:
        """`factor` times W_new - W (..., m, n) and b_new - b (..., m)."""

    def squared_change(self, x: Tensor) -> Scalar:
        """||W_new - W||^2 + ||b_new - b||^2 of the displacement of x."""
        return squared_norm(*self.displacement(x))

    def squared_norm_bound(self, largest: float, XX: float) -> float:
        """An upper bound of <x, x>, from the largest entry of `gram` and x's sum of squares."""
        del largest
        return XX

    def resolves(self, squared_norm: Scalar, bound: float) -> bool:
        """Whether <x, x>, computed from products with `gram`, has four correct digits; `bound` is its upper bound."""
        del squared_norm, bound
        return True

    def low_rank_is_cheaper(self, m: int) -> bool:
        """Whether `backward_change` takes less time than forming W_new (m x n) and a product with it."""
        del m
        return False

    def backward_change(self, D: Tensor, x: Tensor, factor: float = 1.0) -> Tensor | None:
        """`factor` D (W_new - W), (..., N, n), from D (..., N, m); None if W is fixed."""
        W, _ = self.displacement(x, factor)
        return None if W is None else D @ W


class Span(Coordinates):
    """Coordinates U in the span of the N feature rows."""

    direct = False

    def find_gram(self) -> Tensor:
        """K = Phi Phi^T, (..., N, N)."""
        return self.features.outer_gram()

    @property
    def matrix(self) -> Tensor | None:
        """K."""
        return self.gram

    @cached_property
    def rounding(self) -> Tensor:
        """K's largest entry times eps sqrt(N), (..., 1), for N independent rounding errors."""
        N = self.gram.shape[-1]
        largest = self.gram.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True) if N else self.gram.new_zeros(1)
        return largest * (torch.finfo(self.gram.dtype).eps * math.sqrt(N))

    @cached_property
    def amplification(self) -> Tensor:
        """1, (..., 1)."""
        return torch.ones_like(self.rounding)

    @cached_property
    def squared_norm_of_forward(self) -> Tensor:
        """||K||_F^2, (..., 1)."""
        return torch.linalg.vector_norm(self.gram, dim=(-2, -1)).square().unsqueeze(-1)

    @property
    def size(self) -> int:
        """N."""
        return self.features.rows

    def squared_residual(self, R: Tensor) -> Callable[[], Scalar]:
        """||R||^2, evaluated lazily: the span has all its rows on this rank."""
        return lambda: scalar(torch.linalg.vector_norm(R).square())

    def adjoint(self, E: Tensor) -> Tensor:
        """E itself, (..., N, m)."""
        return E

    def forward(self, x: Tensor) -> Tensor:
        """K U, (..., N, m)."""
        return self.gram @ x

    def inner(self, x: Tensor, y: Tensor, forward_y: Tensor) -> Tensor:
        """Column sums of x * (K y), (..., m)."""
        del y
        return (x * forward_y).sum(-2)

    def squared_norm(self, x: Tensor, forward_x: Tensor) -> Tensor:
        """Column sums of x * (K x), (..., m); 0 where they are mere rounding.

        If rows of Phi are linearly dependent, a large x can be a negligible displacement.
        """
        squared = (x * forward_x).sum(-2)
        return squared * (squared > self.rounding * x.square().sum(-2))  # a product preserves NaN and Inf

    @staticmethod
    def norms(x: Tensor, gram_x: Tensor, rhs: Tensor, RR: Scalar) -> tuple[Scalar, Scalar]:
        """||R + K U||^2 and tr(U^T K U); `rhs` is R itself."""
        del RR
        return scalar((rhs + gram_x).square().sum()), scalar((x * gram_x).sum())

    @staticmethod
    def minimum(start: Scalar, product: Scalar, lam: float) -> Scalar:
        """||lam U||^2 + lam tr(U^T K U) = -lam <R, U>, as R + K U = -lam U."""
        del start
        return -lam * product

    @staticmethod
    def squared_norm_by(energy: float, XX: float, lam: float) -> float:
        """tr(U^T K U)."""
        return energy - lam * XX

    def entries(self, x: Tensor) -> Tensor:
        """Phi^T U."""
        return self.features.rmatmat(x)

    def displacement(self, x: Tensor, factor: float = 1.0) -> Parts:
        """`factor` U^T Phi as displacements of W and b."""
        return self.features.displacement(x, factor)

    def squared_norm_bound(self, largest: float, XX: float) -> float:
        """tr(K) ||U||^2, where N times K's largest entry bounds tr(K)."""
        return self.size * largest * XX

    def resolves(self, squared_norm: Scalar, bound: float) -> bool:
        """As in `Coordinates`, for a rounding error of `rounding`; `bound` is that of `squared_norm_bound`."""
        return bool(squared_norm > WELL_ABOVE * torch.finfo(self.gram.dtype).eps / math.sqrt(self.size or 1) * bound)

    def low_rank_is_cheaper(self, m: int) -> bool:
        """As in `Coordinates`.

        `backward_change` takes N^2 (n + m) multiply-adds. Forming W_new moves about m n numbers through memory. Each
        takes as long as 20 to 60 multiply-adds, depending on the machine and on how much memory is newly allocated.
        """
        N, n = self.features.rows, self.features.inputs
        return N * N * (n + m) < 30 * m * n

    def backward_change(self, D: Tensor, x: Tensor, factor: float = 1.0) -> Tensor | None:
        """`factor` D (W_new - W) as (D U^T) A, (..., N, n), without forming W_new."""
        return self.features.displacement_of_weight((D @ x.mT).mT, factor)


class Direct(Coordinates):
    """Coordinates V = [W_new - W, b_new - b]^T themselves."""

    direct = True

    @property
    def size(self) -> int:
        """Columns of Phi."""
        return self.features.size

    def find_gram(self) -> Tensor:
        """Phi^T Phi, (..., n, n); conjugate gradients never use it."""
        return self.features.gram()

    @property
    def matrix(self) -> Tensor | None:
        """Phi."""
        return None if self.features.matrix_free else self.features.materialize()

    @cached_property
    def amplification(self) -> Tensor:
        """||Phi||_F^2, (..., 1)."""
        return self.features.squared_norm().unsqueeze(-1)

    @cached_property
    def squared_norm_of_forward(self) -> Tensor:
        """||Phi||_F^2, (..., 1)."""
        return self.amplification

    @cached_property
    def rounding(self) -> Tensor:
        """0, (..., 1): <x, x> is the sum of squares itself."""
        return torch.zeros_like(self.amplification)

    def squared_residual(self, R: Tensor) -> Callable[[], Scalar]:
        """||R||^2 over the rows of all ranks, evaluated at once, since R may be large."""
        now = scalar(self.features.total(torch.linalg.vector_norm(R).square()))
        return lambda: now

    def adjoint(self, E: Tensor) -> Tensor:
        """Phi^T E, (..., n, m)."""
        return self.features.rmatmat(E)

    def forward(self, x: Tensor) -> Tensor:
        """Phi V, (..., N, m)."""
        return self.features.matmat(x)

    def inner(self, x: Tensor, y: Tensor, forward_y: Tensor) -> Tensor:
        """Column sums of x * y, (..., m)."""
        del forward_y
        return (x * y).sum(-2)

    def squared_norm(self, x: Tensor, forward_x: Tensor) -> Tensor:
        """Column sums of x * x, (..., m)."""
        del forward_x
        return x.square().sum(-2)

    @staticmethod
    def norms(x: Tensor, gram_x: Tensor, rhs: Tensor, RR: Scalar) -> tuple[Scalar, Scalar]:
        """||R||^2 + 2 <Phi^T R, V> + <V, Phi^T Phi V>, formed without N x m arrays, and ||V||^2."""
        return RR + scalar((x * (2 * rhs + gram_x)).sum()), scalar(x.square().sum())

    @staticmethod
    def minimum(start: Scalar, product: Scalar, lam: float) -> Scalar:
        """||R||^2 + <Phi^T R, V>."""
        del lam
        return start + product

    @staticmethod
    def squared_norm_by(energy: float, XX: float, lam: float) -> float:
        """||V||^2."""
        del energy, lam
        return XX

    def entries(self, x: Tensor) -> Tensor:
        """V."""
        return x

    def displacement(self, x: Tensor, factor: float = 1.0) -> Parts:
        """`factor` V^T as displacements of W and b."""
        return self.features.parts(x if factor == 1 else factor * x)


def smaller_side(features: FeatureOperator) -> Coordinates:
    """The coordinates with the smaller Gram matrix: N x N (span, if all rows are on this rank) or n x n (direct)."""
    kind = Span if features.spanned else Direct
    return features.once(kind, lambda: kind(features))
