"""The layers that an optimizer solves for, and which `.grad` it may apply to them."""

from collections.abc import Iterator, Sequence

from torch import Tensor, nn

from sibp.capture.tap import Owner, Tap


class LayerRegistry:
    """The tapped layers of one optimizer, by name, each with the index of its param group."""

    def __init__(self) -> None:
        self.taps: dict[str, Tap] = {}
        self.places: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self.taps)

    def __iter__(self) -> Iterator[Tap]:
        return iter(self.taps.values())

    def add(self, tap: Tap, place: int, keeper: Owner | None) -> None:
        """Taps a layer.

        Args:
            tap: the layer's tap, not yet installed.
            place: index of its group in `param_groups`.
            keeper: the optimizer, if nothing else may reference it because it is never stepped.
        """
        self.taps[tap.name], self.places[tap.name] = tap, place
        tap.keeps = keeper
        tap.install()

    def regroup(self, kept: Sequence[int]) -> None:
        """Keeps only the groups at the indices `kept`."""
        self.places = {name: kept.index(place) for name, place in self.places.items()}

    def release(self) -> None:
        """Drops the references that keep the optimizer alive."""
        for tap in self:
            tap.keeps = None

    def remove(self) -> None:
        """Restores all layers' own `forward`."""
        for tap in self:
            tap.remove()

    def replaced(self, model: nn.Module) -> set[str]:
        """Names of layers that have since been replaced, or tapped by another optimizer.

        Args:
            model: the optimizer's model.
        """
        modules = dict(model.named_modules())
        return {
            tap.name
            for tap in self
            if tap.replaced is not None or not tap.installed or modules.get(tap.name) is not tap.module
        }

    def refuse_what_is_not_ours(self, method: str) -> None:
        """Refuses layers of another optimizer, replaced ones, and a `.grad` that holds anything but displacements.

        Args:
            method: the optimizer's name.

        Raises:
            RuntimeError: naming the layer.
        """
        for tap in self:
            _refuse_what_is_not_ours(tap, method)

    def pending(self) -> list[tuple[nn.Parameter, Tensor]]:
        """Parameters whose `.grad` holds displacements that no step has applied, with these tensors."""
        held = [(tap, key, p, p.grad) for tap in self for key, p in tap.parameters.items()]
        found = [(tap, key, p, grad) for tap, key, p, grad in held if grad is not None]
        found = [each for each in found if each[0].displacements.only(each[1], each[3])]
        for tap, key, _, _ in found:
            tap.displacements.watch(key)
        return [(p, grad) for _, _, p, grad in found]

    def added_to(self, pending: list[tuple[nn.Parameter, Tensor]]) -> bool:
        """Whether one of these is still in place: added to by a backward pass since `pending`, or left as it was."""
        there = {id(p) for p, before in pending if p.grad is before}
        held = [(tap, key) for tap in self for key, p in tap.parameters.items() if id(p) in there]
        return any(not tap.displacements.began_at_zero(key) for tap, key in held)

    def cleared(self) -> None:
        """Records that every `.grad` was set to None."""
        for tap in self:
            tap.displacements.clear()

    def not_applied(self) -> None:
        """Takes `applied` back, after a step that was undone."""
        for tap in self:
            tap.displacements.not_applied()

    def applied(self) -> None:
        """Records that `.grad` has been applied, so that no step applies it again."""
        for tap in self:
            for key, p in tap.parameters.items():
                if p.grad is not None:
                    tap.displacements.applied(key, p.grad)


def _refuse_what_is_not_ours(tap: Tap, method: str) -> None:
    here = f"layer '{tap.name}'"
    tap.refuse_replaced(method)
    if not tap.installed:
        raise RuntimeError(
            f"{here} no longer belongs to this {method}: it was removed, or another optimizer was made for the "
            "same model. Step the newer one."
        )
    for key, p in tap.parameters.items():
        if p.grad is None or tap.displacements.only(key, p.grad):
            continue
        if tap.displacements.again(key, p.grad) and p.grad.any():
            raise RuntimeError(
                f"{here}: step() was called again without a backward pass in between, which would apply the same "
                "update twice."
            )
        fault = tap.displacements.fault(key, p.grad)
        if fault is not None:
            raise RuntimeError(
                f"{here}: what lies in {key}.grad is not a displacement of this {method}, or not only: it {fault}. "
                "Call zero_grad() before the backward pass that is to be applied."
            )
