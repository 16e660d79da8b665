"""The interface between solvers and a layer's features, with fallbacks that form the matrix."""

import math
from collections.abc import Callable, Hashable
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import torch
from torch import Tensor

from sibp.prox.scalars import Flag

if TYPE_CHECKING:
    from sibp.prox.solvers.coordinates import Coordinates

Parts = tuple[Tensor | None, Tensor | None]
"""Displacements of W (..., m, n) and of b (..., m); None for a parameter that is fixed."""
Made = TypeVar("Made")


class FeatureOperator:
    """Phi = [A, 1] (..., N, size): A (..., N, n) is a layer's input as a matrix, the ones stand for its bias.

    A layer is the map Z = A W^T + b. Its subproblem varies the trained parameters only, so Phi has the columns of A if
    the weight is trained, and a column of ones if the bias is. Arrays with a number for each row and output unit,
    (..., N, m), may have their rows along several axes, like the layer's output: (..., *row_shape, m). The groups of a
    convolution are leading axes, with shape `leading`.

    A subclass implements `materialize`, or both `matmat` and `rmatmat`; otherwise its definition raises a TypeError. It
    may replace the fallbacks with faster code.

    Args:
        x: the tensor that contains A's entries.
        inputs: n.
        row_shape: sizes of the axes of rows; their product is N.
        leading: sizes of the axes of groups.
        weight: whether W is trained.
        bias: whether b is trained.
    """

    matrix_free: ClassVar[bool] = True
    """Whether products are cheaper than `materialize`; if not, `materialize` returns the same tensor at each call."""

    def __init__(
        self,
        x: Tensor,
        inputs: int,
        row_shape: tuple[int, ...],
        leading: tuple[int, ...] = (),
        *,
        weight: bool = True,
        bias: bool = True,
    ) -> None:
        self.x = x
        self.inputs, self.row_shape, self.leading = inputs, row_shape, leading
        self.rows = math.prod(row_shape)
        """N."""
        self.weight, self.bias = weight, bias
        self.kept: dict[Hashable, Any] | None = None

    def keeping(self) -> Self:
        """Itself; `once` then caches its results for layers with the same features, until `kept` is set to None."""
        self.kept = {}
        return self

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """The result of `make`; for features shared by several layers, `make` is called once for each key."""
        kept = self.kept
        if kept is None:
            return make()
        if key not in kept:
            kept[key] = make()
        return kept[key]

    def __init_subclass__(cls, **options: Any) -> None:
        """Rejects a subclass that defines no product."""
        super().__init_subclass__(**options)
        own = {name for name in ("materialize", "matmat", "rmatmat") if getattr(cls, name) is not _FALLBACKS[name]}
        if "materialize" not in own and own != {"matmat", "rmatmat"}:
            raise TypeError(f"{cls.__name__} needs a `materialize`, or both `matmat` and `rmatmat`.")

    # -- shape ------------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Columns of Phi: n with a trained weight, one more with a trained bias."""
        return self.weight * self.inputs + self.bias

    @property
    def groups(self) -> int:
        """The number of groups, each with its own feature matrix and output units."""
        return math.prod(self.leading)

    @property
    def spanned(self) -> bool:
        """Whether Phi has at most as many rows as columns, with all rows on this rank and along one axis."""
        return len(self.row_shape) == 1 and self.rows <= self.size

    def moving(self, *, weight: bool, bias: bool) -> Self:
        """The features of the same layer for another choice of trained parameters."""
        return self._changed(weight=weight, bias=bias)

    def to(self, dtype: torch.dtype) -> Self:
        """These features in another dtype."""
        return self if self.x.dtype is dtype else self._changed(x=self.x.to(dtype))

    def units_last(self) -> Self:
        """These features in the fastest form for arrays whose output units are contiguous in memory."""
        return self

    def _changed(self, **attributes: Any) -> Self:
        """A copy with other attributes and an empty cache."""
        copy = object.__new__(type(self))
        kept = {key: value for key, value in vars(self).items() if not _is_cache(type(self), key)}
        vars(copy).update(kept, kept=None, **attributes)
        return copy

    # -- products ---------------------------------------------------------------------------------------------------

    def materialize(self) -> Tensor:
        """Phi itself, (..., N, size)."""
        identity = torch.eye(self.size, dtype=self.x.dtype, device=self.x.device)
        return self.flat(self.matmat(identity.expand(*self.leading, -1, -1)))

    def matmat(self, V: Tensor) -> Tensor:
        """The forward product Phi V, (..., *row_shape, m), from V (..., size, m)."""
        return self.unflat(self.materialize() @ V)

    def rmatmat(self, E: Tensor) -> Tensor:
        """The adjoint product Phi^T E, (..., size, m), from E (..., *row_shape, m)."""
        return self.materialize().mT @ self.flat(E)

    def gram(self) -> Tensor:
        """Phi^T Phi, (..., size, size)."""
        phi = self.materialize()
        return phi.mT @ phi

    def outer_gram(self) -> Tensor:
        """Phi Phi^T, (..., N, N)."""
        phi = self.materialize()
        return phi @ phi.mT

    def squared_norm(self) -> Tensor:
        """||Phi||^2, (...)."""
        return torch.linalg.vector_norm(self.materialize(), dim=(-2, -1)).square()

    def displacement(self, E: Tensor, factor: float = 1.0) -> Parts:
        """`factor` E^T Phi as displacements of W and b, from span coefficients E (..., *row_shape, m)."""
        return self.parts(self.rmatmat(E if factor == 1 else factor * E))

    def displacement_of_weight(self, E: Tensor, factor: float = 1.0) -> Tensor | None:
        """The first part of `displacement`, (..., m, n)."""
        return self.displacement(E, factor)[0]

    def parts(self, V: Tensor) -> Parts:
        """V (..., size, m) as a displacement of W (..., m, n) and b (..., m)."""
        return (
            V[..., : self.inputs, :].mT if self.weight else None,
            V[..., -1, :] if self.bias else None,
        )

    def forward(self, W: Tensor, b: Tensor | None) -> Tensor:
        """The layer's output A W^T + b, (..., *row_shape, m), from W (..., m, n) and b (..., m), trained or not."""
        Z = self.moving(weight=True, bias=False).matmat(W.mT)
        return Z if b is None else Z + self.spread(b)

    # -- rows -------------------------------------------------------------------------------------------------------

    def flat(self, E: Tensor) -> Tensor:
        """E (..., *row_shape, m) with all rows along one axis, (..., N, m)."""
        return E if len(self.row_shape) == 1 else E.flatten(-1 - len(self.row_shape), -2)

    def unflat(self, E: Tensor) -> Tensor:
        """E (..., N, m) with its rows along their axes, (..., *row_shape, m)."""
        return E if len(self.row_shape) == 1 else E.unflatten(-2, self.row_shape)

    def over_rows(self, E: Tensor) -> Tensor:
        """The sum of E (..., *row_shape, m) over all rows, (..., m)."""
        return E.sum(-2) if len(self.row_shape) == 1 else E.sum(tuple(range(-1 - len(self.row_shape), -1)))

    def spread(self, t: Tensor) -> Tensor:
        """One number per output unit, (..., m), reshaped to broadcast over rows."""
        for _ in self.row_shape:
            t = t.unsqueeze(-2)
        return t

    # -- parts on other ranks ----------------------------------------------------------------------------------------

    def total(self, part: Tensor) -> Tensor:
        """The sum over the rows of all ranks, from the sum over the rows of this rank."""
        return part

    def all_units(self, coordinates: "Coordinates", x: Tensor, finite: Flag) -> tuple["Coordinates", Tensor, Flag]:
        """Coefficients of all output units, (..., r, m), from those that this rank solved for; finite if all are.

        Args:
            coordinates: of this rank's coefficients; other ranks may have chosen others.
            x: coefficients.
            finite: whether they are finite.

        Returns:
            The same, in coordinates common to all ranks.
        """
        return coordinates, x, finite

    # -- cost -------------------------------------------------------------------------------------------------------

    def gram_products(self) -> list[tuple[int, int, int]]:
        """The sizes (a, b, c) of the products (a x b) (b x c) that make up `gram`, in each group."""
        return [(self.size, self.rows, self.size)]

    def numbers_copied(self) -> float:
        """Numbers that are read and written to prepare products."""
        return self.x.numel() + self.groups * self.rows * self.size


_FALLBACKS: dict[str, Callable[..., Any]] = {
    name: getattr(FeatureOperator, name) for name in ("materialize", "matmat", "rmatmat")
}


def _is_cache(kind: type, name: str) -> bool:
    return isinstance(getattr(kind, name, None), cached_property)
