"""Common base of SIBP and ProxBP: a proximal subproblem for every layer, its solver by name, and its metrics."""

import math
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sibp.capture.compiler import run_eagerly
from sibp.capture.passes import ForwardPass, RandomState
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.internals import version
from sibp.optim.base import TappedOptimizer
from sibp.optim.checks import check_group, one_of
from sibp.optim.fallback import FALLBACK_LR, adam
from sibp.optim.notices import Notices, parameter_norm
from sibp.optim.search import Outcome, SearchStatus, backtrack
from sibp.optim.solvers import Solver, check_paper, parse_solver
from sibp.optim.trials import Evaluate, Trials, as_number, evaluate_from_closure
from sibp.prox.operators import FeatureOperator
from sibp.prox.outputs import share_of_nonzeros
from sibp.prox.scalars import Scalar
from sibp.prox.status import Measure

_AFTER_REFUSAL = 0.1  # length stored after a refused step, as a share of its first trial
SHORTEST = 1e-9  # smallest length that a search stores for the next step, as a share of the whole step


class ProximalOptimizer(TappedOptimizer):
    """Base of the proximal methods; see `SIBP` for the arguments and how to use them."""

    solvers: ClassVar[tuple[str, ...]] = ()
    """Kinds of solvers that the method supports."""
    activation_inside: ClassVar[bool] = False
    """Whether "cg:K" includes the activation. If so, layers without one solve the linear subproblem in closed form."""
    initial_search_state: ClassVar[dict[str, Any]] = {"search_length": 1.0}
    """The state of a search before the first step."""

    def __init__(self, *args: Any, line_search: bool = False, **options: Any) -> None:
        """See `SIBP`.

        Raises:
            ValueError: if `line_search` and `direction_only` are both set.
        """
        if line_search and options.get("direction_only"):
            raise ValueError(
                f"{type(self).__name__}: direction_only=True leaves the step to another optimizer, so there is nothing "
                "to search along; leave out one of line_search and direction_only."
            )
        self.line_search = line_search
        super().__init__(*args, **options)

    @abstractmethod
    def update(
        self, problem: LayerProblem, solver: Solver, eta: float, prox_weight: float
    ) -> tuple[LayerUpdate, Measure]:
        """Solves one layer's subproblem; a pure function.

        Args:
            problem: the subproblem.
            solver: one of `solvers`.
            eta: step on the neurons; it multiplies the error signals as they are in the problem.
            prox_weight: lam, absolute.

        Returns:
            The update, and a function that returns the solver's metrics.
        """

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of range, or the solver is unknown."""
        check_group(group)
        one_of(group, "backward_weights", ("new", "old"))
        one_of(group, "prox_weight_scaling", ("absolute", "relative"))
        self._solver(group)

    def wants_activation(self, tap: Tap) -> bool:
        """Whether the layer's solver uses the activation that follows."""
        return self._solver(self.group_of(tap)).kind in ("cg", "paper")

    def neuron_step(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> float:
        """eta, the step on a layer's neurons, for error signals of the summed loss."""
        del tap, problem
        return self.full_lr(group)

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """Solves a layer's subproblem and stores its metrics for `solver_stats`."""
        self._stats.pop(tap.name, None)
        lr, prox_weight = self.neuron_step(tap, problem, group), float(group["prox_weight"])
        solver, whole = self._solver(group), problem
        if self.parallel is not None:
            closed = solver.kind == "cg" and self.activation_inside and problem.activation is None
            whole = self.parallel.share(problem, Solver("exact") if closed else solver, lr, prox_weight)
        if group["prox_weight_scaling"] != "absolute":
            prox_weight *= mean_squared_row(whole.features)
        eta = min(lr * whole.terms, torch.finfo(problem.D_z.dtype).max)
        update, measure = self.update(whole, solver, eta, prox_weight)
        self._stats[tap.name] = (measure, _active_fraction(problem))
        self._notices.after_solve(tap, update, searched=self.line_search)
        return update

    def loss_terms(self, forward_pass: ForwardPass) -> float:
        """See `TappedOptimizer.loss_terms`; for a line search, also keeps the random state of the first pass."""
        self._random_state = self._random_state or (forward_pass.original or forward_pass).random_state
        return super().loss_terms(forward_pass)

    # -- the line search --------------------------------------------------------------------------------------------

    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        evaluate: Evaluate | None = None,
        loss: Tensor | float | None = None,
    ) -> Any:
        """Applies the displacements; with a line search, shortened so that the loss does not rise.

        The search covers the whole step, including weight decay and the fallback's step. If no length is acceptable,
        all weights stay exactly as they were. Trials restore buffers, the modules' `train` or `eval` mode and the
        random state. Each trial starts from the random state at the start of the model's forward pass, so its dropout
        masks are those of the gradient.

        If `evaluate` raises, weights and buffers are as before, and the step can be repeated. However, the state of the
        fallback and of AutoSIBP's direction has already advanced.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss. With a line search,
                trials call it too, at the cost of a backward pass each.
            evaluate: returns the loss at the model's weights at the time of the call; gradients are disabled. For
                accumulated gradients, the loss of all their batches.
            loss: the value of `evaluate` at the current weights, if known; saves one call. Omit it if `evaluate` draws
                random numbers before it calls the model: all trials draw the same ones, but the training pass has drawn
                others.

        Returns:
            The closure's loss, or None.

        Raises:
            RuntimeError: if a line search has neither `evaluate` nor a closure, or if the closure evaluates only a part
                of the accumulated batches; see also `TappedOptimizer.step`.
            ValueError: if `evaluate` or `loss` is given without a line search.
        """
        if not self.line_search:
            for name, given in (("evaluate", evaluate), ("loss", loss)):
                if given is not None:
                    raise ValueError(
                        f"{type(self).__name__}.step({name}=...) is for a line search: make the optimizer with "
                        f"line_search=True, or leave {name} out."
                    )
            return super().step(closure)
        if closure is None and evaluate is None and not self.direction_only:
            if self._nothing_to_apply():  # torch.distributed.checkpoint initialises an optimizer's state by such a step
                self.init_search_state()
                return super().step()
            raise RuntimeError(
                f"{type(self).__name__}: a line search evaluates the loss at trial weights; call "
                "optimizer.step(evaluate=lambda: loss_function(model(x), y)) with the batch of the backward "
                "pass. Where a framework calls step(), optimizer.register_step_pre_hook adds it."
            )
        closure_loss = None
        if closure is not None:
            pending = self.layers.pending()
            with torch.enable_grad():
                closure_loss = closure()
            if evaluate is None and any(each.remains() for each in pending):
                raise RuntimeError(
                    f"{type(self).__name__}: the closure did not clear .grad, so the step also contains an earlier "
                    "backward pass, whose loss the closure does not compute. Pass a function that only computes the "
                    "loss as step(evaluate=...), for accumulated gradients the loss of all their batches (in "
                    "Lightning: manual optimization), or call zero_grad() in the closure."
                )
        self._search_step(evaluate, closure, closure_loss if loss is None else loss)
        return closure_loss

    @run_eagerly
    def _search_step(
        self, evaluate: Evaluate | None, closure: Callable[[], Any] | None, loss: Tensor | float | None
    ) -> None:
        """Takes a step whose length the search chooses."""
        proximal, explicit = self._params_with_grad("proximal"), self._params_with_grad("explicit")
        if evaluate is None:
            if closure is None:
                raise AssertionError("step() accepts no call without evaluate and closure")
            evaluate = evaluate_from_closure(closure, self.model)
        trials = Trials(self.model, proximal, explicit, evaluate, self._reduce_over_ranks, self._random_state)
        self._random_state = None
        gradients = [(p, p.grad, version(p.grad)) for p in (*proximal, *explicit) if p.grad is not None]
        with self.paused(), trials.restored_on_error():
            before = trials.loss() if loss is None else self._reduce_over_ranks(as_number(loss))
            if any(p.grad is not grad or version(grad) != count for p, grad, count in gradients):
                raise RuntimeError(
                    f"{type(self).__name__}: evaluate has changed the gradients that the step applies; it has to "
                    "compute the loss only, without zero_grad(), backward() or clipping."
                )
            if not math.isfinite(before):
                self._skip_step(before)
                return
            self._notices.warn_of_failed_solves()
            super().step()
            try:
                trials.record_full_step()
                outcome = self.search(trials, before)
                trials.move(outcome.alpha)
            except BaseException:
                self.layers.unmark_applied()
                raise
        self._outcome = (outcome, before)
        self._notices.after_search(trials, refused=outcome.status is SearchStatus.REFUSED)

    def _skip_step(self, loss: float) -> None:
        """Skips the step because the loss is not finite: neither weights nor state change."""
        self._outcome = (Outcome(0.0, loss, 0, 0.0, math.nan, SearchStatus.REFUSED), loss)
        self._notices.loss_not_finite(loss)

    def search(self, trials: Trials, before: float) -> Outcome:
        """Chooses the step's length: the first trial's, shortened by half or more while it raises the loss.

        The first trial is the whole step, but at most twice as long as the last step.

        Args:
            trials: the losses along the step.
            before: the loss before the step.
        """
        memory = self._search_state()
        trials.expected = first = min(1.0, 2 * memory["search_length"])
        outcome = backtrack(trials.loss_at, before, first)
        memory["search_length"] = max(outcome.alpha or first * _AFTER_REFUSAL, SHORTEST)
        return outcome

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, and the pending warnings about them."""
        super().zero_grad(set_to_none)
        self._notices.forget()
        self._random_state = None

    def search_stats(self) -> dict[str, float]:
        """Metrics of the last step's line search; empty before the first step.

        Returns:
            `step` (its length, as a share of the step that the subproblems ask for), `trials` (evaluations, not
            counting the loss before the step), `decrease` (of the loss), `predicted_decrease` (by the parabola; NaN
            without one) and `status` (a `sibp.optim.search.SearchStatus`).
        """
        if self._outcome is None:
            return {}
        outcome, before = self._outcome
        return {
            "step": outcome.alpha,
            "trials": float(outcome.trials),
            "decrease": before - outcome.loss,
            "predicted_decrease": outcome.predicted,
            "status": float(outcome.status),
        }

    def _params_with_grad(self, update: str) -> list[Tensor]:
        """Parameters that a step moves. They have a gradient; only the fallback moves frozen ones, as torch does.

        Args:
            update: "proximal" or "explicit", which selects the groups.
        """
        groups = [group for group in self.param_groups if group["update"] == update]
        given = [p for group in groups for p in group["params"] if p.grad is not None]
        return [p for p in given if p.requires_grad] if update == "proximal" else given

    def _search_state(self) -> dict[str, Any]:
        """The search's state between steps; part of the first proximal parameter's state."""
        first = next((g["params"][0] for g in self.param_groups if g["update"] == "proximal"), None)
        memory = {} if first is None else self.state[first]
        for key, value in self.initial_search_state.items():
            memory.setdefault(key, value)
        return memory

    def init_search_state(self) -> None:
        """Creates the search's state."""
        self._search_state()

    def _nothing_to_apply(self) -> bool:
        """Whether no parameter has a gradient other than 0."""
        params = [p for group in self.param_groups for p in group["params"]]
        return not any(p.grad is not None and p.grad.any() for p in params)

    def __getstate__(self) -> dict[str, Any]:
        """Extends the base class by `line_search`."""
        return {**super().__getstate__(), "line_search": self.line_search}

    def _reduce_over_ranks(self, value: float) -> float:
        """Averages a loss or a slope over all ranks, so that all make the same decision."""
        if self.parallel is None:
            return value
        device = self.param_groups[0]["params"][0].device
        return self.parallel.reduce_loss(
            value, self.last_terms or 0, mean=self.loss_average is not False, device=device
        )

    # -- metrics ----------------------------------------------------------------------------------------------------

    def solver_stats(self) -> dict[str, dict[str, float]]:
        """Metrics of the last backward pass; reading them synchronises the device.

        Returns:
            For each layer by name: `decrease` (1 - f_end/f_start of the subproblem), `iterations`, `step_length`
            (mean), `relative_change` (||dW|| / ||W||, weight and bias together), `active_fraction` (share of
            pre-activations that an error signal reaches), `status` (a `sibp.prox.Status`).
        """
        return {name: self._layer_stats(name) for name in self._stats}

    def _layer_stats(self, name: str) -> dict[str, float]:
        measure, reached = self._stats[name]
        stats = measure()
        norm = parameter_norm(self.layers.taps[name])
        change = math.sqrt(stats.squared_change)
        return {
            "decrease": float(stats.decrease),
            "iterations": float(stats.iterations),
            "step_length": float(stats.step_length),
            "relative_change": change / norm if norm else math.inf if change else 0.0,
            "active_fraction": float(reached()),
            "status": float(stats.status),
        }

    def _reset(self) -> None:
        super()._reset()
        self._stats: dict[str, tuple[Measure, Callable[[], Scalar]]] = {}
        self._notices = Notices(type(self).__name__)
        self._random_state: RandomState | None = None  # of the first forward pass since the last step
        self._outcome: tuple[Outcome, float] | None = None  # of the last search, and the loss before it

    def add_tap(self, tap: Tap, group: int) -> None:
        """Taps a layer, unless its solver does not support it."""
        if self._solver(self.param_groups[group]).kind == "paper":
            check_paper(tap.name, tap.module.get_parameter("weight"))
        super().add_tap(tap, group)

    def _solver(self, group: dict[str, Any]) -> Solver:
        solver = parse_solver(group["solver"], self.solvers)
        if solver.kind == "paper" and self.parallel is not None:
            raise ValueError("solver='paper' cannot be data_parallel: its line search couples all neurons; use 'cg:5'.")
        return solver


def builder(method: Callable[..., ProximalOptimizer], backward_weights: str) -> Callable[..., ProximalOptimizer]:
    """The function that configs call to build a method; its keyword arguments are the config's keys.

    Args:
        method: the optimizer's class.
        backward_weights: the default if a config does not set it.
    """

    def build(
        model: nn.Module,
        *,
        lr: float,
        prox_weight: float,
        solver: str,
        backward_weights: str = backward_weights,
        prox_weight_scaling: str = "absolute",
        line_search: bool = False,
        fallback_lr: float = FALLBACK_LR,
    ) -> ProximalOptimizer:
        return method(
            model,
            lr,
            prox_weight,
            solver,
            backward_weights=backward_weights,
            prox_weight_scaling=prox_weight_scaling,
            line_search=line_search,
            fallback=adam(fallback_lr),
        )

    return build


def mean_squared_row(features: FeatureOperator) -> float:
    """The mean of ||phi||^2 over the rows phi of all groups; 1 if that is 0, as no parameter changes then.

    This is the unit of a relative proximal weight. The trace of the Gram matrix of N rows is N times this mean.

    Args:
        features: of the layer.
    """
    x, count = features.x, float(features.rows * features.groups)
    rows = max(float(features.total(torch.tensor(count, dtype=x.dtype, device=x.device))), 1.0)
    return float(features.squared_norm().sum()) / rows or 1.0


def _active_fraction(problem: LayerProblem) -> Callable[[], Scalar]:
    """A function that returns the share of pre-activations that an error signal reaches.

    It keeps D_z, or only the share where D_z is too large to keep.
    """
    D_z = problem.D_z

    if problem.features.spanned:
        return partial(share_of_nonzeros, D_z)
    now = share_of_nonzeros(D_z)
    return lambda: now
