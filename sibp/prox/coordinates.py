"""Two sets of coordinates for one layer's displacement, and the choice of the smaller.

A layer maps features Phi = [A, 1] (N x n; the column of ones stands for a trainable bias) to Z = Phi [W, b]'. Its
displacement enters the subproblem only through two things: the image Phi [W' - W, b' - b]' that is added to Z, and
the squared norm ||W' - W||^2 + ||b' - b||^2. Every gradient step of the subproblem adds rows of Phi, so the minimiser
can be looked for as

    span    [W' - W, b' - b] = U' Phi    U (N x m)    image K U, K = Phi Phi'    squared norm tr(U' K U)
    direct  [W' - W, b' - b] = V'        V (n x m)    image Phi V                squared norm tr(V' V)

and the side with the smaller Gram matrix (N x N or n x n) is the cheaper. All tensors may have leading batch dimensions
(the groups of a convolution); the columns of U, V and Z are the layer's m neurons, whose subproblems are independent.
"""

import math
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from sibp.prox.features import Features
from sibp.prox.numbers import Number, number
from sibp.prox.patches import Patches

AnyFeatures = Features | Patches


class Span:
    """Coordinates U in the span of the N feature rows."""

    def __init__(self, features: Features) -> None:
        """Builds K = Phi Phi', (..., N, N)."""
        A = features.A
        self.features = features
        self.gram = A @ A.mT if features.weight else A.new_zeros(*A.shape[:-1], A.shape[-2])
        if features.bias:
            self.gram += 1

    def to(self, dtype: torch.dtype) -> "Span":
        """The same in another dtype."""
        return Span(self.features.to(dtype))

    @cached_property
    def rounding(self) -> Tensor:
        """What rounds in x' K x, in units of ||x||^2: N terms, each with the error of K's largest entry; (..., 1)."""
        N = self.gram.shape[-1]
        largest = self.gram.diagonal(dim1=-2, dim2=-1).amax(-1, keepdim=True) if N else self.gram.new_zeros(1)
        return largest * (torch.finfo(self.gram.dtype).eps * math.sqrt(N))

    @cached_property
    def amplification(self) -> Tensor:
        """Factor by which `pull` can enlarge squared rounding errors, (..., 1)."""
        return torch.ones_like(self.rounding)

    @property
    def size(self) -> int:
        """Coefficients of a neuron, N."""
        return self.features.rows

    def when_asked(self, figure: Callable[[], Number]) -> Callable[[], Number]:
        """A figure of tensors (..., N, m): worked out if asked for; the tensors, being small, are kept till then."""
        return figure

    def pull(self, E: Tensor) -> Tensor:
        """Coefficients of Phi' E: E itself, (..., N, m)."""
        return E

    def image(self, U: Tensor) -> Tensor:
        """Change of Z, K U, (..., N, m)."""
        return self.gram @ U

    def inner(self, x: Tensor, y: Tensor, image_y: Tensor) -> Tensor:
        """<x, y> of two displacements, one number a neuron, (..., m): column sums of x * (K y)."""
        del y
        return (x * image_y).sum(-2)

    def squared_norm(self, x: Tensor, image_x: Tensor) -> Tensor:
        """<x, x>, one number a neuron, (..., m); 0 where it is nothing but rounding.

        Where rows of Phi depend on each other, a large x can be next to no displacement.
        """
        squared = (x * image_x).sum(-2)
        return squared * (squared > self.rounding * x.square().sum(-2))  # a product: what is not finite stays so

    def residual(self, U: Tensor, gram_U: Tensor, R: Tensor, RR: Number) -> Number:
        """||R + K U||^2 over all output units, from gram_U = K U; R is its own `pull`. All three are (..., N, m)."""
        del U, RR
        return number((R + gram_U).square().sum())

    def displacement(self, U: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """W' - W (..., m, n) and b' - b (..., m); None for what does not move."""
        return (
            U.mT @ self.features.A if self.features.weight else None,
            U.sum(-2) if self.features.bias else None,
        )

    def low_rank_is_cheaper(self, m: int) -> bool:
        """Whether `backward_change` takes less time than forming W' (m x n) and using that.

        The one costs N^2 (n + m) multiply-adds, the other some m n numbers moved through memory, each of which takes
        the time of about 20 multiply-adds (on CPUs and GPUs alike, within a factor of two).
        """
        N, n = self.features.rows, self.features.inputs
        return N * N * (n + m) < 20 * m * n

    def backward_change(self, D: Tensor, U: Tensor) -> Tensor | None:
        """D (W' - W) by its low rank, (D U') A (..., N, n): W' is never formed."""
        return (D @ U.mT) @ self.features.A if self.features.weight else None


class Direct:
    """Coordinates V = [W' - W, b' - b]' themselves."""

    def __init__(self, features: AnyFeatures) -> None:
        self.features = features

    def to(self, dtype: torch.dtype) -> "Direct":
        """The same in another dtype."""
        return Direct(self.features.to(dtype))

    @property
    def size(self) -> int:
        """Coefficients of a neuron, n."""
        return self.features.size

    @cached_property
    def gram(self) -> Tensor:
        """Phi' Phi, (..., n, n); conjugate gradients never ask for it."""
        return self.features.sharing.total(self.features.gram(), symmetric=True)

    @cached_property
    def amplification(self) -> Tensor:
        """Factor by which `pull` can enlarge squared rounding errors, ||Phi||^2, (..., 1)."""
        return self.features.sharing.total(self.features.squared_norm()).unsqueeze(-1)

    @property
    def rounding(self) -> Tensor:
        """None, as squared norms are sums of squares; (..., 1)."""
        return torch.zeros_like(self.amplification)

    def when_asked(self, figure: Callable[[], Number]) -> Callable[[], Number]:
        """A figure of tensors (..., N, m): worked out now, as the tensors are too large to keep."""
        now = figure()
        return lambda: now

    def pull(self, E: Tensor) -> Tensor:
        """Phi' E, (..., n, m)."""
        return self.features.sharing.total(self.features.pull(E))

    def image(self, V: Tensor) -> Tensor:
        """Change of Z, Phi V, (..., N, m)."""
        return self.features.image(V)

    def inner(self, x: Tensor, y: Tensor, image_y: Tensor) -> Tensor:
        """<x, y> of two displacements, one number a neuron, (..., m): column sums of x * y."""
        del image_y
        return (x * y).sum(-2)

    def squared_norm(self, x: Tensor, image_x: Tensor) -> Tensor:
        """<x, x>, one number a neuron, (..., m)."""
        del image_x
        return x.square().sum(-2)

    def residual(self, V: Tensor, gram_V: Tensor, rhs: Tensor, RR: Number) -> Number:
        """||R + Phi V||^2 over all output units, from gram_V = Phi^T Phi V, rhs = Phi^T R and ||R||^2.

        V, gram_V and rhs are (..., n, m). Expanded so that nothing of size N x m is formed:
        ||R||^2 + 2 <Phi^T R, V> + <V, Phi^T Phi V>.
        """
        return RR + number((V * (2 * rhs + gram_V)).sum())

    def displacement(self, V: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """W' - W (..., m, n) and b' - b (..., m); None for what does not move."""
        n = V.shape[-2] - self.features.bias
        return (
            V[..., :n, :].mT if self.features.weight else None,
            V[..., -1, :] if self.features.bias else None,
        )


Coordinates = Span | Direct


def smaller_side(features: AnyFeatures) -> Coordinates:
    """The coordinates with the smaller Gram matrix: N x N (span, if all rows are here) or n x n (direct)."""
    return Span(features) if isinstance(features, Features) and features.spanned else Direct(features)
