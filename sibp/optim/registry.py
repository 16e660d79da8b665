"""The tapped layers of an optimizer, and the check that it may apply their `.grad`."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from sibp.capture.tap import Owner, Tap


class Pending(NamedTuple):
    """A `.grad` whose displacements no step has applied yet.

    Attributes:
        tap: the layer's tap.
        key: the parameter's key, "weight" or "bias".
        parameter: the parameter.
        grad: its `.grad`.
    """

    tap: Tap
    key: str
    parameter: nn.Parameter
    grad: Tensor

    def remains(self) -> bool:
        """Whether the displacements are still in `.grad`, alone or with later ones added to them."""
        return self.parameter.grad is self.grad and not self.tap.displacements.started_from_zero(self.key)


class LayerRegistry:
    """The tapped layers of one optimizer.

    Attributes:
        taps: the taps, by the layer's name.
        group_indices: index of the layer's group in `param_groups`, by the layer's name.
    """

    def __init__(self) -> None:
        self.taps: dict[str, Tap] = {}
        self.group_indices: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.taps)

    def __iter__(self) -> Iterator[Tap]:
        return iter(self.taps.values())

    def add(self, tap: Tap, group: int, kept_owner: Owner | None) -> None:
        """Taps a layer.

        Args:
            tap: the layer's tap, not yet installed.
            group: index of its group in `param_groups`.
            kept_owner: the optimizer, if the tap has to keep it alive: nothing else may refer to one that is never
                stepped. Otherwise None.
        """
        self.taps[tap.name], self.group_indices[tap.name] = tap, group
        tap.kept_owner = kept_owner
        tap.install()

    def regroup(self, kept: Sequence[int]) -> None:
        """Keeps only the groups at the indices `kept`."""
        self.group_indices = {name: kept.index(index) for name, index in self.group_indices.items()}

    def release(self) -> None:
        """Drops the references that keep the optimizer alive."""
        for tap in self:
            tap.kept_owner = None

    def remove(self) -> None:
        """Removes all taps, which restores the layers' classes."""
        for tap in self:
            tap.remove()

    def replaced(self, model: nn.Module) -> set[str]:
        """Names of layers that were replaced, or tapped by another optimizer, after they were tapped.

        Args:
            model: the optimizer's model.
        """
        modules = dict(model.named_modules())
        return {
            tap.name
            for tap in self
            if tap.replaced is not None or not tap.installed or modules.get(tap.name) is not tap.module
        }

    def check_gradients(self, method: str, *, frozen: bool) -> None:
        """Checks that all layers still belong to the optimizer, and that `.grad` contains only displacements.

        Args:
            method: the optimizer's name.
            frozen: whether a step moves frozen parameters that have a `.grad`, as torch's optimizers do.

        Raises:
            RuntimeError: if a layer was replaced or has another optimizer, or if its `.grad` contains anything else.
        """
        for tap in self:
            _check_gradients(tap, method, frozen)

    def pending(self) -> list[Pending]:
        """The `.grad` tensors whose displacements no step has applied yet; watches them for `Pending.remains`."""
        held = [Pending(tap, key, p, p.grad) for tap in self for key, p in tap.parameters.items() if p.grad is not None]
        pending = [each for each in held if each.tap.displacements.is_applicable(each.key, each.grad)]
        for each in pending:
            each.tap.displacements.watch(each.key)
        return pending

    def mark_cleared(self) -> None:
        """Records that every `.grad` was set to None."""
        for tap in self:
            tap.displacements.clear()

    def unmark_applied(self) -> None:
        """Undoes `mark_applied`, after a step that raised and was undone."""
        for tap in self:
            tap.displacements.unmark_applied()

    def mark_applied(self) -> None:
        """Records that `.grad` has been applied, so that no step applies it again."""
        for tap in self:
            for key, p in tap.parameters.items():
                if p.grad is not None:
                    tap.displacements.mark_applied(key, p.grad)


def _check_gradients(tap: Tap, method: str, frozen: bool) -> None:
    here = f"layer '{tap.name}'"
    tap.check_not_replaced(method)
    if not tap.installed:
        raise RuntimeError(
            f"{here} no longer belongs to this {method}: it was removed, or another optimizer was made for the "
            "same model. Step the newer one."
        )
    for key, p in tap.parameters.items():
        if p.grad is None or tap.displacements.is_applicable(key, p.grad) or not (p.requires_grad or frozen):
            continue
        if tap.displacements.was_applied(key, p.grad) and p.grad.any():
            raise RuntimeError(
                f"{here}: step() was called again without a backward pass in between, which would apply the same "
                "update twice."
            )
        fault = tap.displacements.fault(key, p.grad)
        if fault is not None:
            raise RuntimeError(
                f"{here}: {key}.grad contains something other than displacements of this {method}: it {fault}. "
                "Call zero_grad() before the backward pass that is to be applied."
            )
