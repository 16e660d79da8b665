"""What all tapped optimizers share: taps on a model's layers, and the torch.optim contract."""

import contextlib
import copy
import operator
import sys
import warnings
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sibp.capture.compiler import left_alone
from sibp.capture.passes import ForwardPass, Passes
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.checks import (
    check_loaded,
    check_model,
    checked_loss_average,
    chosen_modules,
    named,
    refuse_scaling,
)
from sibp.optim.fallback import Fallback, FollowingGroup, MakeFallback
from sibp.optim.layers import containers, new_taps, parameter_owners, summary_table
from sibp.optim.parallel import DataParallel, ProcessGroup, refuse_averaging

Explicit = Iterable[str | type[nn.Module]]
"""Modules that are left to the fallback: names, patterns of names ("blocks.*.norm"), or classes."""


class Options(TypedDict, total=False):
    """Keyword arguments that all proximal methods share.

    Attributes:
        params: parameters of the model or param group dicts, for settings of their own; default all.
        fallback: makes the optimizer of the parameters that have no proximal subproblem, from a list of them; default
            Adam with learning rate 1e-3.
        explicit: modules that are left to the fallback with all inside them: names as in `model.named_modules()`,
            patterns of names ("blocks.*.norm"), or classes.
        direction_only: only fill `.grad`, as the gradient of another optimizer; `step` is then that one's. For a torch
            optimizer on top, `Preconditioned` is the whole of it.
        data_parallel: every process holds a part of the batch, and all take the step of the whole batch together: True
            for all processes of `torch.distributed`, or a process group of it. See docs/distributed.md.
    """

    params: Iterable[nn.Parameter] | Iterable[dict[str, Any]] | None
    fallback: MakeFallback | None
    explicit: Explicit
    direction_only: bool
    data_parallel: bool | ProcessGroup


class TappedOptimizer(torch.optim.Optimizer):
    """Base of the methods that solve layer by layer in the backward pass; see `SIBP` for what users meet.

    A backward pass leaves W_old - W_new in `.grad` of every parameter of a tapped layer (`sibp.capture.tap`), so
    `step` only subtracts it. Parameters without a proximal subproblem (norms, embeddings, layers with a `forward` of
    their own) sit in param groups of their own, marked `update="explicit"`, and are stepped by a torch optimizer of
    their own, whose state and groups are part of this one's. With `direction_only` they are in no group but in `left`,
    by name if they were given one, for the optimizer that takes the steps.
    """

    backward_weights: str = "old"
    """Which weights carry the error signal down where a group does not say: "new" or "old"."""

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]] | None = None,
        defaults: dict[str, Any] | None = None,
        loss_average: bool | int = True,
        fallback: MakeFallback | None = None,
        explicit: Explicit = (),
        direction_only: bool = False,
        data_parallel: bool | ProcessGroup = False,
    ) -> None:
        """Checks the model and taps its layers.

        Raises:
            ValueError: for a `loss_average` out of range, a model without parameters, or names, parameters or settings
                that `add_param_group` refuses.
            TypeError: for a model that cannot be tapped, or parameters in a set.
        """
        method = type(self).__name__
        check_model(model, method)
        self.explicit = chosen_modules(model, explicit)
        self.model = model
        self.loss_average = checked_loss_average(loss_average)
        self.direction_only = direction_only
        self.parallel = DataParallel.of(data_parallel, method)
        self.fallback = Fallback(fallback)
        self.left: dict[nn.Parameter, str | None] = {}
        self._reset()
        if isinstance(params, set | frozenset):
            raise TypeError(f"{method}: params is a set, whose order differs from run to run; give a list.")
        wanted: Any = list(model.parameters() if params is None else params)
        if not wanted:
            raise ValueError(f"{method}: the model has no parameters.")
        if self.parallel is not None:
            self.parallel.start(model)
        super().__init__(wanted, defaults or {})
        if not self._taps:
            warnings.warn(
                f"{method} found no layer with a proximal subproblem in {type(model).__name__}: all parameters are "
                f"left to {type(self.fallback.optimizer).__name__}. print(optimizer.summary()) shows them.",
                stacklevel=3,
            )

    # -- what a method defines --------------------------------------------------------------------------------------

    @abstractmethod
    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of its range."""

    @abstractmethod
    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """One layer's update by the method, with the settings of its group."""

    def wants_activation(self, tap: Tap) -> bool:
        """Whether the method uses the activation that follows the layer."""
        del tap
        return False

    # -- what taps ask (sibp.capture.tap.Owner) ---------------------------------------------------------------------

    def active(self) -> bool:
        """Whether forward passes are tapped now: not inside `paused()`."""
        return not self._paused

    def before_forward(self, layer: str) -> None:
        """Refuses a layer's forward pass inside `DistributedDataParallel`, which would average displacements."""
        del layer
        if self.parallel is None:
            refuse_averaging(type(self).__name__)

    def goes_back_through_new(self, tap: Tap) -> bool:
        """Whether the layer's new weights carry the error signal down."""
        return self._group_of(tap).get("backward_weights", self.backward_weights) == "new"

    def loss_terms(self, one: ForwardPass) -> float:
        """What turns the loss's gradient into a sum over samples: the batch size for a mean, 1 for a sum."""
        self._batch, average = one.batch, self.loss_average
        if average is True:
            return float(one.batch or 0)
        return 1.0 if average is False else float(checked_loss_average(average))  # it may change from batch to batch

    def solve(self, tap: Tap, problem: LayerProblem) -> LayerUpdate:
        """Updates a layer with its group's present settings."""
        if not (problem.features.weight or problem.features.bias):
            return LayerUpdate(None, None)
        group = self._group_of(tap)
        self._check_changed(group)
        return self.layer_update(tap, problem, group)

    def _check_changed(self, group: dict[str, Any]) -> None:
        """Checks a group's settings where one is another object than when they were last found right."""
        settings, known = tuple(group.values()), self._checked.get(id(group), ())
        if len(settings) == len(known) and all(map(operator.is_, settings, known)):
            return
        self.check(group)
        if not any(isinstance(value, Tensor) for value in settings):  # which may change without a trace
            self._checked[id(group)] = settings

    # -- the torch.optim contract -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Applies what the backward pass found: p <- p - p.grad for every parameter of a tapped layer.

        With a `weight_decay` w, p is first multiplied by 1 - lr w, decoupled as in AdamW: the proximal step does not
        see it. Parameters whose gradient is None stay as they are.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: if something else than displacements of this optimizer, each once, lies in `.grad` of a tapped
                layer; if the layer belongs to another optimizer, or was replaced; if a GradScaler has scaled the loss.
        """
        if self.direction_only:
            raise RuntimeError(
                f"{type(self).__name__}(direction_only=True) only fills p.grad; "
                "call step() of the optimizer that uses it."
            )
        refuse_scaling(self, type(self).__name__)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._apply()
        return loss

    @left_alone
    def _apply(self) -> None:
        """Subtracts the displacements, and steps the fallback."""
        self.before_step()
        for group in self.param_groups:
            if group["update"] == "explicit":
                continue
            keep = 1 - float(group["lr"]) * group["weight_decay"]
            for p in group["params"]:
                if p.grad is not None:
                    if keep != 1:
                        p.mul_(keep)
                    p.sub_(p.grad)
                    state = self.state[p]
                    state["steps"] = state.get("steps", 0) + 1  # checkpoints of torch.distributed ask for a state
        self.after_step()
        self.fallback.step()

    def before_step(self) -> None:
        """Refuses what `step` must not apply; for an optimizer that steps in this one's place, too.

        Raises:
            RuntimeError: see `step`.
        """
        self.passes.forget()
        for tap in self._taps.values():
            self._refuse_what_is_not_ours(tap)

    def after_step(self) -> None:
        """Notes that what lies in `.grad` has been applied, so that no step applies it again."""
        for tap in self._taps.values():
            for key, p in tap.parameters.items():
                if p.grad is not None:
                    tap.displacements.applied(key, p.grad)

    def become_direction(self) -> dict[nn.Parameter, str | None]:
        """Leaves all steps to an optimizer that holds this one, as `Preconditioned` does; `direction_only` from now on.

        Returns:
            All parameters, in the model's order, with their names if they were given any. Those without a proximal
            subproblem, which were the fallback's, get ordinary gradients.
        """
        self.direction_only = True
        for tap in self._taps.values():
            tap.keeps = None
        groups, names = self.param_groups, dict(self.left)
        for group in groups:
            names.update(zip(group["params"], group.get("param_names", [None] * len(group["params"])), strict=True))
        places = [place for place, group in enumerate(groups) if group["update"] == "proximal"]
        self.left |= {p: names[p] for group in groups if group["update"] == "explicit" for p in group["params"]}
        for p in self.left:
            self.state.pop(p, None)
        self.param_groups = [groups[place] for place in places]
        self._groups = {name: places.index(place) for name, place in self._groups.items()}
        self.fallback = Fallback(None)
        return {p: names[p] for p in self.model.parameters() if p in names}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, as in torch."""
        self.passes.forget()
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters of the model, tapping their layers; those without a subproblem get the fallback optimizer.

        Args:
            param_group: {"params": parameters of the model, "lr": ..., "prox_weight": ..., "solver": ...}. If none of
                its parameters has a proximal subproblem, its other entries go to the fallback optimizer's group.

        Raises:
            TypeError: if it is not a dict, or its parameters are in a set.
            ValueError: for bad hyper-parameters, parameters that are not the model's or are in two groups, or a layer
                whose weight and bias would be in different groups.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        params, names = named(param_group["params"], type(self).__name__)
        taken = {id(p) for group in self.param_groups for p in group["params"]}
        if len({id(p) for p in params} | taken) < len(params) + len(taken):
            raise ValueError("some parameters appear in more than one parameter group")
        owners = parameter_owners(self.model)
        for p in params:
            if p not in owners:
                raise ValueError(
                    f"{type(self).__name__}: a parameter of shape {tuple(p.shape)} is not the model's; "
                    "groups can only hold parameters of the model that the optimizer was made for."
                )
        taps = new_taps(self, params, owners, self.explicit)
        proximal = {id(p) for tap in taps for p in tap.parameters.values()}
        tapped = [p for p in params if id(p) in proximal]
        rest = [p for p in params if id(p) not in proximal]
        options = {key: value for key, value in param_group.items() if key != "params"}
        if tapped:
            own = {**self.defaults, **options, "update": "proximal", "method": type(self).__name__}
            self.check(own)
            super().add_param_group({"params": [(names[p], p) for p in tapped] if names else tapped, **own})
            for tap in taps:
                self._own(tap, len(self.param_groups) - 1)
        if rest:
            self._add_explicit(rest, names, {} if tapped else options)
        self.passes.watch(containers(self.model, self._taps.values()))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads what `state_dict` gave; settings that an older one lacks keep their defaults.

        Args:
            state_dict: of an optimizer of the same method, for a model of the same layers.

        Raises:
            ValueError: if it is of another optimizer, or of another model.
        """
        check_loaded(state_dict, self.param_groups, type(self).__name__)
        super().load_state_dict(copy.deepcopy(state_dict))  # torch's shares tensors with what it was given

    def _add_explicit(
        self, params: list[nn.Parameter], names: dict[nn.Parameter, str], options: dict[str, Any]
    ) -> None:
        """Gives parameters to the fallback optimizer, sharing group and state with it."""
        self._average(params)
        if self.direction_only:
            self.left |= {p: names.get(p) for p in params}
            return
        group = self.fallback.add(params, names, options)
        group["update"] = "explicit"
        self.state.update(self.fallback.optimizer.state)  # pyright: ignore[reportOptionalMemberAccess]
        self.param_groups.append(group)
        self._share()

    def _share(self) -> None:
        """Has the fallback work on this optimizer's explicit groups and state."""
        leader = next((group for group in self.param_groups if group["update"] == "proximal"), None)
        self.param_groups = [
            FollowingGroup.of(group, leader) if group["update"] == "explicit" else group for group in self.param_groups
        ]
        self.fallback.share([group for group in self.param_groups if group["update"] == "explicit"], self.state)

    def _average(self, params: list[nn.Parameter]) -> None:
        """If data parallel, gives parameters without a subproblem the gradient of all ranks' loss."""
        this, parallel = weakref.ref(self), self.parallel
        if parallel is None:
            return

        def whole(gradient: Tensor) -> Tensor | None:
            owner = this()
            if owner is None or not owner.active():
                return None
            mean = owner.loss_average is not False
            terms = owner._batch if owner.loss_average is True else int(owner.loss_average)
            if terms is None:
                raise RuntimeError(
                    "data_parallel: no layer with a proximal subproblem was in the forward pass, so the size of this "
                    "rank's batch is not known; give loss_average the number of terms."
                )
            return parallel.whole_gradient(gradient, terms, mean=mean)

        self._hooks += [p.register_hook(whole) for p in params if p.requires_grad]

    def _own(self, tap: Tap, group: int) -> None:
        self._taps[tap.name] = tap
        self._groups[tap.name] = group
        if self.direction_only:
            tap.keeps = self  # nobody else may hold on to an optimizer that is never stepped
        tap.install()

    def _reset(self) -> None:
        """What is never saved: it belongs to this model, and to what runs on it."""
        self._taps: dict[str, Tap] = {}
        self._groups: dict[str, int] = {}
        self._checked: dict[int, tuple[Any, ...]] = {}  # settings of groups, by identity
        self.passes = Passes()
        self._batch: int | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._paused = False

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the taps, which belong to this model and are put onto the copied model anew."""
        keep = ("model", "loss_average", "explicit", "left", "direction_only", "parallel", "fallback")
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in keep}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by unpickling and deepcopy with everything, by `load_state_dict` with groups and state only."""
        super().__setstate__(state)
        for group in self.param_groups:
            if group["update"] == "proximal":
                for key, value in self.defaults.items():
                    group.setdefault(key, value)
        if "model" in state:
            self._reset()
            owners = parameter_owners(self.model)
            for index, group in enumerate(self.param_groups):
                if group["update"] == "proximal":
                    for tap in new_taps(self, group["params"], owners, self.explicit):
                        self._own(tap, index)
                else:
                    self._average(group["params"])
            self.passes.watch(containers(self.model, self._taps.values()))
        self._share()

    def memory(self, tap: Tap) -> dict[str, Any]:
        """What a method keeps of a layer from step to step; part of the state, so only tensors and numbers."""
        return self.state[next(iter(tap.parameters.values()))]

    def _group_of(self, tap: Tap) -> dict[str, Any]:
        return self.param_groups[self._groups[tap.name]]

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """True for a GradScaler alone: it then hands over its scale, instead of dividing what lies in `.grad`.

        Frameworks read it as well, and refuse to clip where it is True, in bfloat16 too, where nothing is scaled.
        """
        return sys._getframe(1).f_globals.get("__name__") == "torch.amp.grad_scaler"

    def _refuse_what_is_not_ours(self, tap: Tap) -> None:
        """Raises if the layer was taken over or replaced, or if its `.grad` holds anything but displacements."""
        here, method = f"layer '{tap.name}'", type(self).__name__
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

    # -- for people -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside, the model is an ordinary one: gradients are the loss's own (forward and backward both inside)."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def remove(self) -> None:
        """Leaves the model as it was before the optimizer; the optimizer cannot step any more."""
        for tap in self._taps.values():
            tap.remove()
        self.passes.remove()
        for hook in self._hooks:
            hook.remove()

    def summary(self) -> str:
        """A table of the model's layers: what follows each, its solver, and how it is updated."""
        mine = {id(p) for group in self.param_groups for p in group["params"]} | {id(p) for p in self.left}
        modules = dict(self.model.named_modules())
        replaced = {
            name
            for name, tap in self._taps.items()
            if tap.replaced is not None or not tap.installed or modules.get(name) is not tap.module
        }
        return summary_table(self.model, self._rows(), mine, replaced, type(self).__name__)

    def _rows(self) -> dict[str, tuple[str, str]]:
        """(followed by, solver) of every tapped layer."""
        rows = {}
        for name, tap in self._taps.items():
            solver = self._group_of(tap).get("solver", "-")
            follows = ", ".join(tap.consumption.names)
            if not self.wants_activation(tap):
                follows = "-"
            elif tap.consumption.names and (tap.consumption.activation is None or tap.consumption.consumers > 1):
                solver = "exact (linearised)" if solver.startswith("cg") else solver
            rows[name] = (follows or "(no forward pass yet)", solver)
        return rows

    def __repr__(self) -> str:
        """The groups, and the table of layers."""
        return f"{super().__repr__()}\n{self.summary()}"
