"""What all tapped optimizers share: taps on a model's layers, and the torch.optim contract."""

import contextlib
import weakref
from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from sibp.capture.tap import LayerProblem, LayerUpdate, Tap
from sibp.optim.checks import check_model, check_names
from sibp.optim.layers import new_taps, parameter_owners, summary_table
from sibp.optim.parallel import DataParallel, ProcessGroup, refuse_averaging

Fallback = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
"""Makes the optimizer of the parameters that have no proximal subproblem."""

_DEFAULT_FALLBACK: Fallback = partial(torch.optim.Adam, lr=1e-3)


class TappedOptimizer(torch.optim.Optimizer):
    """Base of the methods that solve layer by layer in the backward pass; see `SIBP` for what users meet.

    A backward pass leaves W_old - W_new in `.grad` of every parameter of a tapped layer (`sibp.capture.tap`), so
    `step` only subtracts it. Parameters without a proximal subproblem (norms, embeddings, layers with a `forward` of
    their own) sit in the last param groups, marked `update="explicit"`, and are stepped by a torch optimizer of their
    own, whose state and groups are part of this one's.
    """

    semi_implicit: bool = False

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]] | None,
        defaults: dict[str, Any],
        loss_average: bool | int = True,
        fallback: Fallback | None = None,
        explicit: Iterable[str] = (),
        direction_only: bool = False,
        data_parallel: bool | ProcessGroup = False,
    ) -> None:
        """Checks the model and taps its layers.

        Raises:
            ValueError: for a `loss_average` out of range, a model without parameters, or names, parameters or settings
                that `add_param_group` refuses.
            TypeError: for a model that cannot be tapped.
        """
        check_model(model, type(self).__name__)
        self.explicit = check_names(model, explicit)
        if not isinstance(loss_average, bool | int) or loss_average < 0:
            raise ValueError(
                f"Invalid loss_average: {loss_average!r}; True (mean over the batch), False (sum), "
                "or the number of terms that the loss averages over."
            )
        self.model = model
        self.loss_average = loss_average
        self.direction_only = direction_only
        self.parallel = DataParallel.of(data_parallel, type(self).__name__)
        self._fallback_factory = fallback or _DEFAULT_FALLBACK
        self._fallback: torch.optim.Optimizer | None = None
        self._reset()
        wanted: Any = list(model.parameters() if params is None else params)
        if not wanted:
            raise ValueError(f"{type(self).__name__}: the model has no parameters.")
        if self.parallel is not None:
            self.parallel.start(model)
        super().__init__(wanted, defaults)

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

    def loss_terms(self, tap: Tap, batch: int) -> float:
        """What turns the loss's gradient into a sum over samples: the batch size for a mean, 1 for a sum.

        The batch size is the leading dimension at the first tapped layer of the forward pass.
        """
        if self.parallel is None:
            refuse_averaging(type(self).__name__)
        if self._pass is None or self._pass[0] == tap.name:
            self._pass = (tap.name, batch)
            self._batch = batch
        self.ends = (self._pass[0], tap.name)
        if self.loss_average is False:
            return 1.0
        if self.loss_average is not True:
            return float(self.loss_average)
        return float(self._pass[1])

    def solve(self, tap: Tap, problem: LayerProblem) -> LayerUpdate:
        """Updates a layer with its group's present settings."""
        self._pass = None
        if not (problem.features.weight or problem.features.bias):
            return LayerUpdate(None, None)
        group = self._group_of(tap)
        self.check(group)
        return self.layer_update(tap, problem, group)

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
            RuntimeError: if another optimizer has taken the model over, or if the gradients of the last step would
                be applied a second time.
        """
        if self.direction_only:
            raise RuntimeError(
                f"{type(self).__name__}(direction_only=True) only fills p.grad; "
                "call step() of the optimizer that uses it."
            )
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for tap in self._taps.values():
            self._refuse_what_is_not_ours(tap)
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            if group["update"] == "explicit" or not moving:
                continue
            keep = 1 - float(group["lr"]) * group["weight_decay"]
            for p in moving:
                if keep != 1:
                    p.mul_(keep)
                p.sub_(p.grad)
        for tap in self._taps.values():
            self._applied[tap.name] = tap.backward_passes, _fingerprint(tap)
        if self._fallback is not None:
            self._fallback.step()
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds parameters of the model, tapping their layers; those without a subproblem get the fallback optimizer.

        Args:
            param_group: {"params": parameters of the model, "lr": ..., "prox_weight": ..., "solver": ...}. If none of
                its parameters has a proximal subproblem, its other entries go to the fallback optimizer's group.

        Raises:
            TypeError: if it is not a dict.
            ValueError: for bad hyper-parameters, parameters that are not the model's or are in two groups, or a layer
                whose weight and bias would be in different groups.
        """
        if not isinstance(param_group, dict):
            raise TypeError(f"param_group must be a dict, but got {type(param_group)}")
        given = param_group["params"]
        # Like torch.optim, also takes what named_parameters() gives.
        params: list[Any] = [given] if isinstance(given, Tensor) else list(given)
        params = [p[1] if isinstance(p, tuple) else p for p in params]
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
            group = {"params": tapped, **self.defaults, **options, "update": "proximal"}
            self.check(group)
            super().add_param_group(group)
            for tap in taps:
                self._own(tap, len(self.param_groups) - 1)
        if rest:
            self._add_explicit(rest, {} if tapped else options)

    def _add_explicit(self, params: list[nn.Parameter], options: dict[str, Any]) -> None:
        """Gives parameters to the fallback optimizer, sharing group and state with it."""
        taken = {id(p) for group in self.param_groups for p in group["params"]}
        if any(id(p) in taken for p in params):
            raise ValueError("some parameters appear in more than one parameter group")
        self._average(params)
        if self.direction_only:
            return
        if self._fallback is None:
            self._fallback = self._fallback_factory(params)
            self._fallback.param_groups[-1].update(options)
            self.state.update(self._fallback.state)
            self._fallback.state = self.state
        else:
            self._fallback.add_param_group({"params": params, **options})
        group = self._fallback.param_groups[-1]
        group["update"] = "explicit"
        self.param_groups.append(group)

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
        """What lives between a forward pass and a step, and is never saved."""
        self._taps: dict[str, Tap] = {}
        self._groups: dict[str, int] = {}
        self._applied: dict[str, tuple[int, list[tuple[int, int]]]] = {}
        self._pass: tuple[str, int] | None = None
        self.ends = ("", "")  # names of the layers that ran first and last in the forward pass
        self._batch: int | None = None
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._paused = False

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the taps, which belong to this model and are put onto the copied model anew."""
        state = super().__getstate__()
        keep = ("model", "loss_average", "explicit", "direction_only", "parallel", "_fallback")
        state.update({key: self.__dict__[key] for key in keep})
        # A made fallback serves; its factory is often a lambda, which cannot be pickled.
        state["_fallback_factory"] = _DEFAULT_FALLBACK if self._fallback is not None else self._fallback_factory
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Called by unpickling and deepcopy with everything, by `load_state_dict` with groups and state only."""
        super().__setstate__(state)
        if "model" in state:
            self._reset()
            owners = parameter_owners(self.model)
            for index, group in enumerate(self.param_groups):
                if group["update"] == "proximal":
                    for tap in new_taps(self, group["params"], owners, self.explicit):
                        self._own(tap, index)
                else:
                    self._average(group["params"])
        if self._fallback is not None:
            self._fallback.param_groups = [group for group in self.param_groups if group["update"] == "explicit"]
            self._fallback.state = self.state

    def memory(self, tap: Tap) -> dict[str, Any]:
        """What a method keeps of a layer from step to step; part of the state, so only tensors and numbers."""
        return self.state[next(iter(tap.parameters.values()))]

    def _group_of(self, tap: Tap) -> dict[str, Any]:
        return self.param_groups[self._groups[tap.name]]

    def _refuse_what_is_not_ours(self, tap: Tap) -> None:
        """Raises if the layer was taken over, or if its gradients were applied before."""
        if not tap.installed:
            raise RuntimeError(
                f"layer '{tap.name}' no longer belongs to this {type(self).__name__}: it was removed, or another "
                "optimizer was made for the same model. Step the newer one."
            )
        passes, before = self._applied.get(tap.name, (0, []))
        if passes and before and passes == tap.backward_passes and before == _fingerprint(tap):
            raise RuntimeError(
                f"layer '{tap.name}': step() was called again without a backward pass in between, which would apply "
                "the same update twice."
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
        for hook in self._hooks:
            hook.remove()

    def summary(self) -> str:
        """A table of the model's layers: what follows each, its solver, and how it is updated."""
        return summary_table(self.model, self._rows(), type(self).__name__)

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


def _fingerprint(tap: Tap) -> list[tuple[int, int]]:
    """Identifies the gradients that a layer holds now."""
    grads = [p.grad for p in tap.parameters.values()]
    return [(g.data_ptr(), g._version) for g in grads if g is not None]
