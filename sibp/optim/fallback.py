"""The optimizer of the parameters without a proximal subproblem, as a part of a proximal optimizer."""

import inspect
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

MakeFallback = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of the parameters without a proximal subproblem, from a list of them."""

FALLBACK_LR = 1e-3
_ROUNDING = 1e-6  # relative rounding error of a learning rate in a float32 tensor, at most


def adam(lr: float) -> MakeFallback:
    """Adam, whose defaults suit norms and embeddings.

    Args:
        lr: the learning rate, >= 0.
    """
    return partial(torch.optim.Adam, lr=lr)


DEFAULT = adam(FALLBACK_LR)


class Fallback:
    """A torch optimizer whose param groups and state belong to another optimizer.

    Args:
        make: creates that optimizer from the first parameters; None for Adam with learning rate `FALLBACK_LR`.

    Attributes:
        given: whether the user chose `make`.
        optimizer: the optimizer; None until there are parameters for it.

    Raises:
        TypeError: if `make` is not callable.
    """

    def __init__(self, make: MakeFallback | None) -> None:
        if make is not None and not callable(make):
            raise TypeError(
                f"fallback is {type(make).__name__}, but has to make an optimizer: give a function of the parameters, "
                "such as fallback=lambda params: torch.optim.AdamW(params, lr=1e-3)."
            )
        self.given = make is not None
        self.make = make or DEFAULT
        self.optimizer: torch.optim.Optimizer | None = None

    def add(
        self, params: list[nn.Parameter], names: dict[nn.Parameter, str], options: dict[str, Any]
    ) -> list[dict[str, Any]]:
        """Adds parameters. The first call creates the optimizer and its groups; each later call adds one group.

        Args:
            params: parameters that are in no group yet.
            names: their names; empty if they have none.
            options: settings of the groups, named as in the fallback.

        Returns:
            The new groups.

        Raises:
            TypeError: if `make` returns no optimizer, or one that needs a closure.
            ValueError: if the optimizer has other parameters, or lacks one that requires a gradient.
        """
        if self.optimizer is None:
            self.optimizer = _checked(self.make(params), params)
            new = [group for group in self.optimizer.param_groups if group["params"]]
            for group in new:
                group.update(options)
        else:
            self.optimizer.add_param_group({"params": [(names[p], p) for p in params] if names else params, **options})
            new = self.optimizer.param_groups[-1:]
        for group in new if names else ():
            group["param_names"] = [names[p] for p in group["params"]]
        return new

    @property
    def name(self) -> str:
        """The optimizer's name, for messages."""
        return type(self.optimizer).__name__

    @property
    def state(self) -> Any:
        """The optimizer's state; empty before it exists."""
        return {} if self.optimizer is None else self.optimizer.state

    def share(self, groups: list[dict[str, Any]], state: Any) -> None:
        """Uses these groups and this state, which belong to the other optimizer."""
        if self.optimizer is not None:
            # As in `load_state_dict`. An optimizer that contains others passes the groups and the state on to them.
            self.optimizer.__setstate__({"state": state, "param_groups": groups})

    def step(self) -> None:
        """Steps as a part of the other optimizer's step, which has already called torch's global hooks."""
        if self.optimizer is not None:
            step_within(self.optimizer)
            for group in self.optimizer.param_groups:
                if isinstance(group, FollowingGroup):
                    group.end_step()

    def __getstate__(self) -> dict[str, Any]:
        """Omits `make` once it has been used: it is often a lambda, which cannot be pickled."""
        make = DEFAULT if self.optimizer is not None else self.make
        return {"given": self.given, "make": make, "optimizer": self.optimizer}


def _checked(optimizer: Any, params: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer, if it has these parameters and can step as a part of another optimizer's step.

    Raises:
        TypeError: if it is not a torch optimizer, or needs a closure, like LBFGS.
        ValueError: if it has other parameters, or lacks one that requires a gradient.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise TypeError(f"fallback returned {type(optimizer).__name__}; it has to return a torch optimizer.")
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    if not {id(p) for p in params if p.requires_grad} <= held <= {id(p) for p in params}:
        raise ValueError(
            f"fallback: {type(optimizer).__name__} has parameters that it was not given, or lacks some of those given: "
            "it has to step exactly the given ones, in one group or several (frozen ones may be missing)."
        )
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        name = type(optimizer).__name__
        raise TypeError(
            f"fallback: {name} evaluates the loss in its step, which a fallback cannot do; leave its parameters out of "
            f"params, and step them with a separate {name}."
        )
    return optimizer


def evaluated(closure: Callable[[], Any] | None) -> Any:
    """The closure's loss, computed with gradients enabled; None if there is no closure."""
    return None if closure is None else torch.enable_grad()(closure)()


def step_within(optimizer: torch.optim.Optimizer, closure: Callable[[], Any] | None = None) -> Any:
    """Steps an optimizer as a part of another one's step, which has already called torch's global hooks.

    Args:
        optimizer: the inner optimizer.
        closure: as for `step`.

    Returns:
        The result of `step`.
    """
    step: Any = type(optimizer).step
    # torch wraps `step` in a function that calls the hooks, and marks it with an attribute.
    inner = step.__wrapped__ if getattr(step, "hooked", False) else step
    return inner(optimizer) if closure is None else inner(optimizer, closure)


class Conversions:
    """Detects that parameters were converted (`model.double()`, `model.cuda()`), so that their state is converted, too.

    To convert its own state, a torch optimizer calls `load_state_dict(state_dict())`.

    Args:
        groups: param groups whose state has the dtype and device of the parameters.
    """

    def __init__(self, groups: Iterable[dict[str, Any]] = ()) -> None:
        self._kinds: dict[Tensor, tuple[torch.dtype, torch.device]] = {}
        self.found(groups)

    def found(self, groups: Iterable[dict[str, Any]]) -> bool:
        """Whether a parameter of the groups has another dtype or device than at the last call."""
        known = self._kinds
        self._kinds = {p: (p.dtype, p.device) for group in groups for p in group["params"]}
        return any(known.get(p, kind) != kind for p, kind in self._kinds.items())


class FollowingGroup(dict[str, Any]):
    """A param group of the fallback, whose learning rate follows schedules of the proximal groups in proportion.

    A scheduler that multiplies learning rates (LambdaLR, StepLR, cosine) also multiplies the fallback's. A scheduler
    that writes one learning rate into all groups (OneCycleLR, a loop over `param_groups`) is meant for the proximal
    groups. The fallback's learning rate is then r_0 r / m, with r the written one, r_0 the fallback's initial one, and
    m the schedule's highest one ("max_lr") or, if there is none, the initial one of the proximal groups.

    Attributes:
        leader: the first proximal group; None if there is none.
        precedes: whether this group comes before `leader` in `param_groups`, so that loops write its rate first.
        written: whether the rate was written since the last step and still has to be compared with the leader's; always
            False unless `precedes`.
    """

    leader: dict[str, Any] | None = None
    precedes: bool = False
    written: bool = False

    @classmethod
    def of(cls, group: dict[str, Any], leader: dict[str, Any] | None, *, precedes: bool) -> "FollowingGroup":
        """The group as a `FollowingGroup`, whose learning rate follows that of `leader`.

        Raises:
            TypeError: if its rate is a tensor.
        """
        following = group if isinstance(group, cls) else cls(group)
        if leader is not None and "lr" in group:
            _refuse_tensor(group["lr"])
            following.setdefault("own_lr", float(group["lr"]))
            following.setdefault("leader_lr", float(leader["lr"]))
        following.leader, following.precedes = leader, precedes
        return following

    def __setitem__(self, key: str, value: Any) -> None:
        """Sets an entry; scales a learning rate that equals the leader's.

        Raises:
            TypeError: if a learning rate that differs from the leader's is a tensor.
        """
        if key != "lr" or self.leader is None or "own_lr" not in self:
            super().__setitem__(key, value)
            return
        self.written = self.precedes
        if not self._scale(value):
            _refuse_tensor(value)
            super().__setitem__(key, value)

    def __getitem__(self, key: str) -> Any:
        """An entry; a learning rate that was written before the leader's is compared with it now."""
        if key == "lr" and self.written:
            self._scale(super().__getitem__(key))
        return super().__getitem__(key)

    def update(self, *entries: Any, **named: Any) -> None:
        """Sets entries, like `dict.update`; scales learning rates like `__setitem__`."""
        for key, value in dict(*entries, **named).items():
            self[key] = value

    def _scale(self, rate: Any) -> bool:
        """If `rate` equals the leader's, sets this group's rate in proportion to it. Returns whether it does."""
        if self.leader is None or not _same(rate, self.leader["lr"]):
            return False
        highest = self.get("max_lr", self["leader_lr"])
        super().__setitem__("lr", self["own_lr"] * float(rate) / highest if highest else 0.0)
        self.written = False
        return True

    def end_step(self) -> None:
        """Ends the comparison of a written rate: if the leader's rate equals it later, that is a coincidence."""
        self.written = False


def _same(rate: Any, other: Any) -> bool:
    """Whether two learning rates are equal up to the rounding of a tensor."""
    return math.isclose(float(rate), float(other), rel_tol=_ROUNDING)


def _refuse_tensor(rate: Any) -> None:
    """Raises TypeError for a learning rate in a tensor."""
    if isinstance(rate, Tensor):
        raise TypeError(
            "fallback: its lr is a tensor. Schedulers change a tensor in place, so the fallback could not follow the "
            f"schedule of the proximal groups in proportion; give a number, such as lr={float(rate):g}."
        )
