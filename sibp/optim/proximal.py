"""What SIBP and ProxBP share: a proximal subproblem for every layer, its solver by name, and the solver's metrics."""

import math
import warnings
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor

from sibp.capture.tap import LayerProblem, LayerUpdate, Tap
from sibp.optim.base import TappedOptimizer
from sibp.optim.checks import check_group, one_of
from sibp.optim.solvers import Solver, check_paper, parse_solver
from sibp.prox.numbers import Number, number
from sibp.prox.operators import FeatureOperator
from sibp.prox.status import Measure

# A step beyond reason: this many times the layer's norm, and of more than this size a number on average.
_ABSURD_CHANGE, _ABSURD_SIZE = 100.0, 1.0


class ProximalOptimizer(TappedOptimizer):
    """Base of the proximal methods; see `SIBP` for the arguments and for what users meet."""

    solvers: ClassVar[tuple[str, ...]] = ()
    activation_inside: ClassVar[bool] = False
    """Whether "cg:K" is about the subproblem with its activation, and the linear one is solved in closed form."""

    @abstractmethod
    def update(
        self, problem: LayerProblem, solver: Solver, eta: float, prox_weight: float
    ) -> tuple[LayerUpdate, Measure]:
        """One layer's update by the method, eta for error signals as they are in the problem; pure."""

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of its range, or names no solver."""
        check_group(group)
        one_of(group, "backward_weights", ("new", "old"))
        one_of(group, "prox_weight_scaling", ("absolute", "relative"))
        self._solver(group)

    def wants_activation(self, tap: Tap) -> bool:
        """Whether the layer's solver uses the activation that follows."""
        return self._solver(self._group_of(tap)).kind in ("cg", "paper")

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """Solves a layer's subproblem and keeps the metrics."""
        self._stats.pop(tap.name, None)
        lr, prox_weight = float(group["lr"]), float(group["prox_weight"])
        solver, whole = self._solver(group), problem
        if self.parallel is not None:
            closed = solver.kind == "cg" and self.activation_inside and problem.activation is None
            whole = self.parallel.share(problem, Solver("exact") if closed else solver, lr, prox_weight)
        if group["prox_weight_scaling"] == "relative":
            prox_weight *= mean_squared_row(whole.features)
        update, measure = self.update(whole, solver, lr * whole.terms, prox_weight)
        self._stats[tap.name] = (measure, _reached(problem))
        self._warn_of_absurd_steps(tap, update)
        return update

    def _warn_of_absurd_steps(self, tap: Tap, update: LayerUpdate) -> None:
        """Says once for every layer that its solve failed, or that its step is beyond reason."""
        change = update.squared_change
        if tap.name in self._warned or change is None or isinstance(change, Tensor):
            return  # on an accelerator, looking would make it wait
        numbers = sum(p.numel() for p in tap.parameters.values())
        if change <= _ABSURD_SIZE**2 * numbers:
            return
        advice = f"Lower lr or raise prox_weight of {type(self).__name__}. (Said once for each layer.)"
        if not math.isfinite(change):
            self._warned.add(tap.name)
            warnings.warn(
                f"layer '{tap.name}': its subproblem has no finite solution in this precision, or its inputs are not "
                f"finite; its weights were kept. {advice}",
                RuntimeWarning,
                stacklevel=2,
            )
            return
        norm = math.sqrt(sum(float(p.detach().double().square().sum()) for p in tap.parameters.values()))
        if math.sqrt(change) > _ABSURD_CHANGE * norm:
            self._warned.add(tap.name)
            warnings.warn(
                f"layer '{tap.name}': one step changes its weights by {math.sqrt(change):.1e}, where their norm is "
                f"{norm:.1e}. {advice}",
                RuntimeWarning,
                stacklevel=2,
            )

    def solver_stats(self) -> dict[str, dict[str, float]]:
        """What the solver did in the last backward pass; reading it synchronises the device.

        Returns:
            For each layer by name: `decrease` (1 - f_end/f_start of the subproblem), `rounds`, `step_length` (mean),
            `relative_change` (||dW|| / ||W||, weight and bias together), `active_fraction` (share of pre-activations
            that a difference reaches), `status` (a `sibp.prox.Status`).
        """
        return {name: self._layer_stats(name) for name in self._stats}

    def _layer_stats(self, name: str) -> dict[str, float]:
        measure, reached = self._stats[name]
        stats = measure()
        norm = math.sqrt(sum(p.detach().double().square().sum().item() for p in self._taps[name].parameters.values()))
        change = math.sqrt(stats.squared_change)
        return {
            "decrease": float(stats.decrease),
            "rounds": float(stats.rounds),
            "step_length": float(stats.step_length),
            "relative_change": change / norm if norm else math.inf if change else 0.0,
            "active_fraction": float(reached()),
            "status": float(stats.status),
        }

    def _reset(self) -> None:
        super()._reset()
        self._stats: dict[str, tuple[Measure, Callable[[], Number]]] = {}
        self._warned: set[str] = set()  # layers

    def _own(self, tap: Tap, group: int) -> None:
        if self._solver(self.param_groups[group]).kind == "paper":
            check_paper(tap.name, tap.module.get_parameter("weight"))
        super()._own(tap, group)

    def _solver(self, group: dict[str, Any]) -> Solver:
        solver = parse_solver(group["solver"], self.solvers)
        if solver.kind == "paper" and self.parallel is not None:
            raise ValueError("solver='paper' cannot be data_parallel: its line search couples all neurons; use 'cg:5'.")
        return solver


def mean_squared_row(features: FeatureOperator) -> float:
    """The mean of ||phi||^2 over the rows phi of all groups; 1 where that is 0, as nothing moves then.

    It is what a relative proximal weight is measured in: the Gram matrix of N rows has this times N for its trace.
    """
    rows = float(features.total(features.x.new_tensor(float(features.rows * features.groups))))
    return float(features.squared_norm().sum()) / max(rows, 1.0) or 1.0


def _reached(problem: LayerProblem) -> Callable[[], Number]:
    """The share of pre-activations that a difference reaches: when asked for, or now if D_z is too large to keep."""
    D_z = problem.D_z

    def share() -> Number:
        return number(D_z.sign().abs_().sum()) / max(D_z.numel(), 1)  # three times faster than counting

    if problem.features.spanned:
        return share
    now = share()
    return lambda: now
