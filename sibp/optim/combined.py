"""Several torch optimizers, each with its own parameters, combined into one."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from sibp.optim.fallback import Conversions, evaluated, step_within


class CombinedOptimizer(torch.optim.Optimizer):
    """Steps its parts one after the other, and shares their param groups and state.

    Args:
        parts: optimizers without a common parameter.

    Example:
        >>> a, b = torch.nn.Parameter(torch.ones(1)), torch.nn.Parameter(torch.ones(1))
        >>> both = CombinedOptimizer([torch.optim.SGD([a], lr=0.1), torch.optim.Adam([b], lr=0.2)])
        >>> [group["lr"] for group in both.param_groups]
        [0.1, 0.2]
    """

    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        self.parts: list[torch.optim.Optimizer] = []
        super().__init__([group for part in parts for group in part.param_groups], {})
        self.parts, self._conversions = list(parts), Conversions()
        for part in self.parts:
            self.state.update(part.state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group to the last part.

        Args:
            param_group: as that part takes it; its defaults replace missing settings.

        Raises:
            ValueError: if a parameter is in a group already.
        """
        if self.parts:  # empty while the constructor adds the groups that the parts already have
            param_group = {**self.parts[-1].defaults, **param_group}
        super().add_param_group(param_group)
        if self.parts:
            self.parts[-1].param_groups.append(self.param_groups[-1])
            self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Steps all parts on the gradients of one backward pass.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.

        Returns:
            The closure's loss, or None.
        """
        loss = evaluated(closure)
        if self._conversions.found(self.param_groups):
            self.load_state_dict(self.state_dict())
        for part in self.parts:
            step_within(part)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """Includes the parts, for `deepcopy` and `pickle`."""
        return {**super().__getstate__(), "parts": self.parts}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Extends the base class: the parts share the loaded groups and state."""
        super().__setstate__(state)
        self._share()
        self._conversions = Conversions(self.param_groups)

    def _share(self) -> None:
        first = 0
        for part in self.parts:
            end = first + len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first:end], self.state
            first = end
