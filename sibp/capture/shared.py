"""Features shared by layers with the same input: an attention's query, key and value build one Gram matrix."""

import weakref
from collections.abc import Callable, Hashable

from torch import Tensor

from sibp.internals import version
from sibp.prox.operators import FeatureOperator


class SharedInput:
    """The input of one or more layers of a pass, at the time of their calls.

    The layers' backward calls share the features that the first of them creates, with the Gram matrix and its factors
    (`FeatureOperator.kept`), until the last call has ended. If a backward pass skips some layers, they are kept until
    the graph is freed.

    Attributes:
        layers: number of calls with this input.
    """

    def __init__(self, x: Tensor) -> None:
        self.layers = 0
        self._x, self._version = weakref.ref(x), version(x)
        self._visits = 0
        self._known: tuple[Tensor, dict[Hashable, FeatureOperator]] | None = None

    def of(self, x: Tensor) -> bool:
        """Whether `x` is this tensor, unchanged since."""
        return self._x() is x and self._version == version(x)

    def features(self, x: Tensor, key: Hashable, make: Callable[[], FeatureOperator]) -> FeatureOperator:
        """A layer's features, created now or by an earlier layer with the same key.

        Args:
            x: the input as the backward call has it, which a hook may have replaced.
            key: what else the features depend on; None for a layer that shares nothing.
            make: creates them.
        """
        if self.layers < 2 or key is None:
            return make()
        known = self._known
        if known is None or not _same(known[0], x):
            self._known = known = (x, {})  # keeps x, so that no other tensor can take its address
        if key not in known[1]:
            known[1][key] = make().keeping()
        return known[1][key]

    def leave(self) -> None:
        """Ends a layer's backward call; the last one frees the features."""
        self._visits += 1
        if self._visits >= self.layers:
            self._visits, known, self._known = 0, self._known, None
            for features in known[1].values() if known is not None else ():
                features.kept = None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two live tensors are the same, or identical views of the same memory."""
    return a is b or (
        (a.data_ptr(), a.shape, a.stride(), a.dtype, a.device) == (b.data_ptr(), b.shape, b.stride(), b.dtype, b.device)
        and version(a) == version(b)
    )
