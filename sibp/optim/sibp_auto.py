"""AutoSIBP: proximal steps whose length needs no tuning."""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.direction import LENGTH_FACTOR, RANK, has_basis, orthogonal, update_mean
from sibp.optim.error_signals import layer_factor, loss_unit
from sibp.optim.fallback import FALLBACK_LR, adam
from sibp.optim.options import Options
from sibp.optim.proximal import SHORTEST
from sibp.optim.search import Outcome, SearchStatus, backtrack, halve_while_decreasing, minimise
from sibp.optim.sibp import SIBP
from sibp.optim.trials import Trials
from sibp.optim.trust import UNKNOWN, is_within_noise, record_loss, record_slopes

_AFTER_REFUSAL = 0.1  # factor of the reach after a refused step
_OUTLIER = 3.0  # a batch is an outlier if its loss exceeds this multiple of the last measured batch's loss
MEASURE_EVERY = 3  # steps from one measurement of the gradient to the next


class AutoSIBP(SIBP):
    r"""Proximal steps with a line search along the whole step: nothing to tune.

    Every layer solves its linear proximal subproblem, with a proximal weight in units of its inputs' size and the error
    signal of ordinary back propagation. A running mean of steps is made orthogonal, as in Muon but at low rank (see
    `sibp.optim.direction`), so that all parameters and all directions of weight space have equal weight. A line search
    chooses one length for all layers together, at most `lr`:

        opt = AutoSIBP(model)
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step(evaluate=lambda: F.cross_entropy(model(x), y), loss=loss)

    - Before a step is taken, the loss at its end is evaluated. While that loss is higher than before the step, the step
      is shortened, by at least half. If no trial helps, the weights stay as they were. Passing `loss`, the loss before
      the step, saves one evaluation.
    - Every third step measures the slope of the loss, which determines a parabola together with a trial. The trial is
      twice as long as the last optimum, or longer if needed to change the weights by more than rounding does (rounding
      to bfloat16 under autocast). The parabola's minimum is the length that this batch asks for (`reach`); the next two
      steps use it as well. The length is shortened while the loss decreases by less than a quarter of what the slope
      predicts. If the losses of consecutive batches usually differ by more than a tenth, the length grows only if the
      slope predicts a decrease of at least a fifth of that difference, or if the slope is at least as steep as usual.
    - If a batch has more than three times the loss of the last measured batch, the step is halved while that lowers the
      loss.
    - Steps take a share of this length, `trust`, since a batch's loss decreases further along its own step than the
      loss of all data. `trust` follows the slopes of later batches' losses along the step. It starts at 1, or at B / 16
      for batches of B < 16 samples. If the second batch differs from the first and B < 100, the second step limits
      `trust` to sqrt(B / 100).
    - The first step compares Polyak's step on the outputs with 2.5, its value for the cross-entropy of ten classes. If
      they differ by a factor above 30, `lr` is multiplied by their ratio, so that the unit of the loss does not matter.
    - A scheduler scales the step: at a fifth of the initial `lr`, steps are a fifth as long.
    - If the measured slope along the direction is not negative, the search uses the subproblems' own step instead. A
      refused step resets the running mean.

    See `step` for weight decay and the fallback. If `evaluate` is noisy, the search fits the noise. If the loss has no
    minimum along the step, the step has length `lr`.

    Args:
        model: any module.
        lr: the longest step on the neurons, >= 0, for a loss in ordinary units (see above); lowering it later shortens
            all steps in proportion.
        prox_weight: proximal weight, > 0, as a multiple of the mean squared norm of a layer's feature rows.
        solver: see `SIBP`. Slopes are measured with the error signals that the layers receive, so other values of this
            and of `backward_weights` are for comparisons only.
        loss_average: whether the loss is a mean over the batch; see `SIBP`.
        weight_decay: see `SIBP`.
        backward_weights: see `SIBP`; "old" makes the error signals those of the loss.
        prox_weight_scaling: see `SIBP`.
        **options: `params`, `fallback`, `explicit`, `data_parallel`: see `sibp.optim.options.Options`. All groups share
            one search, and each steps in proportion to its `lr`. Decisions use the mean loss of all ranks.
            `direction_only` is not supported.

    Raises:
        ValueError: for hyper-parameters out of range, parameters that are not the model's.
        TypeError: for a model that cannot be tapped.
    """

    initial_search_state: ClassVar[dict[str, Any]] = {
        "search_unit": UNKNOWN,  # unit of `lr`; see `sibp.optim.error_signals.loss_unit`
        "search_reach": UNKNOWN,  # length that the last measured batch asked for, in steps on the neurons
        "search_trust": UNKNOWN,  # see `sibp.optim.trust`
        "search_mean_expected": UNKNOWN,  # running mean of the decreases that slopes predict for the last step's length
        "search_mean_slope": UNKNOWN,  # running mean of |slope| per unit of length
        "search_end_loss": UNKNOWN,  # the loss at the end of the last step
        "search_noise": UNKNOWN,  # running mean of the difference between this and the next batch's loss
        "search_measured_loss": UNKNOWN,  # loss of the last measured batch, before its step
        "search_wait": 0,  # steps until the next measurement of the gradient
        "search_last_length": 0.0,  # length of the last step
        "search_step_stored": False,  # whether the parameters' `search_step` is the last step
    }

    def __init__(
        self,
        model: nn.Module,
        lr: float = 10.0,
        prox_weight: float = 1.0,
        solver: str = "exact",
        loss_average: bool | int = True,
        *,
        weight_decay: float = 0.0,
        backward_weights: str = "old",
        prox_weight_scaling: str = "relative",
        **options: Unpack[Options],
    ) -> None:
        super().__init__(
            model,
            lr,
            prox_weight,
            solver,
            loss_average,
            weight_decay=weight_decay,
            backward_weights=backward_weights,
            prox_weight_scaling=prox_weight_scaling,
            line_search=True,
            **options,
        )

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """Solves a layer's subproblem; stores its gradient if a measurement is due.

        With `backward_weights="old"`, this is the gradient of the loss.
        """
        self._rounding = max(self._rounding, torch.finfo(problem.dtype).eps)
        if self._is_measurement_due():
            self._add_gradient(tap, problem)
        return super().layer_update(tap, problem, group)

    def neuron_step(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> float:
        """The longest step on a layer's neurons; see `sibp.optim.error_signals`.

        If there are several output layers, the one with the largest error signal counts.
        """
        lr = self._unit() * self.full_lr(group)
        norm = problem.terms * float(torch.linalg.vector_norm(problem.D_z, dtype=torch.float64))
        square = self._sum_over_ranks(norm * norm)  # norm ** 2 would raise where this becomes infinite
        if problem.ends[1] == tap.name:  # counts the rows of a pass once
            self._output_rows += problem.D_z.numel() // max(math.prod(problem.W.shape[:-1]), 1)
        if problem.is_output:
            self._signals[tap.name] = square
            return lr
        return lr * layer_factor(square, output=max(self._signals.values(), default=math.nan))

    def search(self, trials: Trials, before: float) -> Outcome:
        """Chooses the length of the step; the class's docstring has the rules.

        Args:
            trials: the losses along the step.
            before: the loss before the step.
        """
        memory, lr, factor = self._search_state(), self._unit() * self._max_lr(), self._schedule_factor()
        if factor == 0:  # only the fallback's parameters move
            self._output_rows = 0
            unchanged = Outcome(1.0, before, 0, 1.0, 0.0, SearchStatus.TAKEN)
            return backtrack(trials.loss_at, before, 1.0) if trials.fallback_params else unchanged
        if math.isnan(memory["search_unit"]):
            memory["search_unit"] = self._chosen_unit(before)
            if memory["search_unit"] < 1:
                memory["search_reach"] = memory["search_unit"] * lr
        record_loss(memory, before, self._total_output_rows)
        self._output_rows = 0
        self._set_direction(trials)
        reach, due = min(lr, memory["search_reach"]), self._is_measurement_due()  # lr while the reach is NaN
        if due:
            slope = self._slope(trials, lr)
            if not slope < 0:
                trials.set_direction(None)
                slope = self._slope(trials, lr)
            share = factor * self._trust(trials, slope / lr)
            trials.expected = min(1.0, share * reach / lr)
            limit = reach / lr if is_within_noise(memory, slope / lr, reach, before) else 1.0
            first = min(limit, max(2 * reach / lr, self._shortest_visible(trials)))
            outcome = minimise(trials.loss_at, before, first, slope, share, limit)
            found, memory["search_measured_loss"] = outcome.optimum * lr, before
        else:
            trials.expected = min(1.0, factor * memory["search_trust"] * reach / lr)
            outcome, found = backtrack(trials.loss_at, before, trials.expected), reach
            measured = memory["search_measured_loss"]
            if before - measured > (_OUTLIER - 1) * abs(measured):
                outcome = halve_while_decreasing(trials.loss_at, outcome)
        refused = outcome.status is SearchStatus.REFUSED
        if refused:
            self._reset_means()
        memory["search_reach"] = max(reach * _AFTER_REFUSAL if refused else found, SHORTEST * lr)
        # A refused step, or a shortened one that was not measured, is followed by a measurement.
        again = refused or (not due and outcome.status is SearchStatus.SHORTENED)
        memory["search_wait"] = 0 if again else MEASURE_EVERY - 1 if due else self._steps_until_measurement() - 1
        memory["search_end_loss"] = outcome.loss
        if lr < (longest := self._unit() * self._max_lr()):  # the unit has become known, and is longer
            memory["search_reach"], memory["search_wait"] = longest, 0
        self._record_step(trials, outcome.alpha, lr)
        return outcome

    def search_stats(self) -> dict[str, float]:
        """Metrics of the last step's line search; empty before the first step.

        Returns:
            The entries of `SIBP.search_stats`, `reach` (the length that the last measured batch asked for, as a step on
            the neurons like lr) and `trust` (the share of it that is taken).
        """
        stats, memory = super().search_stats(), self._search_state()
        if stats:
            stats["reach"] = float(memory["search_reach"])
            stats["trust"] = min(1.0, float(memory["search_trust"]))  # 1 while it is NaN
        return stats

    def _set_direction(self, trials: Trials) -> None:
        """Replaces the step by the direction of the search; see `sibp.optim.direction`.

        Every parameter moves by the same root mean square, in proportion to its group's lr.
        """
        lr_of = {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}
        output_params = {p for name in self._signals for p in self.layers.taps[name].parameters.values()}
        step_norms, directions, target_norms = [], [], []
        for p in trials.params:
            if p.grad is None:
                raise AssertionError("a parameter of the step has no .grad")
            step_norms.append(float(torch.linalg.vector_norm(p.grad)))
            directions.append(self._direction(p, p.grad, output=p in output_params))
            target_norms.append(lr_of[p] * math.sqrt(p.numel()))
        norms = [float(torch.linalg.vector_norm(d)) for d in directions]
        total = math.hypot(*(target for target, norm in zip(target_norms, norms, strict=True) if norm > 0))
        length = LENGTH_FACTOR * math.hypot(*step_norms) / total if total > 0 else math.nan
        if not 0 < length < math.inf:
            return
        scales = [length * target / norm if norm > 0 else 0.0 for target, norm in zip(target_norms, norms, strict=True)]
        for p, d, scale in zip(trials.params, directions, scales, strict=True):
            torch.sub(p.grad, d, alpha=scale, out=d)  # pyright: ignore[reportArgumentType, reportCallIssue]
        trials.set_direction(directions)

    def _direction(self, p: Tensor, step: Tensor, *, output: bool) -> Tensor:
        """The direction of one parameter, in its shape; orthogonal for inner matrices. Updates its state."""
        state = self._direction_state(p)
        ahead = update_mean(state["search_mean"], step)
        if p.ndim < 2 or output:
            return ahead
        working = torch.promote_types(p.dtype, torch.float32)
        basis = state.get("search_basis")
        M, basis = orthogonal(ahead.flatten(1).to(working), None if basis is None else basis.to(working))
        if basis is not None:
            state["search_basis"] = basis.to(p.dtype).contiguous()
        return M.reshape(p.shape).to(p.dtype)

    def _direction_state(self, p: Tensor) -> dict[str, Any]:
        """A proximal parameter's state; adds the entries that its direction needs, initially 0."""
        state = self.state[p]
        if "search_mean" not in state:
            state["search_mean"] = torch.zeros_like(p)
            if p.ndim > 1 and has_basis(p.shape):
                state["search_basis"] = p.new_zeros(p[0].numel(), RANK)
        return state

    def _reset_means(self) -> None:
        """Resets the running means of steps, after a refused step."""
        for group in self._proximal_groups():
            for p in group["params"]:
                self._direction_state(p)["search_mean"].zero_()

    def _slope(self, trials: Trials, lr: float) -> float:
        """Slope d loss / d alpha at the start of the step, over all ranks; NaN if no gradient was measured."""
        gradients = [self._gradients.get(p) for p in trials.params]
        if lr == 0 or all(g is None for g in gradients):
            return math.nan
        return self._reduce_over_ranks(trials.slope(gradients))

    def _trust(self, trials: Trials, slope: float) -> float:
        """Updates and returns trust, the share of a batch's own optimal length that a step takes.

        Args:
            trials: the losses along the step.
            slope: slope of the loss along the step, per unit of length.
        """
        memory = self._search_state()
        last = [self.state[p].get("search_step") if memory["search_step_stored"] else None for p in trials.params]
        pairs = [(self._gradients.get(p), d) for p, d in zip(trials.params, last, strict=True)]
        products = [float(torch.sum(g * d)) for g, d in pairs if g is not None and d is not None]
        fresh = self._reduce_over_ranks(sum(products))
        if products:
            record_slopes(memory, fresh, expected=slope * memory["search_last_length"])
        return memory["search_trust"]

    def _shortest_visible(self, trials: Trials) -> float:
        """The length that changes the weights by their rounding error; the loss along a shorter step is only noise.

        Without this limit, the search would shorten steps further that are too short for half precision.
        """
        change = trials.relative_change()
        return self._rounding / change if change > 0 else 0.0

    def _unit(self) -> float:
        """The unit of `lr`; 1 in the first step, whose subproblems are solved before the loss is known."""
        unit = float(self._search_state()["search_unit"])
        return 1.0 if math.isnan(unit) else unit

    def _chosen_unit(self, before: float) -> float:
        """The unit of `lr` from the second step on; see `sibp.optim.error_signals`."""
        terms = float(self.last_terms or 1)
        if self.loss_average is not False:
            terms = self._sum_over_ranks(terms)
        return loss_unit(before * terms, sum(self._signals.values()))

    def _total_output_rows(self) -> float:
        """Rows of the output over all ranks; 0 if the output has no subproblem."""
        return self._sum_over_ranks(float(self._output_rows))

    def _sum_over_ranks(self, value: float) -> float:
        """The sum of a value over all ranks."""
        if self.parallel is None:
            return value
        device = next(iter(self._first_group()["params"])).device
        return self.parallel.reduce_loss(value, 0, mean=False, device=device)

    def _record_step(self, trials: Trials, alpha: float, lr: float) -> None:
        """Stores the step that was taken if the next step measures slopes; frees this step's gradients."""
        self._gradients.clear()
        self._signals.clear()
        self._rounding = 0.0
        memory = self._search_state()
        memory["search_last_length"] = alpha * lr
        memory["search_step_stored"] = memory["search_wait"] <= 0 and alpha != 0
        if not memory["search_step_stored"]:
            return
        trials.move(alpha)
        self._keep_steps(dict(zip(trials.params, trials.changes(), strict=True)))

    def init_search_state(self) -> None:
        """Creates the search's state, including the last step of every parameter."""
        super().init_search_state()
        self._keep_steps({})
        self._reset_means()

    def _keep_steps(self, steps: Mapping[Tensor, Tensor]) -> None:
        """Stores the last step of every proximal parameter; 0 for parameters that are not in `steps`."""
        for group in self._proximal_groups():
            for p in group["params"]:
                step = steps.get(p)
                self.state[p]["search_step"] = torch.zeros_like(p) if step is None else step

    def _add_gradient(self, tap: Tap, problem: LayerProblem) -> None:
        """Adds a layer's gradient to those of earlier backward passes since the last `zero_grad`."""
        parts = problem.features.displacement(problem.D_z)
        for key, part in zip(("weight", "bias"), parts, strict=True):
            p = tap.parameters.get(key)
            if part is None or p is None:
                continue
            part = part.detach().reshape(p.shape)
            earlier = self._gradients.get(p)
            if earlier is None or p.grad is None or not bool(p.grad.any()):
                self._gradients[p] = part.clone()
            else:
                self._gradients[p] = earlier + part

    def _is_measurement_due(self) -> bool:
        return self._steps_until_measurement() <= 0

    def _steps_until_measurement(self) -> int:
        """Steps until the gradient is measured again."""
        return int(self._search_state()["search_wait"])

    def _max_lr(self) -> float:
        """The longest step: the larger of the first proximal group's lr and its initial lr."""
        first = self._first_group()
        return max(float(first["lr"]), first["longest"]) if first else 0.0

    def _schedule_factor(self) -> float:
        """The factor by which the schedule shortens all steps: lr / initial lr of the first group.

        If that group's lr is 0, it is the largest such ratio of the other groups, at most 1.
        """
        first, longest = self._first_group(), self._max_lr()
        if longest and float(first["lr"]) > 0:
            return float(first["lr"]) / longest
        others = (float(g["lr"]) / g["longest"] for g in self._proximal_groups() if g["longest"] > 0)
        return min(max(others, default=0.0), 1.0)

    def _first_group(self) -> dict[str, Any]:
        """The group whose lr is the unit of length: the first proximal one whose lr or initial lr is above 0.

        Without such a group, it is the first proximal one; empty if there is none.
        """
        moving = (g for g in self._proximal_groups() if max(float(g["lr"]), g["longest"]) > 0)
        return next(moving, next(self._proximal_groups(), {}))

    def _proximal_groups(self) -> Iterator[dict[str, Any]]:
        return (group for group in self.param_groups if group["update"] == "proximal")

    def full_lr(self, group: dict[str, Any]) -> float:
        """The group's lr without the schedule's factor, because the search applies that to the whole step."""
        return float(group["lr"]) / (self._schedule_factor() or 1.0)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clears the gradients, and the count of the output rows that they come from."""
        super().zero_grad(set_to_none)
        self._output_rows = 0

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group and records its initial lr; see `SIBP`."""
        super().add_param_group(param_group)
        for group in self._proximal_groups():
            group.setdefault("longest", float(group["lr"]))

    def _reset(self) -> None:
        super()._reset()
        self._gradients: dict[Tensor, Tensor] = {}
        self._signals: dict[str, float] = {}  # sums of squared error signals of the output layers, by name
        self._rounding = 0.0  # the largest machine epsilon among the layers' outputs
        self._output_rows = 0  # rows of the output in the backward passes since the last step


def build(model: nn.Module, *, lr: float, prox_weight: float, fallback_lr: float = FALLBACK_LR) -> AutoSIBP:
    """Makes AutoSIBP from a config."""
    return AutoSIBP(model, lr, prox_weight, fallback=adam(fallback_lr))
