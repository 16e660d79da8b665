"""Tracks what `.grad` of a tapped parameter contains, since a step may apply the optimizer's own displacements only."""

import weakref
from dataclasses import dataclass

from torch import Tensor, nn

from sibp.internals import version

PAUSED = "comes from a backward pass inside paused()"
OLDER = (
    "was there before the first backward pass of this optimizer, or was assigned by hand (change displacements only in "
    "place, as clipping does)"
)
APPLIED = "still holds the displacement of the last step: call zero_grad() before backward()"


@dataclass(slots=True)
class _GradRecord:
    """One parameter's `.grad`, as the last accumulation left it.

    Attributes:
        fault: what it contains besides displacements, as the end of a sentence; None if nothing.
        tensor: a reference to the tensor. Its address does not identify it, as freed memory may hold another gradient.
        memory: the address of its data, which `p.grad.data = ...` changes.
        version: torch's version counter at that time. Clipping and scaling increase it, which is allowed.
        applied: whether a step has applied it.
    """

    fault: str | None
    tensor: weakref.ref[Tensor]
    memory: int
    version: int
    applied: bool = False

    @classmethod
    def of(cls, grad: Tensor, fault: str | None, *, applied: bool = False) -> "_GradRecord":
        """The record of a `.grad` as it is now."""
        return cls(fault, weakref.ref(grad), grad.data_ptr(), version(grad), applied)

    def refers_to(self, grad: Tensor) -> bool:
        """Whether `grad` is the tensor that the last accumulation added to."""
        return self.tensor() is grad and self.memory == grad.data_ptr()


class Displacements:
    """The record of one tapped layer's `.grad` tensors, by the parameter's key ("weight" or "bias").

    Hooks call `before_accumulation` and `after_accumulation` around every accumulation, whatever its source. In-place
    changes by the user (clipping, scaling, averaging) are allowed, and not tracked.
    """

    def __init__(self) -> None:
        self._records: dict[str, _GradRecord] = {}
        self._fault: dict[str, str | None] = {}
        # For watched parameters, whether the next accumulation starts from 0; None until it happens.
        self._started_from_zero: dict[str, bool | None] = {}

    def watch(self, key: str) -> None:
        """Makes the next accumulation record whether it starts from zero; see `started_from_zero`."""
        self._started_from_zero[key] = None

    def started_from_zero(self, key: str) -> bool:
        """Whether the first accumulation since `watch` found no `.grad`, or one that was zeroed in place."""
        return self._started_from_zero.pop(key, None) is True

    def clear(self) -> None:
        """Forgets all gradients, because they were set to None; one that the user kept no longer counts."""
        self._records.clear()

    def unmark_applied(self) -> None:
        """Undoes `mark_applied`."""
        for record in self._records.values():
            record.applied = False

    def before_accumulation(self, key: str, parameter: nn.Parameter, fault: str | None) -> None:
        """Records that a gradient is about to be accumulated into `parameter.grad`.

        Args:
            key: the parameter's key.
            parameter: the parameter, with its `.grad` before the accumulation.
            fault: why the gradient is not a displacement; None if it is one.
        """
        grad, record = parameter.grad, self._records.get(key)
        if key in self._started_from_zero and self._started_from_zero[key] is None:
            self._started_from_zero[key] = grad is None or not grad.any()
        if grad is None:
            existing = None
        elif record is None or not record.refers_to(grad):
            existing = OLDER
        else:
            existing = APPLIED if record.applied else record.fault
        if existing is not None and grad is not None and not grad.any():
            existing = None  # zeroed in place
        self._fault[key] = existing or fault

    def after_accumulation(self, key: str, grad: Tensor) -> None:
        """Records that the gradient was accumulated; `grad` is the sum."""
        self._records[key] = _GradRecord.of(grad, self._fault.pop(key, None))

    def is_applicable(self, key: str, grad: Tensor) -> bool:
        """Whether `grad` contains only displacements, none of them applied; if not, `fault` says why."""
        record = self._records.get(key)
        return record is not None and record.fault is None and not record.applied and record.refers_to(grad)

    def fault(self, key: str, grad: Tensor) -> str | None:
        """Why `grad` must not be applied, as the end of a sentence; None if it may be."""
        record = self._records.get(key)
        if record is None or not record.refers_to(grad):
            found = OLDER
        elif record.applied:
            found = APPLIED
        else:
            found = record.fault
        return found if found is not None and grad.any() else None

    def was_applied(self, key: str, grad: Tensor) -> bool:
        """Whether a step has applied this `grad`, and nothing has changed it since."""
        record = self._records.get(key)
        return record is not None and record.applied and record.refers_to(grad) and record.version == version(grad)

    def mark_applied(self, key: str, grad: Tensor) -> None:
        """Records that a step has applied `grad`."""
        record = self._records.get(key)
        self._records[key] = _GradRecord.of(grad, None if record is None else record.fault, applied=True)
