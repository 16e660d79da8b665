"""What SIBP and ProxBP share: a proximal subproblem for every layer, its solver by name, and the solver's figures."""

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

from sibp.capture.tap import LayerProblem, LayerUpdate, Tap
from sibp.optim.base import TappedOptimizer
from sibp.optim.checks import check_group
from sibp.optim.solvers import Solver, check_paper, parse_solver
from sibp.prox.numbers import Number, number
from sibp.prox.status import Measure


class ProximalOptimizer(TappedOptimizer):
    """Base of the proximal methods; see `SIBP` for the arguments and for what users meet."""

    solvers: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def update(
        self, problem: LayerProblem, solver: Solver, eta: float, prox_weight: float
    ) -> tuple[LayerUpdate, Measure]:
        """One layer's update by the method, eta for differences as they are in the problem; pure."""

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of its range, or names no solver."""
        check_group(group)
        self._solver(group)

    def wants_activation(self, tap: Tap) -> bool:
        """Whether the layer's solver uses the activation that follows."""
        return self._solver(self._group_of(tap)).kind in ("cg", "paper")

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """Solves a layer's subproblem and keeps the figures."""
        self._stats.pop(tap.name, None)
        lr, prox_weight = float(group["lr"]), float(group["prox_weight"])
        solver, whole = self._solver(group), problem
        if self.parallel is not None:
            closed = solver.kind == "cg" and self.semi_implicit and problem.activation is None
            whole = self.parallel.share(problem, Solver("exact") if closed else solver, lr, prox_weight)
        update, measure = self.update(whole, solver, lr * whole.terms, prox_weight)
        self._stats[tap.name] = (measure, _reached(problem))
        return update

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

    def _own(self, tap: Tap, group: int) -> None:
        if self._solver(self.param_groups[group]).kind == "paper":
            check_paper(tap.name, tap.module.get_parameter("weight"))
        super()._own(tap, group)

    def _solver(self, group: dict[str, Any]) -> Solver:
        solver = parse_solver(group["solver"], self.solvers)
        if solver.kind == "paper" and self.parallel is not None:
            raise ValueError("solver='paper' cannot be data_parallel: its line search couples all neurons; use 'cg:5'.")
        return solver


def _reached(problem: LayerProblem) -> Callable[[], Number]:
    """The share of pre-activations that a difference reaches: when asked for, or now if D_z is too large to keep."""
    D_z = problem.D_z

    def share() -> Number:
        return number(D_z.sign().abs_().sum()) / max(D_z.numel(), 1)  # three times faster than counting

    if problem.features.spanned:
        return share
    now = share()
    return lambda: now
