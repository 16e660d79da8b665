"""Param groups of a tapped optimizer: proximal ones, whose layers are solved for, and the fallback's explicit ones."""

from collections.abc import Collection
from typing import Any, NamedTuple

import torch
from torch import nn

from sibp.optim.checks import read_params
from sibp.optim.fallback import Fallback, FollowingGroup, MakeFallback


class NewParameters(NamedTuple):
    """A param group that the user adds, before it is divided into a proximal and an explicit group.

    Attributes:
        params: all of its parameters.
        names: their names; empty if they have none.
        settings: the group's other entries.
    """

    params: list[nn.Parameter]
    names: dict[nn.Parameter, str]
    settings: dict[str, Any]

    def named(self, params: list[nn.Parameter]) -> list[Any]:
        """Some of the parameters, as torch.optim takes them: pairs of name and tensor, if they have names."""
        return [(self.names[p], p) for p in params] if self.names else params


class ParamGroups:
    """Separates the proximal groups, whose layers have subproblems, from the explicit ones, which the fallback steps.

    The groups themselves are in `optimizer.param_groups`, where torch and its schedulers expect them. The optimizer is
    an argument of each call: an attribute would be a reference cycle, which keeps a model in memory.

    Args:
        make: creates the fallback; None for the default.

    Attributes:
        fallback: steps the explicit groups.
        stepped_elsewhere: parameters that are in no group because another optimizer steps them, with their names or
            None.
    """

    def __init__(self, make: MakeFallback | None) -> None:
        self.fallback = Fallback(make)
        self.stepped_elsewhere: dict[nn.Parameter, str | None] = {}

    def read(
        self, optimizer: torch.optim.Optimizer, param_group: dict[str, Any], known: Collection[nn.Parameter]
    ) -> NewParameters:
        """Checks a param group.

        Args:
            optimizer: the optimizer that will own it.
            param_group: as the user passed it.
            known: the model's parameters.

        Raises:
            TypeError: if it is not a dict, or its parameters are in a set or not tensors.
            ValueError: for parameters that are not the model's or are in two groups, and if only some have names.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        method = type(optimizer).__name__
        params, names = read_params(param_group["params"], method)
        taken = {id(p) for group in optimizer.param_groups for p in group["params"]}
        if len({id(p) for p in params} | taken) < len(params) + len(taken):
            raise ValueError("some parameters appear in more than one parameter group")
        for p in params:
            if p not in known:
                raise ValueError(
                    f"{method}: a parameter of shape {tuple(p.shape)} is not the model's; "
                    "groups can only hold parameters of the model that the optimizer was made for."
                )
        return NewParameters(params, names, {key: value for key, value in param_group.items() if key != "params"})

    def add_explicit(
        self, optimizer: torch.optim.Optimizer, params: list[nn.Parameter], new: NewParameters, settings: dict[str, Any]
    ) -> None:
        """Adds parameters to the fallback, and shares its groups and state with the optimizer.

        Args:
            optimizer: the optimizer that owns the group.
            params: parameters without a proximal subproblem.
            new: the parameters that the user added, with their names.
            settings: the group's settings, named as in the fallback.
        """
        for group in self.fallback.add(params, new.names, settings):
            group["update"] = "explicit"
            optimizer.param_groups.append(group)
        optimizer.state.update(self.fallback.state)
        self.share(optimizer)

    def share(self, optimizer: torch.optim.Optimizer) -> None:
        """Shares the explicit groups and the state with the fallback.

        The groups' learning rates follow that of the first proximal group; see `FollowingGroup`.
        """
        groups = optimizer.param_groups
        first = next((index for index, group in enumerate(groups) if group["update"] == "proximal"), None)
        leader = None if first is None else groups[first]
        optimizer.param_groups = [
            FollowingGroup.of(group, leader, precedes=first is not None and index < first)
            if group["update"] == "explicit"
            else group
            for index, group in enumerate(groups)
        ]
        self.fallback.share(
            [group for group in optimizer.param_groups if group["update"] == "explicit"], optimizer.state
        )

    def fill_in_defaults(self, optimizer: torch.optim.Optimizer) -> None:
        """Gives the proximal groups the defaults of settings that the loaded state of an older version lacks."""
        for group in optimizer.param_groups:
            if group["update"] == "proximal":
                for key, value in optimizer.defaults.items():
                    group.setdefault(key, value)

    def release_explicit(self, optimizer: torch.optim.Optimizer) -> tuple[list[int], dict[nn.Parameter, str | None]]:
        """Leaves the explicit groups to an optimizer that wraps this one.

        Args:
            optimizer: the owner of the groups.

        Returns:
            The indices of the remaining groups, and the names of the parameters of all groups, remaining or not.
        """
        names, groups = dict(self.stepped_elsewhere), optimizer.param_groups
        for group in groups:
            names.update(zip(group["params"], group.get("param_names", [None] * len(group["params"])), strict=True))
        kept = [index for index, group in enumerate(groups) if group["update"] == "proximal"]
        explicit = [p for group in groups if group["update"] == "explicit" for p in group["params"]]
        self.stepped_elsewhere |= {p: names[p] for p in explicit}
        for p in self.stepped_elsewhere:
            optimizer.state.pop(p, None)
        optimizer.param_groups = [groups[index] for index in kept]
        self.fallback = Fallback(None)
        return kept, names

    def parameter_ids(self, optimizer: torch.optim.Optimizer) -> set[int]:
        """The `id` of every parameter that is in a group, or left to another optimizer."""
        in_groups = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return in_groups | {id(p) for p in self.stepped_elsewhere}
