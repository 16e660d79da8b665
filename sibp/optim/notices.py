"""Warnings of a proximal optimizer, each given once: failed solves, absurdly long steps, steps that are not taken."""

import math
import warnings

from torch import Tensor

from sibp.capture.problem import LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.trials import Trials

# A step is absurdly long if it exceeds this multiple of the layer's norm, and this root mean square per entry.
_ABSURD_CHANGE, _ABSURD_SIZE = 100.0, 1.0
_REFUSALS = 10  # consecutive refused steps after which a warning is given
_MOVED = 0.01  # relative change of the weights that must change a loss, at least in its last bit
_LOSS, _SEARCH, _CONSTANT = "the loss", "the search", "the same loss"


class Notices:
    """Warnings of one optimizer.

    Args:
        method: the optimizer's name.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._warned: set[str] = set()  # layers, `_LOSS`, `_SEARCH`, `_CONSTANT`
        self._unsolved: list[str] = []  # layers, since the last step
        self._refused = 0  # searches in a row
        self._losses: list[float] = []  # evaluated in the last search

    def after_solve(self, tap: Tap, update: LayerUpdate, *, searched: bool) -> None:
        """Warns of a failed solve, or of an absurdly long step.

        Args:
            tap: the layer's tap.
            update: the layer's update.
            searched: whether a line search follows, which shortens steps. Then `warn_of_failed_solves` has to be called
                before it.
        """
        change = update.change_bound
        if change is None or isinstance(change, Tensor) or change <= _ABSURD_SIZE**2:
            return  # reading values would synchronise an accelerator
        numbers = sum(p.numel() for p in tap.parameters.values())
        if change <= _ABSURD_SIZE**2 * numbers or tap.name in self._warned:
            return
        if not math.isfinite(change):
            self._unsolved.append(tap.name)
        if searched:
            return
        self.warn_of_failed_solves()
        if math.isfinite(change) and math.sqrt(change) > _ABSURD_CHANGE * (norm := parameter_norm(tap)):
            self._warn_once(
                tap.name,
                f"layer '{tap.name}': one step changes its weights by {math.sqrt(change):.1e}, where their norm is "
                f"{norm:.1e}. {self._advice}",
            )

    def warn_of_failed_solves(self) -> None:
        """Warns of layers whose solve has failed although the loss is finite."""
        for name in dict.fromkeys(self._unsolved):
            self._warn_once(
                name,
                f"layer '{name}': its subproblem has no finite solution in this precision, or its inputs are not "
                f"finite; its weights were kept. {self._advice}",
            )
        self._unsolved.clear()

    def forget(self) -> None:
        """Forgets failed solves whose gradients were discarded."""
        self._unsolved.clear()

    def loss_not_finite(self, loss: float) -> None:
        """Warns that no step was taken, because the loss is not finite."""
        self.forget()
        self._warn_once(
            _LOSS,
            f"{self._method}: the loss before the step is {loss}, so no step was taken and all weights were "
            "kept. Look for NaN or infinite numbers in the batch and in the model's output. (Said once.)",
        )

    def after_search(self, trials: Trials, *, refused: bool) -> None:
        """Warns if no length has been acceptable for many steps, or if a step taken left the loss the same."""
        found = [*self._losses, *trials.losses]
        same = len(found) > 1 and len(set(found)) == 1 and math.isfinite(found[0])
        zero = same and found[0] == 0  # a loss that training has brought to 0 may stay there
        if same and not zero and not refused and trials.farthest_change() > _MOVED:
            self._warn_once(
                _CONSTANT,
                f"{self._method}: evaluate returned {found[0]} at different weights, so the step could not be checked. "
                "It has to compute the loss anew from the model, not return one computed before. (Said once.)",
            )
        self._losses = trials.losses
        self._refused = self._refused + 1 if refused else 0
        if self._refused == _REFUSALS:
            self._warn_once(
                _SEARCH,
                f"{self._method}: no length was acceptable in {_REFUSALS} steps in a row, so all weights were kept. "
                "Either evaluate does not compute the loss of the backward pass (another batch, a loss that is not "
                "finite at trial weights), or lr is so large that the direction is useless. (Said once.)",
            )

    @property
    def _advice(self) -> str:
        return f"Lower lr or raise prox_weight of {self._method}. (Said once for each layer.)"

    def _warn_once(self, about: str, sentence: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(sentence, RuntimeWarning, stacklevel=4)


def parameter_norm(tap: Tap) -> float:
    """The norm of a layer's weight and bias together."""
    return math.sqrt(sum(float(p.detach().double().square().sum()) for p in tap.parameters.values()))
