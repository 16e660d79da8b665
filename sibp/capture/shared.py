"""Features shared by layers with the same input, such as query, key and value layers, which need one Gram matrix."""

import weakref
from collections.abc import Callable, Hashable

from torch import Tensor

from sibp.internals import version
from sibp.prox.operators import FeatureOperator


class SharedInput:
    """The input of one or more layers in a forward pass, as it was when they were called.

    The first backward call of these layers creates the features; the others use the same features, Gram matrix and
    factors (`FeatureOperator.kept`). The last call frees them. If a backward pass skips some of the layers, the
    features are kept until the graph is freed.

    Attributes:
        calls: number of layers' forward calls with this input.
    """

    def __init__(self, x: Tensor) -> None:
        self.calls = 0
        self._x, self._version = weakref.ref(x), version(x)
        self._ended_calls = 0
        self._known: tuple[Tensor, dict[Hashable, FeatureOperator]] | None = None

    def matches(self, x: Tensor) -> bool:
        """Whether `x` is this tensor, and has not changed since the record was made."""
        return self._x() is x and self._version == version(x)

    def features(self, x: Tensor, key: Hashable, make: Callable[[], FeatureOperator]) -> FeatureOperator:
        """A layer's features, created now or by an earlier layer with the same key.

        Args:
            x: the input that the backward call received; a hook may have replaced it.
            key: what the features depend on besides x; None if the layer shares nothing.
            make: creates the features.
        """
        if self.calls < 2 or key is None:
            return make()
        known = self._known
        if known is None or not _same(known[0], x):
            self._known = known = (x, {})  # holds x, so that no other tensor can reuse its address
        if key not in known[1]:
            known[1][key] = make().keeping()
        return known[1][key]

    def end_call(self) -> None:
        """Records the end of a layer's backward call; the last one frees the features."""
        self._ended_calls += 1
        if self._ended_calls >= self.calls:
            self._ended_calls, known, self._known = 0, self._known, None
            for features in known[1].values() if known is not None else ():
                features.kept = None


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two live tensors are the same, or identical views of the same memory."""
    return a is b or (
        (a.data_ptr(), a.shape, a.stride(), a.dtype, a.device) == (b.data_ptr(), b.shape, b.stride(), b.dtype, b.device)
        and version(a) == version(b)
    )
