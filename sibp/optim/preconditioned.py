"""A proximal direction inside any torch optimizer: SIBP in Adam, ProxBP in Muon, K-FAC in Nesterov's SGD."""

import contextlib
import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sibp.capture.compiler import run_eagerly
from sibp.optim.base import TappedOptimizer
from sibp.optim.fallback import Conversions, step_within
from sibp.optim.proximal import ProximalOptimizer
from sibp.optim.scaling import refuse_scaling, step_supports_amp_scaling

MakeOuter = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
"""Makes the outer optimizer from all parameters of the direction."""


class Preconditioned(torch.optim.Optimizer):
    r"""A torch optimizer that uses the displacements of a proximal method as its gradients.

    The direction's subproblems are the preconditioner: `backward` leaves $W_{\text{old}} - W_{\text{new}}$ in `.grad`,
    and the outer optimizer treats it like a gradient (momentum, Adam's scaling, Muon's orthogonalisation, weight
    decay):

        direction = SIBP(model, lr=0.3, prox_weight=1.0)
        opt = Preconditioned(direction, lambda params: torch.optim.Adam(params, lr=1e-3))
        opt.zero_grad()
        F.cross_entropy(model(x), y).backward()
        opt.step()

    `torch.optim.SGD` with lr = 1 gives the direction's own steps. The param groups are the outer optimizer's, so
    schedulers change its learning rate; the direction's settings (`lr`, the step on the neurons; `prox_weight`) are in
    `direction.param_groups`. `.grad` may be clipped before `step`. Outer optimizers that compare the slope with the
    loss (L-BFGS with a line search) are unsuitable, since a displacement is no gradient.

    Parameters without a proximal subproblem (norms, embeddings, modules named in `explicit`) are stepped by the outer
    optimizer on their ordinary gradients. The direction's fallback is not used.

    Args:
        direction: `SIBP(model, ...)`, `ProxBP` or any other tapped method of `sibp.optim` without a line search. From
            then on, its own `step` raises.
        outer: creates the outer optimizer from a list of all parameters of the direction, in the model's order. It may
            split them into groups, and add parameters that the direction does not have.

    Attributes:
        direction: fills `.grad`.
        outer: takes the steps; its `param_groups` and `state` are shared.

    Raises:
        TypeError: if `direction` is not such an optimizer, or `outer` does not return a torch optimizer.
        ValueError: if the direction has a line search, a weight decay or a fallback of its own, or if the outer
            optimizer does not step all parameters of the direction.
    """

    _step_supports_amp_scaling = step_supports_amp_scaling

    def __init__(self, direction: TappedOptimizer, outer: MakeOuter) -> None:
        _check(direction, outer)
        names = direction.become_direction()
        made = outer(list(names))
        if not isinstance(made, torch.optim.Optimizer) or isinstance(made, TappedOptimizer | Preconditioned):
            raise TypeError(
                f"Preconditioned: outer has to make a torch optimizer that steps on gradients, but made a "
                f"{type(made).__name__}."
            )
        _check_all_stepped(made, direction, names)
        for group in made.param_groups:
            if all(names.get(p) is not None for p in group["params"]):
                group.setdefault("param_names", [names[p] for p in group["params"]])
        super().__init__(made.param_groups, made.defaults)
        self.direction, self.outer = direction, made
        self._conversions = Conversions()
        self._share()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Steps the outer optimizer on the displacements of one or more backward passes.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.

        Returns:
            The result of the outer optimizer's `step`: the closure's loss, or None.

        Raises:
            RuntimeError: if `.grad` of one of the direction's layers holds anything but displacements that no step has
                applied yet; see `TappedOptimizer.step`.
        """
        refuse_scaling(self, self._name())
        return self._step(closure)

    @run_eagerly
    def _step(self, closure: Callable[[], Any] | None) -> Any:
        """Checks `.grad`, and steps the outer optimizer."""
        if closure is None:
            self._before_step()
            result = step_within(self.outer)
        else:
            result = step_within(self.outer, self._checked(closure))
        self.direction.after_step()
        return result

    def _checked(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure, refusing gradients that are not displacements at every call."""

        def checked() -> Any:
            loss = closure()
            self._before_step()
            return loss

        return checked

    def _before_step(self) -> None:
        """Refuses gradients that are not displacements; converts the state if the model was converted."""
        self.direction.before_step()
        if self._conversions.found(self.param_groups):
            super().load_state_dict(super().state_dict())

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients of all parameters, as in torch."""
        self.direction.passes.forget()
        super().zero_grad(set_to_none)
        if set_to_none:
            self.direction.layers.mark_cleared()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters of the model to the direction and to the outer optimizer.

        Args:
            param_group: {"params": parameters of the model, "lr": ...} with the outer optimizer's settings, and under
                "direction" a dict of the direction's settings, if they differ from its defaults.

        Raises:
            TypeError, ValueError: as the two optimizers do, for example if one of them already has the parameters.
        """
        if "direction" not in vars(self):  # called by the constructor, for groups that both already have
            super().add_param_group(param_group)
            return
        outer = dict(param_group)
        settings = outer.pop("direction", {})
        params = [outer["params"]] if isinstance(outer["params"], torch.Tensor) else list(outer["params"])
        taken = {id(p) for group in self.param_groups for p in group["params"]}
        if any(id(p[1] if isinstance(p, tuple) else p) in taken for p in params):
            raise ValueError("some parameters appear in more than one parameter group")
        self.direction.add_param_group({**settings, "params": params})
        self.outer.add_param_group({**outer, "params": params})
        self._share()

    # -- state ------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The outer optimizer's `state_dict` in torch's format, with the direction's under "direction"."""
        return {**super().state_dict(), "direction": self.direction.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a `state_dict`.

        Args:
            state_dict: of the same direction in the same outer optimizer, for a model of the same layers. Without
                "direction" (which `torch.distributed.checkpoint` drops), SIBP and ProxBP keep their settings.

        Raises:
            ValueError: if it belongs to another optimizer or model, or lacks the direction's running statistics.
        """
        for index, group in enumerate(state_dict["param_groups"]):
            method = group.get("method", "another optimizer")
            if method != self._name():
                raise ValueError(
                    f"{self._name()}: group {index} of this state_dict belongs to {method}; "
                    "load the state of the same direction in the same outer optimizer."
                )
        if "direction" in state_dict:
            self.direction.load_state_dict(state_dict["direction"])
        elif not isinstance(self.direction, ProximalOptimizer):
            raise ValueError(
                f"{self._name()}: this state_dict has no 'direction', and {type(self.direction).__name__} has running "
                "statistics; save all of state_dict()."
            )
        super().load_state_dict(copy.deepcopy(state_dict))  # torch's method would share tensors with its argument

    def _share(self) -> None:
        """Shares the outer optimizer's groups and state, and writes this optimizer's name into the groups."""
        for group in self.outer.param_groups:
            group["method"] = self._name()
        self.param_groups, self.state = self.outer.param_groups, self.outer.state

    def __getstate__(self) -> dict[str, Any]:
        """Includes both optimizers, for `deepcopy` and `pickle`."""
        return {**super().__getstate__(), "direction": self.direction, "outer": self.outer}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickling and deepcopy call this with all attributes, `load_state_dict` with groups and state only."""
        if "outer" in state:
            super().__setstate__(state)
            self.direction.become_direction()
        else:
            self.outer.__setstate__(state)
        self._share()
        self._conversions = Conversions(self.param_groups)

    # -- for users --------------------------------------------------------------------------------------------------

    def paused(self) -> contextlib.AbstractContextManager[None]:
        """A context without taps; see `TappedOptimizer.paused`."""
        return self.direction.paused()

    def remove(self) -> None:
        """Restores the model; afterwards the optimizer cannot step."""
        self.direction.remove()

    def summary(self) -> str:
        """A table of the model's layers; the outer optimizer steps the "explicit" ones on ordinary gradients."""
        return f"{type(self.outer).__name__} on the direction of {self.direction.summary()}"

    def solver_stats(self) -> dict[str, dict[str, float]]:
        """Metrics of the direction's solver in the last backward pass; empty if it reports none."""
        return self.direction.solver_stats() if isinstance(self.direction, ProximalOptimizer) else {}

    def _name(self) -> str:
        return f"Preconditioned({type(self.direction).__name__}, {type(self.outer).__name__})"

    def __repr__(self) -> str:
        """The groups, and the table of layers."""
        return f"{super().__repr__()}\n{self.summary()}"


def _check(direction: Any, outer: Any) -> None:
    """Refuses an invalid `direction` or `outer`; see `Preconditioned`."""
    if not isinstance(direction, TappedOptimizer):
        raise TypeError(
            f"Preconditioned: direction is a {type(direction).__name__}; give the proximal optimizer of the model: "
            "Preconditioned(SIBP(model, ...), lambda params: torch.optim.Adam(params, lr=1e-3))."
        )
    method = type(direction).__name__
    if isinstance(outer, torch.optim.Optimizer) or not callable(outer):
        raise TypeError(
            f"Preconditioned: outer is a {type(outer).__name__}; give a function that makes it, such as "
            "lambda params: torch.optim.Adam(params, lr=1e-3)."
        )
    if getattr(direction, "line_search", False):
        raise ValueError(
            f"Preconditioned: {method} searches along its own step, but the outer optimizer takes another one; use "
            "SIBP without a line search."
        )
    if any(group.get("weight_decay") for group in direction.param_groups if group["update"] == "proximal"):
        raise ValueError(
            f"Preconditioned: weight_decay of {method} would have no effect; give it to the outer optimizer."
        )
    if direction.groups.fallback.given:
        raise ValueError(
            f"Preconditioned: fallback of {method} would have no effect, as the outer optimizer steps all parameters; "
            "leave it out."
        )


def _check_all_stepped(made: torch.optim.Optimizer, direction: TappedOptimizer, params: dict[Any, Any]) -> None:
    """Refuses an outer optimizer that does not step all parameters."""
    stepped = {id(p) for group in made.param_groups for p in group["params"]}
    for name, p in direction.model.named_parameters():
        if p in params and id(p) not in stepped:
            raise ValueError(
                f"Preconditioned: {type(made).__name__} does not step {name}, which {type(direction).__name__} has; "
                "let outer take all parameters that it is given, or give the direction params= without this one."
            )
