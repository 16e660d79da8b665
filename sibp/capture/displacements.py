"""Tracks `.grad` of tapped parameters: only the optimizer's own displacements may be applied."""

from dataclasses import dataclass

from torch import Tensor, nn

from sibp.internals import version

PAUSED = "comes from a backward pass inside paused()"
OLDER = (
    "was there before the first backward pass of this optimizer, or was assigned by hand (only changes in place, as "
    "clipping makes them, keep a displacement)"
)
APPLIED = "still holds the displacement of the last step: call zero_grad() before backward()"


@dataclass(slots=True)
class _Held:
    """One parameter's `.grad`, as the last accumulation left it.

    Attributes:
        fault: what it holds besides displacements, as the end of a sentence; None if nothing.
        memory: its address.
        version: torch's version counter; clipping and scaling increase it, which is allowed.
        applied: whether a step has applied it.
    """

    fault: str | None
    memory: int
    version: int
    applied: bool = False

    def is_in(self, grad: Tensor) -> bool:
        """Whether `grad` is still the tensor that was accumulated into."""
        return self.memory == grad.data_ptr()


class Displacements:
    """The record of one tapped layer, by the parameter's key ("weight" or "bias").

    Autograd calls `before` and `after` around every accumulation, whatever its source. In-place changes by the user
    (clipping, scaling, averaging) are not tracked, and allowed.
    """

    def __init__(self) -> None:
        self._held: dict[str, _Held] = {}
        self._fault: dict[str, str | None] = {}
        self._began: dict[str, bool | None] = {}  # watched parameters: whether the next accumulation began at 0

    def watch(self, key: str) -> None:
        """Notes for `began_at_zero` what the next accumulation adds to."""
        self._began[key] = None

    def began_at_zero(self, key: str) -> bool:
        """Whether the first accumulation since `watch` found no gradient, or one that was zeroed in place."""
        return self._began.pop(key, None) is True

    def clear(self) -> None:
        """Forgets all gradients: they were set to None, and their memory may hold others next."""
        self._held.clear()

    def not_applied(self) -> None:
        """Takes `applied` back."""
        for held in self._held.values():
            held.applied = False

    def before(self, key: str, parameter: nn.Parameter, fault: str | None) -> None:
        """A gradient is about to be accumulated into `parameter.grad`.

        Args:
            key: the parameter's.
            parameter: with its `.grad` before the accumulation.
            fault: why the gradient is not a displacement; None if it is one.
        """
        grad, held = parameter.grad, self._held.get(key)
        if key in self._began and self._began[key] is None:
            self._began[key] = grad is None or not grad.any()
        if grad is None:
            there = None
        elif held is None or not held.is_in(grad):
            there = OLDER
        else:
            there = APPLIED if held.applied else held.fault
        if there is not None and grad is not None and not grad.any():
            there = None  # zeroed in place
        self._fault[key] = there or fault

    def after(self, key: str, grad: Tensor) -> None:
        """The gradient was accumulated; `grad` is the sum."""
        self._held[key] = _Held(self._fault.pop(key, None), grad.data_ptr(), version(grad))

    def only(self, key: str, grad: Tensor) -> bool:
        """Whether `grad` holds only displacements, none of them applied; if not, `fault` says why."""
        held = self._held.get(key)
        return held is not None and held.fault is None and not held.applied and held.memory == grad.data_ptr()

    def fault(self, key: str, grad: Tensor) -> str | None:
        """Why `grad` must not be applied, as the end of a sentence; None if it may be."""
        held = self._held.get(key)
        if held is None or not held.is_in(grad):
            found = OLDER
        elif held.applied:
            found = APPLIED
        else:
            found = held.fault
        return found if found is not None and grad.any() else None

    def again(self, key: str, grad: Tensor) -> bool:
        """Whether exactly this `grad` was applied."""
        held = self._held.get(key)
        return held is not None and held.applied and held.is_in(grad) and held.version == version(grad)

    def applied(self, key: str, grad: Tensor) -> None:
        """A step has applied `grad`."""
        held = self._held.setdefault(key, _Held(None, grad.data_ptr(), 0))
        held.applied, held.version, held.memory = True, version(grad), grad.data_ptr()
