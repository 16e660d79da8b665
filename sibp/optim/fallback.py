"""The optimizer of the parameters that have no proximal subproblem, as a part of a proximal one."""

import inspect
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

MakeFallback = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of the parameters that have no proximal subproblem."""

FALLBACK_LR = 1e-3


def adam(lr: float) -> MakeFallback:
    """Adam, which suits norms and embeddings with no other setting.

    Args:
        lr: its learning rate, >= 0.
    """
    return partial(torch.optim.Adam, lr=lr)


DEFAULT = adam(FALLBACK_LR)


class Fallback:
    """A torch optimizer whose param groups and state belong to another optimizer.

    Args:
        make: makes it, from the first parameters.
    """

    def __init__(self, make: MakeFallback | None) -> None:
        self.given = make is not None
        self.make = make or DEFAULT
        self.optimizer: torch.optim.Optimizer | None = None

    def add(
        self, params: list[nn.Parameter], names: dict[nn.Parameter, str], options: dict[str, Any]
    ) -> dict[str, Any]:
        """Adds parameters, as one group.

        Args:
            params: that no group has yet.
            names: of the parameters; empty if they have none.
            options: settings of their own, by the fallback's names.

        Returns:
            The group.
        """
        if self.optimizer is None:
            self.optimizer = _stepped_alone(self.make(params))
            self.optimizer.param_groups[-1].update(options)
        else:
            given = [(names[p], p) for p in params] if names else params
            self.optimizer.add_param_group({"params": given, **options})
        if names:
            self.optimizer.param_groups[-1]["param_names"] = [names[p] for p in params]
        return self.optimizer.param_groups[-1]

    @property
    def name(self) -> str:
        """The optimizer's, for people."""
        return type(self.optimizer).__name__

    @property
    def state(self) -> Any:
        """The optimizer's state; empty before it is made."""
        return {} if self.optimizer is None else self.optimizer.state

    def share(self, groups: list[dict[str, Any]], state: Any) -> None:
        """Binds to these groups and this state, which belong to the other optimizer."""
        if self.optimizer is not None:
            self.optimizer.param_groups, self.optimizer.state = groups, state

    def step(self) -> None:
        """Steps as a part of the other optimizer's step, for which global hooks have been called already."""
        if self.optimizer is not None:
            step_within(self.optimizer)

    def __getstate__(self) -> dict[str, Any]:
        """Without the factory, often a lambda, which cannot be pickled."""
        make = DEFAULT if self.optimizer is not None else self.make
        return {"given": self.given, "make": make, "optimizer": self.optimizer}


def _stepped_alone(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer, if it steps without a closure: as a part of another one's step it gets none.

    Raises:
        TypeError: if it needs one, as LBFGS does.
    """
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        name = type(optimizer).__name__
        raise TypeError(
            f"fallback: {name} evaluates the loss in its step, which a fallback cannot; leave its parameters out of "
            f"params, and step a {name} of your own for them."
        )
    return optimizer


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The closure's loss, computed with gradients enabled; None if there is no closure."""
    return None if closure is None else torch.enable_grad()(closure)()


def step_within(optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
    """Steps an optimizer as a part of another one, for which global hooks have been called already.

    Args:
        optimizer: the part.
        closure: as for `step`.

    Returns:
        What `step` returns.
    """
    step: Any = type(optimizer).step
    # torch wraps `step` in what calls the hooks, and marks it so.
    inner = step.__wrapped__ if getattr(step, "hooked", False) else step
    return inner(optimizer) if closure is None else inner(optimizer, closure)


class FollowingGroup(dict[str, Any]):
    """A param group of the fallback, whose learning rate follows schedules of the proximal groups in proportion.

    A scheduler that multiplies (LambdaLR, StepLR, cosine) multiplies the fallback's own rate. One that writes the same
    rate into all groups (OneCycleLR, a loop over `param_groups`) means the proximal ones: what it writes here becomes
    the fallback's own rate times the written one over the schedule's highest ("max_lr"), or over the proximal rate at
    the start.

    Attributes:
        leader: the first proximal group; None if there is none.
    """

    leader: dict[str, Any] | None = None

    @classmethod
    def of(cls, group: dict[str, Any], leader: dict[str, Any] | None) -> "FollowingGroup":
        """The group with a learning rate that follows `leader`'s."""
        following = group if isinstance(group, cls) else cls(group)
        if leader is not None and "lr" in group:
            following.setdefault("own_lr", float(group["lr"]))
            following.setdefault("leader_lr", float(leader["lr"]))
        following.leader = leader
        return following

    def __setitem__(self, key: str, value: Any) -> None:
        leader = self.leader
        if key == "lr" and leader is not None and "own_lr" in self and float(value) == float(leader["lr"]):
            highest = self.get("max_lr", self["leader_lr"])
            value = self["own_lr"] * float(value) / highest if highest else 0.0
        super().__setitem__(key, value)
