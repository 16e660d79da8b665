"""Common base of the peers (the methods that SIBP is compared with): keeps steps and running statistics finite."""

import typing
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.base import TappedOptimizer
from sibp.optim.checks import in_range
from sibp.optim.options import PeerOptions
from sibp.optim.solvers import zero_unless_finite
from sibp.prox.scalars import Flag, choose, is_finite, scalar


class GuardedOptimizer(TappedOptimizer):
    """Base of the peers. A layer whose step is not finite keeps its weights.

    On a CPU a warning names the layer, once. On an accelerator there is no warning, because it would need a
    synchronisation.

    Args:
        model: any module.
        defaults: the method's own settings of a param group, including "lr".
        **options: the options that several methods share.

    Raises:
        TypeError: for an option that the method does not have.
    """

    shared: ClassVar[type] = PeerOptions
    """The `TypedDict` of the shared options that the method takes."""

    def __init__(self, model: nn.Module, defaults: dict[str, Any], **options: Unpack[PeerOptions]) -> None:
        known = typing.get_type_hints(self.shared)
        given: dict[str, Any] = {**options}
        for key in given:
            if key not in known:
                raise TypeError(
                    f"{type(self).__name__} has no option {key}; apart from its hyper-parameters it has "
                    f"{', '.join(sorted(known))}."
                )
        defaults = {**defaults, "weight_decay": given.pop("weight_decay", 0.0)}
        super().__init__(model, defaults=defaults, **given)

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of range; methods add their own checks."""
        in_range(group, "lr", 0)
        in_range(group, "weight_decay", 0)

    def solve(self, tap: Tap, problem: LayerProblem) -> LayerUpdate:
        """A layer's update; exactly zero if the displacement is not finite in the dtype of the weights."""
        update = super().solve(tap, problem)
        dtype = next(iter(tap.parameters.values())).dtype
        finite = all_finite(*(t.to(dtype) for t in (update.W_decrease, update.b_decrease) if t is not None))
        if finite is False:
            self.warn(tap)
        return replace(
            update,
            W_decrease=zero_unless_finite(finite, update.W_decrease),
            b_decrease=zero_unless_finite(finite, update.b_decrease),
        )

    def statistics(self, tap: Tap, problem: LayerProblem) -> dict[str, Any]:
        """A layer's state; reset if other parameters of the layer are trained than before (a bias frozen later).

        A trained bias adds a column to the features, and so a row and a column to their running Gram matrix.
        """
        memory, trained = self.layer_state(tap), 2 * problem.features.weight + problem.features.bias
        if memory.setdefault("trained", trained) != trained:
            memory.clear()
            memory["trained"] = trained
        return memory

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads a `state_dict`; a layer's statistics stay in the dtype in which its steps are computed.

        Torch would cast all state to the dtype of the weights, and half precision would lose digits.

        Args:
            state_dict: of an optimizer of the same kind, for a model of the same layers.
        """
        super().load_state_dict(state_dict)
        indices = [index for group in state_dict["param_groups"] for index in group["params"]]
        params = [(p, group["update"]) for group in self.param_groups for p in group["params"]]
        for index, (p, update) in zip(indices, params, strict=True):
            if update != "proximal" or index not in state_dict["state"]:
                continue
            dtype = torch.promote_types(p.dtype, torch.float32)  # of the solve: see `sibp.capture.tap`
            for key, value in state_dict["state"][index].items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    self.state[p][key] = value.to(p.device, dtype, copy=True)

    def _reset(self) -> None:
        super()._reset()
        self._warned: set[str] = set()

    def warn(self, tap: Tap) -> None:
        """Warns once that a layer's step was skipped."""
        if tap.name not in self._warned:
            self._warned.add(tap.name)
            warnings.warn(
                f"layer '{tap.name}': its step by {type(self).__name__} is not finite, so its weights stay as they "
                "are; look for inputs that are huge or not finite, or lower lr.",
                RuntimeWarning,
                stacklevel=2,
            )


def all_finite(*tensors: Tensor) -> Flag:
    """Whether no entry is infinite or NaN; a 0-dimensional tensor on an accelerator."""
    flag: Flag = True
    for t in tensors:
        flag = flag & _finite(t)
    return flag


def _finite(t: Tensor) -> Flag:
    if t.numel() == 0 or is_finite(scalar(t.sum())) is True:  # a sum is fast, and not finite if an entry is not
        return True
    low, high = torch.aminmax(t)  # the sum may have overflowed
    return is_finite(scalar(low)) & is_finite(scalar(high))


def finite_or(value: Tensor, otherwise: Callable[[], Tensor]) -> Tensor:
    """The value if all of its entries are finite, else the result of `otherwise`, of the same shape."""
    return choose(all_finite(value), lambda: value, otherwise)


def nan_unless(finite: Flag, step: Tensor) -> Tensor:
    """The step if `finite`, else NaN in every entry, so that `GuardedOptimizer` skips it."""
    return choose(finite, lambda: step, lambda: torch.full_like(step, torch.nan))
