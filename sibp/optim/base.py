"""Base of all tapped optimizers: taps a model's layers and follows the torch.optim contract."""

import contextlib
import copy
import operator
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import nn

from sibp.capture.compiler import run_eagerly
from sibp.capture.passes import ForwardPass, Passes
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.checks import check_loaded, check_model, checked_loss_average, chosen_modules, refuse_set
from sibp.optim.fallback import Conversions, MakeFallback, evaluated
from sibp.optim.groups import NewParameters, ParamGroups
from sibp.optim.layers import containers, new_taps, parameter_owners, summary_table
from sibp.optim.options import Explicit
from sibp.optim.parallel import DataParallel, ProcessGroup, refuse_averaging
from sibp.optim.registry import LayerRegistry
from sibp.optim.scaling import ScalerGuard, refuse_scaling, step_supports_amp_scaling


class TappedOptimizer(torch.optim.Optimizer):
    """Base of the methods that solve layer by layer in the backward pass; see `SIBP` for how to use them.

    A backward pass leaves W_old - W_new in `.grad` of every parameter of a tapped layer (`sibp.capture.tap`), so
    `step` only subtracts it. Parameters without a proximal subproblem (norms, embeddings, layers with a custom
    `forward`) are in separate param groups, marked `update="explicit"`. A torch optimizer, the fallback, steps them;
    its state and groups are part of this optimizer's. With `direction_only`, these parameters are in no group, and the
    optimizer that takes the steps has to step them.

    Attributes:
        layers: the tapped layers.
        groups: separates the proximal groups from those of the fallback.
        passes: the model's forward passes.
        parallel: the exchange between ranks; None in a single process.
    """

    backward_weights: str = "old"
    """Which weights propagate the error signal, "new" or "old", if a param group has no such setting."""
    line_search: bool = False
    """Whether `step` evaluates the loss and shortens a step that would raise it."""
    _step_supports_amp_scaling = step_supports_amp_scaling

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
        self.groups = ParamGroups(fallback)
        self._reset()
        refuse_set(params, method)
        wanted: Any = list(model.parameters() if params is None else params)
        if not wanted:
            raise ValueError(f"{method}: the model has no parameters.")
        if self.parallel is not None:
            self.parallel.start(model)
        super().__init__(wanted, defaults or {})
        if not self.layers:
            warnings.warn(
                f"{method} found no layer with a proximal subproblem in {type(model).__name__}: all parameters are "
                f"left to {self.groups.fallback.name}. print(optimizer.summary()) shows them.",
                stacklevel=3,
            )

    # -- defined by each method --------------------------------------------------------------------------------------

    @abstractmethod
    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of range."""

    @abstractmethod
    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """One layer's update by the method, with the settings of its group."""

    def wants_activation(self, tap: Tap) -> bool:
        """Whether the method uses the activation that follows the layer."""
        del tap
        return False

    # -- called by taps (sibp.capture.tap.Owner) --------------------------------------------------------------------

    def active(self) -> bool:
        """Whether forward passes are tapped now; False inside `paused()`."""
        return not self._paused

    def before_forward(self, layer: str) -> None:
        """Refuses a layer's forward pass inside `DistributedDataParallel`, which would average displacements.

        Raises:
            RuntimeError: if the wrapper's forward pass is running, with more than one process.
        """
        del layer
        if self.parallel is None:
            refuse_averaging(type(self).__name__)

    def uses_new_weights_backward(self, tap: Tap) -> bool:
        """Whether the error signal is propagated through the layer's new weights."""
        return self.group_of(tap).get("backward_weights", self.backward_weights) == "new"

    def loss_terms(self, forward_pass: ForwardPass) -> float:
        """The number of terms that the loss averages over: the batch size for a mean, 1 for a sum.

        Error signals times this factor are those of the summed loss.

        Args:
            forward_pass: the pass that computed the loss.

        Raises:
            ValueError: if `loss_average` is out of range.
        """
        self._batch, average = forward_pass.batch, self.loss_average
        if average is True:
            self._compare_with_inputs(forward_pass)
            return float(forward_pass.batch or 0)
        return 1.0 if average is False else float(checked_loss_average(average))  # users may set it for each batch

    def _compare_with_inputs(self, forward_pass: ForwardPass) -> None:
        """Warns once if the first layer has more or fewer rows than the model's inputs (experts, flattened positions).

        A single row gives no warning, because models add the leading dimension of a single sample themselves.
        """
        batch, inputs = forward_pass.batch, forward_pass.inputs
        if self._has_compared or not inputs or batch in (1, *inputs):
            return
        self._has_compared = True
        warnings.warn(
            f"{type(self).__name__}: loss_average=True counts the rows of '{forward_pass.counted_layer}', the first "
            f"layer with a subproblem, as samples. This layer has {batch} rows, but the model's input has "
            f"{' and '.join(map(str, sorted(inputs)))}. Set loss_average to the number of terms that the loss averages "
            "over. (Shown once.)",
            RuntimeWarning,
            stacklevel=2,
        )

    @property
    def last_terms(self) -> int | None:
        """Number of terms that the loss of the last pass averaged over, 0 for a sum; None if no layer has run."""
        return self._batch if self.loss_average is True else int(self.loss_average)

    def solve(self, tap: Tap, problem: LayerProblem) -> LayerUpdate:
        """Solves a layer's subproblem with the current settings of its group."""
        if not (problem.features.weight or problem.features.bias):
            return LayerUpdate(None, None)
        if self._kinds[tap.name] != tap.dtype_and_device:
            self.load_state_dict(self.state_dict())  # converts the state to the parameters' dtype and device
        group = self.group_of(tap)
        self._check_changed(group)
        return self.layer_update(tap, problem, group)

    def _check_changed(self, group: dict[str, Any]) -> None:
        """Checks a group's settings, unless they are the same objects that passed the last check."""
        settings, known = tuple(group.values()), self._checked.get(id(group), ())
        if len(settings) == len(known) and all(map(operator.is_, settings, known)):
            return
        self.check(group)
        if not any(isinstance(value, torch.Tensor) for value in settings):  # a tensor may change in place
            self._checked[id(group)] = settings

    # -- the torch.optim contract -----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Applies the displacements, p <- p - p.grad for every parameter of a tapped layer; then steps the fallback.

        With a `weight_decay` w, p is first multiplied by 1 - lr w, decoupled from the subproblem as in AdamW.
        Parameters that are frozen, or whose gradient is None, stay as they are.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: if `.grad` of a tapped layer holds anything but this optimizer's displacements, or one that a
                step has already applied; if the layer belongs to another optimizer, or was replaced; if a GradScaler
                has scaled the loss; with `direction_only`.
        """
        if self.direction_only:
            raise RuntimeError(
                f"{type(self).__name__}(direction_only=True) only fills p.grad; "
                "call step() of the optimizer that uses it."
            )
        refuse_scaling(self, type(self).__name__)
        loss = evaluated(closure)
        self._apply()
        return loss

    @run_eagerly
    def _apply(self) -> None:
        """Subtracts the displacements, and steps the fallback."""
        self.before_step()
        for group in self.param_groups:
            if group["update"] == "explicit":
                continue
            keep = 1 - self.full_lr(group) * group["weight_decay"]
            for p in group["params"]:
                if p.grad is not None and p.requires_grad:
                    if keep != 1:
                        p.mul_(keep)
                    p.sub_(p.grad)
                    state = self.state[p]
                    state["steps"] = state.get("steps", 0) + 1  # checkpoints of torch.distributed require a state
        self.after_step()
        if self._conversions.found(self._explicit_groups()):  # `solve` checks the proximal groups
            self.load_state_dict(self.state_dict())
        self.groups.fallback.step()

    def _explicit_groups(self) -> list[dict[str, Any]]:
        return [group for group in self.param_groups if group["update"] == "explicit"]

    def full_lr(self, group: dict[str, Any]) -> float:
        """The group's learning rate for displacements and weight decay, before a line search shortens the step."""
        return float(group["lr"])

    def before_step(self) -> None:
        """Refuses a `.grad` that `step` must not apply. An optimizer that steps instead of this one calls it, too.

        Raises:
            RuntimeError: see `step`.
        """
        self.passes.forget()
        self.layers.check_gradients(type(self).__name__, frozen=self.direction_only)

    def after_step(self) -> None:
        """Records that `.grad` has been applied, so that no step applies it again."""
        self.layers.mark_applied()

    def become_direction(self) -> dict[nn.Parameter, str | None]:
        """Leaves all steps to an optimizer that wraps this one, such as `Preconditioned`; as with `direction_only`.

        Returns:
            All parameters, in the model's order, with their names if they have any. Those without a proximal
            subproblem, formerly the fallback's, get ordinary gradients.
        """
        self.direction_only = True
        self.layers.release()
        kept, names = self.groups.release_explicit(self)
        self.layers.regroup(kept)
        return {p: names[p] for p in self.model.parameters() if p in names}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, as in torch."""
        self.passes.forget()
        super().zero_grad(set_to_none)
        if set_to_none:
            self.layers.mark_cleared()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters of the model, tapping their layers; those without a subproblem get the fallback optimizer.

        Args:
            param_group: {"params": parameters of the model, "lr": ..., "prox_weight": ..., "solver": ...}. If none of
                its parameters has a proximal subproblem, its other entries go to the fallback optimizer's group.

        Raises:
            TypeError: if it is not a dict, or its parameters are in a set.
            ValueError: for hyper-parameters out of range, parameters that are not the model's or are in two groups, or
                a layer whose weight and bias would be in different groups.
        """
        owners = parameter_owners(self.model)
        new = self.groups.read(self, param_group, owners)
        taps = new_taps(self, new.params, owners, self.explicit)
        proximal = {id(p) for tap in taps for p in tap.parameters.values()}
        tapped = [p for p in new.params if id(p) in proximal]
        rest = [p for p in new.params if id(p) not in proximal]
        if tapped:
            settings = {**self.defaults, **new.settings, "update": "proximal", "method": type(self).__name__}
            self.check(settings)
            super().add_param_group({"params": new.named(tapped), **settings})
            for tap in taps:
                self.add_tap(tap, len(self.param_groups) - 1)
            self.groups.share(self)  # the fallback's learning rates follow that of the first proximal group
        if rest:
            self.add_explicit(rest, new, {} if tapped else new.settings)
        self.passes.watch(containers(self.model, self.layers))

    def add_explicit(self, params: list[nn.Parameter], new: NewParameters, settings: dict[str, Any]) -> None:
        """Leaves parameters without a proximal subproblem to the fallback, or to the optimizer that takes the steps.

        Args:
            params: a part of `new`.
            new: the parameters that the user added.
            settings: the group's settings, named as in the fallback.
        """
        self._average_gradients(params)
        if self.direction_only:
            self.groups.stepped_elsewhere |= {p: new.names.get(p) for p in params}
        else:
            self.groups.add_explicit(self, params, new, settings)

    def add_tap(self, tap: Tap, group: int) -> None:
        """Taps a layer, with the settings of the group at that index."""
        self._kinds[tap.name] = tap.dtype_and_device
        self.layers.add(tap, group, kept_owner=self if self.direction_only else None)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a `state_dict`; settings missing from an older one keep their defaults.

        Args:
            state_dict: of an optimizer of the same method, for a model of the same layers.

        Raises:
            ValueError: if it belongs to another optimizer or another model.
        """
        check_loaded(state_dict, self.param_groups, type(self).__name__)
        super().load_state_dict(copy.deepcopy(state_dict))  # torch's method would share tensors with its argument
        self._kinds = {tap.name: tap.dtype_and_device for tap in self.layers}
        self._conversions = Conversions(self._explicit_groups())

    def _average_gradients(self, params: list[nn.Parameter]) -> None:
        """If data parallel, gives parameters without a subproblem the gradient of all ranks' loss."""
        if self.parallel is not None:
            self._hooks += self.parallel.average_gradients(params, self)

    def _reset(self) -> None:
        """Resets the attributes that are never saved, because they belong to this model and its running passes."""
        self.layers = LayerRegistry()
        self._conversions = Conversions()
        self._kinds: dict[str, tuple[torch.dtype, torch.device]] = {}  # dtype and device of every layer's state
        self._checked: dict[int, tuple[Any, ...]] = {}  # settings that passed the last check, by the group's identity
        self.passes = Passes(keeps_random_state=self.line_search)
        self._batch: int | None = None
        self._has_compared = False
        self._hooks: list[Any] = [ScalerGuard(self)] if self.direction_only else []
        self._paused = False

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the taps, which belong to this model; `__setstate__` taps the copied model."""
        keep = ("model", "loss_average", "explicit", "direction_only", "parallel", "groups")
        return {**super().__getstate__(), **{key: self.__dict__[key] for key in keep}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Unpickling and deepcopy call this with all attributes, `load_state_dict` with groups and state only."""
        super().__setstate__(state)
        self.groups.fill_in_defaults(self)
        if "model" in state:
            self._reset()
            owners = parameter_owners(self.model)
            for index, group in enumerate(self.param_groups):
                if group["update"] == "proximal":
                    for tap in new_taps(self, group["params"], owners, self.explicit):
                        self.add_tap(tap, index)
                else:
                    self._average_gradients(group["params"])
            self.passes.watch(containers(self.model, self.layers))
            self._conversions = Conversions(self._explicit_groups())
        self.groups.share(self)

    def layer_state(self, tap: Tap) -> dict[str, Any]:
        """The tensors and numbers that a method keeps for a layer between steps; part of `state_dict`."""
        return self.state[next(iter(tap.parameters.values()))]

    def group_of(self, tap: Tap) -> dict[str, Any]:
        """The param group with the layer's settings."""
        return self.param_groups[self.layers.group_indices[tap.name]]

    # -- for users --------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context without taps: forward and backward passes inside it compute the loss's ordinary gradients."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def remove(self) -> None:
        """Restores the model; afterwards the optimizer cannot step."""
        self.layers.remove()
        self.passes.remove()
        for hook in self._hooks:
            hook.remove()

    def summary(self) -> str:
        """A table of the model's layers: what follows each, its solver, and how it is updated."""
        replaced = self.layers.replaced(self.model)
        return summary_table(
            self.model, self._layer_rows(), self.groups.parameter_ids(self), replaced, type(self).__name__
        )

    def _layer_rows(self) -> dict[str, tuple[str, str]]:
        """(followed by, solver) of every tapped layer."""
        rows = {}
        for tap in self.layers:
            solver = self.group_of(tap).get("solver", "-")
            follows = ", ".join(tap.consumption.names)
            if not self.wants_activation(tap):
                follows = "-"
            elif tap.consumption.names and (tap.consumption.activation is None or tap.consumption.consumers > 1):
                solver = "exact (linearised)" if solver.startswith("cg") else solver
            rows[tap.name] = (follows or "(no forward pass yet)", solver)
        return rows

    def __repr__(self) -> str:
        """The groups, and the table of layers."""
        return f"{super().__repr__()}\n{self.summary()}"
