"""AutoSIBP: proximal steps whose length nobody has to choose."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Unpack

import torch
from torch import Tensor, nn

from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.base import Options
from sibp.optim.direction import LONGER, RANK, averaged, has_basis, orthogonal
from sibp.optim.fallback import FALLBACK_LR, adam
from sibp.optim.search import Outcome, SearchStatus, backtrack, minimise, trust_after
from sibp.optim.sibp import SIBP
from sibp.optim.trials import Trials

_AFTER_REFUSAL = 0.1  # of the reach, where the next search begins after one that found nothing
_UNEQUAL = 30.0  # in mean square: by so much, error signals of well-behaved nets differ from layer to layer
_ENOUGH = 16  # rows of the output; a smaller batch is trusted in proportion, until the next ones have been seen
_USUAL = 0.1  # weight of the latest look in the mean that slopes are compared with
LOOK_EVERY = 3  # steps from one measurement of the gradient to the next
_UNKNOWN = math.nan  # until it has been measured


class AutoSIBP(SIBP):
    r"""Proximal steps with a line search along the whole step: nothing to tune.

    Every layer solves its linear proximal subproblem, with a proximal weight in units of its inputs' size and the error
    signal of ordinary back propagation. A mean of the last steps is made orthogonal, as in Muon but at low rank (see
    `sibp.optim.direction`), so that all parameters and all directions of weight space count alike. The step of all
    layers together, in this direction and at most `lr` long, is then taken as far as it does good:

        opt = AutoSIBP(model)
        opt.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        opt.step(evaluate=lambda: F.cross_entropy(model(x), y), loss=loss)

    - A step is only taken after its loss was seen, and not if that rises: then it is halved until it does not, and left
      out if that does not help. `loss`, that before the step, may be left out at the price of one more evaluation.
    - Every third step, a trial twice as long as the last optimum gives a parabola, whose minimum is the length that
      this batch asks for (`reach`); the steps between use that of before.
    - Of this length, a share is taken, `trust`: a batch's loss falls further along its own step than that of all data.
      `trust` follows the slope of the next batches' losses along the step, and with one batch for ever comes to 1. It
      begins there, too, but for batches of less than 16, which are trusted in proportion to their size.
    - A scheduler acts on the step: where it has lowered `lr` to a fifth of what it was at first, a fifth is taken of
      the length that would be taken otherwise.
    - Where the direction does not lead down, as a measured slope says, the subproblems' own step is taken instead, and
      after a step that was refused the mean begins anew.

    With weight decay or a fallback see `step`. Where evaluations have noise of their own, a search finds what lowers
    the noise; a loss that falls for ever makes every step `lr` long.

    Args:
        model: any module.
        lr: the longest step on the neurons that subproblems ask for, >= 0; lowered later, it shortens all steps in
            proportion.
        prox_weight: of the mean squared norm of a layer's feature rows, > 0.
        solver: see `SIBP`. The search measures slopes by the error signals that the layers get, so that other values of
            this and of `backward_weights` are for comparisons.
        loss_average: whether the loss is a mean over the batch; see `SIBP`.
        weight_decay: see `SIBP`.
        backward_weights: see `SIBP`; "old" makes the error signals those of the loss.
        prox_weight_scaling: see `SIBP`.
        **options: `params`, `fallback`, `explicit`, `data_parallel`: see `sibp.optim.base.Options`. One step length
            serves all groups, in proportion to their `lr`; losses are averaged over all ranks before anything is
            decided; `direction_only` is not possible.

    Raises:
        ValueError: for hyper-parameters out of range, parameters that are not the model's.
        TypeError: for a model that cannot be tapped.
    """

    search_start: ClassVar[dict[str, Any]] = {
        "search_reach": _UNKNOWN,
        "search_trust": _UNKNOWN,
        "search_usual": _UNKNOWN,
        "search_wait": 0,
        "search_last": 0.0,
        "search_looks_back": False,  # whether `search_step` of the parameters is the last step
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
        """The layer's update; now and then its gradient as well, which is the loss's with old weights."""
        if self._is_due():
            self._add_gradient(tap, problem)
        return super().layer_update(tap, problem, group)

    def neuron_step(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> float:
        """The longest step, longer for layers that error signals hardly reach, shorter for those where they have grown.

        Where error signals are `_UNEQUAL` times (in their mean square) smaller or larger than at the output, steps are
        longer or shorter by what exceeds this: all layers then promise a decrease of the loss of like size.
        """
        lr = float(group["lr"]) / (self._factor() or 1.0)
        size = (problem.terms * float(torch.linalg.vector_norm(problem.D_z, dtype=torch.float64))) ** 2
        if self.parallel is not None:
            size = self.parallel.whole_loss(size, 0, mean=False, device=problem.D_z.device)
        if problem.ends[1] == tap.name:
            self._outer.update(tap.parameters.values())
            self._signal_at_output = size
            self._output_rows += problem.D_z.numel() * problem.W.shape[-1] // problem.W.numel()
        ratio = self._signal_at_output / size if size > 0 else math.nan
        if not 0 < ratio < math.inf:
            return lr
        return lr * (max(ratio / _UNEQUAL, 1.0) if ratio > 1 else min(ratio * _UNEQUAL, 1.0))

    def search(self, trials: Trials, before: float) -> Outcome:
        """How far to go: see the class.

        Args:
            trials: the losses along the step.
            before: the loss where it starts.
        """
        memory, lr, factor = self._search_memory(), self._longest(), self._factor()
        if factor == 0:
            return Outcome(1.0, before, 0, 1.0, 0.0, SearchStatus.TAKEN)  # only the fallback's parameters change
        if math.isnan(memory["search_trust"]):
            rows = self._rows_of_all()
            memory["search_trust"] = min(1.0, rows / _ENOUGH) if rows else 1.0
        self._output_rows = 0
        self._turn(trials)
        reach, due = min(lr, memory["search_reach"]), self._is_due()  # lr as long as that is NaN
        if due:
            slope = self._slope(trials, lr)
            if not slope < 0:
                trials.turn(None)
                slope = self._slope(trials, lr)
            share = factor * self._trust(trials, slope / lr)
            trials.expected = min(1.0, share * reach / lr)
            outcome = minimise(trials.loss_at, before, min(1.0, 2 * reach / lr), slope, share)
            found = outcome.optimum * lr
        else:
            trials.expected = min(1.0, factor * memory["search_trust"] * reach / lr)
            outcome = backtrack(trials.loss_at, before, trials.expected)
            found = reach
        refused = outcome.status is SearchStatus.REFUSED
        if refused:
            self._forget_means()
        memory["search_reach"] = reach * _AFTER_REFUSAL if refused else found
        # A rejected length is measured again in the next step.
        again = refused or (not due and outcome.status is SearchStatus.SHORTENED)
        memory["search_wait"] = 0 if again else LOOK_EVERY - 1 if due else self._wait() - 1
        self._keep_for_trust(trials, outcome.alpha, lr)
        return outcome

    def search_stats(self) -> dict[str, float]:
        """What the line search of the last step did; empty before the first.

        Returns:
            What `SIBP.search_stats` says, and `reach` (the length that the last measured batch asked for, in the units
            of lr) and `trust` (the share of it that is taken).
        """
        stats, memory = super().search_stats(), self._search_memory()
        if stats:
            stats["reach"] = float(memory["search_reach"])
            stats["trust"] = min(1.0, float(memory["search_trust"]))  # 1 as long as that is NaN
        return stats

    def _turn(self, trials: Trials) -> None:
        """Turns a step into the direction that is searched along; see `sibp.optim.direction`.

        Every parameter moves by the same root mean square, in proportion to its group's lr.
        """
        lr_of = {p: float(group["lr"]) for group in self.param_groups for p in group["params"]}
        asked, turned, wanted = [], [], []
        for p in trials.params:
            if p.grad is None:
                raise AssertionError("the step did not move it")
            asked.append(float(torch.linalg.vector_norm(p.grad)))
            turned.append(self._direction(p, p.grad))
            wanted.append(lr_of[p] * math.sqrt(p.numel()))
        sizes = [float(torch.linalg.vector_norm(t)) for t in turned]
        whole = math.hypot(*(w for w, size in zip(wanted, sizes, strict=True) if size > 0))
        length = LONGER * math.hypot(*asked) / whole if whole > 0 else math.nan
        if not 0 < length < math.inf:
            return
        scales = [length * w / size if size > 0 else 0.0 for w, size in zip(wanted, sizes, strict=True)]
        for p, t, scale in zip(trials.params, turned, scales, strict=True):
            torch.sub(p.grad, t, alpha=scale, out=t)  # pyright: ignore[reportArgumentType, reportCallIssue]
        trials.turn(turned)

    def _direction(self, p: Tensor, step: Tensor) -> Tensor:
        """Where a parameter goes, of any length; keeps what the next step has to know."""
        state = self._remembered(p)
        ahead = averaged(state["search_mean"], step)
        if p.ndim < 2 or p in self._outer:
            return ahead
        working = torch.promote_types(p.dtype, torch.float32)
        basis = state.get("search_basis")
        M, basis = orthogonal(ahead.flatten(1).to(working), None if basis is None else basis.to(working))
        if basis is not None:
            state["search_basis"] = basis.to(p.dtype).contiguous()
        return M.reshape(p.shape).to(p.dtype)

    def _remembered(self, p: Tensor) -> dict[str, Any]:
        """A proximal parameter's state, with what its direction needs: 0 at first."""
        state = self.state[p]
        if "search_mean" not in state:
            state["search_mean"] = torch.zeros_like(p)
            if p.ndim > 1 and has_basis(p.shape):
                state["search_basis"] = p.new_zeros(p[0].numel(), RANK)
        return state

    def _forget_means(self) -> None:
        """After a step that was refused, the mean of steps begins anew."""
        for group in self.param_groups:
            for p in group["params"] if group["update"] == "proximal" else ():
                self._remembered(p)["search_mean"].zero_()

    def _slope(self, trials: Trials, lr: float) -> float:
        """Slope of the loss along the step, in units of its whole length; NaN where no gradient was measured."""
        gradients = [self._gradients.get(p) for p in trials.params]
        if lr == 0 or all(g is None for g in gradients):
            return math.nan
        return self._of_all_ranks(trials.slope(gradients))

    def _trust(self, trials: Trials, slope: float) -> float:
        """The share of a batch's own optimum that is taken from now on; `slope` is for a length of 1."""
        memory = self._search_memory()
        trust, usual, expected = memory["search_trust"], memory["search_usual"], slope * memory["search_last"]
        last = [self.state[p].get("search_step") if memory["search_looks_back"] else None for p in trials.params]
        pairs = [(self._gradients.get(p), d) for p, d in zip(trials.params, last, strict=True)]
        products = [float(torch.sum(g * d)) for g, d in pairs if g is not None and d is not None]
        fresh = self._of_all_ranks(sum(products))
        if products:
            if expected < 0:
                usual = -expected if math.isnan(usual) else usual + _USUAL * (-expected - usual)
                memory["search_usual"] = usual
            trust = memory["search_trust"] = trust_after(trust, fresh, expected, 0.0 if math.isnan(usual) else usual)
        return trust

    def _rows_of_all(self) -> float:
        """Rows of the output that the gradient is of, on all ranks together; 0 if the output has no subproblem."""
        if self.parallel is None:
            return float(self._output_rows)
        device = next(iter(self._first_group()["params"])).device
        return self.parallel.whole_loss(self._output_rows, 0, mean=False, device=device)

    def _keep_for_trust(self, trials: Trials, alpha: float, lr: float) -> None:
        """Keeps the step that is taken if the next one looks back at it; drops the gradients of this one."""
        self._gradients.clear()
        self._outer.clear()
        memory = self._search_memory()
        memory["search_last"] = alpha * lr
        memory["search_looks_back"] = memory["search_wait"] <= 0 and alpha != 0
        if not memory["search_looks_back"]:
            return
        trials.move(alpha)
        self._keep_steps(dict(zip(trials.params, trials.taken(), strict=True)))

    def begin_search(self) -> None:
        """Creates the memory of a search, which includes the last step of every parameter."""
        super().begin_search()
        self._keep_steps({})
        self._forget_means()

    def _keep_steps(self, steps: Mapping[Tensor, Tensor]) -> None:
        """Keeps the last step of every proximal parameter, 0 where it was not moved."""
        for group in self.param_groups:
            for p in group["params"] if group["update"] == "proximal" else ():
                step = steps.get(p)
                self.state[p]["search_step"] = torch.zeros_like(p) if step is None else step

    def _add_gradient(self, tap: Tap, problem: LayerProblem) -> None:
        """Adds a layer's gradient to what the backward passes since the last `zero_grad` have left."""
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

    def _is_due(self) -> bool:
        return self._wait() <= 0

    def _wait(self) -> int:
        """Steps until the gradient is measured again."""
        return int(self._search_memory()["search_wait"])

    def _longest(self) -> float:
        """The longest step: the first proximal group's lr, or what that was at first if it is lower now."""
        first = self._first_group()
        return max(float(first["lr"]), first["longest"]) if first else 0.0

    def _factor(self) -> float:
        """What a scheduler, or whoever lowered lr, makes of every step: lr as a share of the longest."""
        first, longest = self._first_group(), self._longest()
        return float(first["lr"]) / longest if longest else 0.0

    def _first_group(self) -> dict[str, Any]:
        """The proximal group in whose lr lengths are counted; empty if there is none."""
        return next((g for g in self.param_groups if g["update"] == "proximal"), {})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, which keeps in mind what its lr is now; see `SIBP`."""
        super().add_param_group(param_group)
        for group in self.param_groups:
            if group["update"] == "proximal":
                group.setdefault("longest", float(group["lr"]))

    def _reset(self) -> None:
        super()._reset()
        self._gradients: dict[Tensor, Tensor] = {}
        self._signal_at_output = math.nan
        self._output_rows = 0  # of the output in the backward passes since the last step
        self._outer: set[Tensor] = set()  # parameters of the output layer


def build(model: nn.Module, *, lr: float, prox_weight: float, fallback_lr: float = FALLBACK_LR) -> AutoSIBP:
    """Proximal steps with a line search, as a config names it."""
    return AutoSIBP(model, lr, prox_weight, fallback=adam(fallback_lr))
