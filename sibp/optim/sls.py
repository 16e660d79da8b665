"""Stochastic line search: SGD with Armijo's line search (Vaswani et al., NeurIPS 2019, arXiv 1905.09997)."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from sibp.optim.checks import check_settings, in_range
from sibp.optim.trials import Evaluate, Trials, as_number, evaluate_from_closure

MAX_TRIALS = 100  # after these, the step is refused: the weights stay as they were


class LineSearchSGD(torch.optim.Optimizer):
    r"""SGD whose step size is found by a line search on the loss of the same batch.

    The step size eta starts at that of the last step times `growth`, at most `lr`. It is multiplied by `shrink` until

    .. math:: f(w - \eta \nabla f(w)) \leq f(w) - c\, \eta\, \lVert \nabla f(w) \rVert^2

    (equation 1 and algorithm 2, option 2, of the paper).

    Args:
        model: the model to train.
        lr: eta_max, the largest step size, >= 0.
        length: the step size before the first step, > 0; that step starts at `length` * `growth`.
        growth: gamma^(b / n) in the paper, for batches of b of n samples; >= 1.
        shrink: beta, > 0 and < 1.
        decrease: c, >= 0 and < 1.

    Raises:
        ValueError: if a setting is out of range.
    """

    line_search = True
    """Always True: `step(evaluate=...)` evaluates the loss at trial weights."""

    def __init__(
        self,
        model: nn.Module,
        lr: float = 10.0,
        length: float = 1.0,
        growth: float = 2 ** (1 / 500),
        shrink: float = 0.9,
        decrease: float = 0.1,
    ) -> None:
        settings = {"lr": lr, "length": length, "growth": growth, "shrink": shrink, "decrease": decrease}
        check_settings(lr=lr)
        in_range(settings, "length", 0, open_at_low=True)
        in_range(settings, "growth", 1)
        in_range(settings, "shrink", 0, 1, open_at_low=True)
        in_range(settings, "decrease", 0, 1)
        super().__init__(model.parameters(), settings)
        self._model = model

    @torch.no_grad()
    def step(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        closure: Callable[[], Any] | None = None,
        *,
        evaluate: Evaluate | None = None,
        loss: Any = None,
    ) -> Any:
        """Steps all parameters with one step size; no step if the loss or the gradient is not finite.

        Args:
            closure: clears the gradients, computes the loss, calls `backward` and returns the loss.
            evaluate: computes the loss of the same batch, without backward; by default, the closure does.
            loss: the loss of the batch, if no closure is given; by default, `evaluate` computes it.

        Returns:
            The closure's loss, or the one given.

        Raises:
            RuntimeError: if neither closure nor `evaluate` is given.
        """
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        group = self.param_groups[0]  # its settings hold for groups that were added later, too
        moved = [p for each in self.param_groups for p in each["params"] if p.grad is not None]
        if evaluate is None and closure is None:
            raise RuntimeError("The line search needs the loss of the batch: call step(closure) or step(evaluate=...).")
        trials = Trials(self._model, moved, [], evaluate or evaluate_from_closure(closure, self._model), float)  # pyright: ignore
        before = as_number(loss) if loss is not None else trials.loss()
        lr, square = float(group["lr"]), sum(float(torch.linalg.vector_norm(p.grad)) ** 2 for p in moved)
        if not math.isfinite(before) or not 0 < lr * square < math.inf:
            return loss
        with trials.restored_on_error():
            for p in moved:
                p.sub_(p.grad, alpha=lr)  # pyright: ignore[reportArgumentType]
            trials.record_full_step()
            length = min(group["length"] * group["growth"], lr)
            for _ in range(MAX_TRIALS):
                if trials.loss_at(length / lr) <= before - group["decrease"] * length * square:
                    group["length"] = length
                    return loss
                length *= group["shrink"]
            trials.move(0.0)
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """Includes the model, for `deepcopy` and `pickle`."""
        return {**super().__getstate__(), "_model": self._model}


def build(
    model: nn.Module, *, lr: float, length: float, growth: float, shrink: float, decrease: float
) -> LineSearchSGD:
    """Makes SGD with a line search from a config."""
    return LineSearchSGD(model, lr, length, growth, shrink, decrease)
