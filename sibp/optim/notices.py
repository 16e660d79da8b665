"""Warnings of a proximal optimizer, each given once: failed solves, absurdly long steps, refused steps."""

import math
import warnings

from torch import Tensor

from sibp.capture.problem import LayerUpdate
from sibp.capture.tap import Tap
from sibp.optim.trials import Trials

# A step is absurdly long if its norm exceeds this multiple of the norm of the layer's parameters, and if the root mean
# square of its entries exceeds this size.
_ABSURD_CHANGE, _ABSURD_SIZE = 100.0, 1.0
_REFUSALS = 10  # consecutive refused steps after which a warning is given
_MOVED = 0.01  # a larger relative change of the weights must change the loss, at least in its last bit
_LOSS, _SEARCH, _CONSTANT = "the loss", "the search", "the same loss"


class Notices:
    """Warnings of one optimizer.

    Args:
        method: the optimizer's name.
    """

    def __init__(self, method: str) -> None:
        self._method = method
        self._warned: set[str] = set()  # subjects of the warnings given: layers, `_LOSS`, `_SEARCH`, `_CONSTANT`
        self._unsolved: list[str] = []  # layers whose solves have failed since the last step
        self._refused = 0  # number of consecutive refused steps
        self._losses: list[float] = []  # losses evaluated in the last search

    def after_solve(self, tap: Tap, update: LayerUpdate, *, searched: bool) -> None:
        """Warns of a failed solve, or of an absurdly long step.

        Args:
            tap: the layer's tap.
            update: the layer's update.
            searched: whether a line search follows, which shortens steps. The caller then has to call
                `warn_of_failed_solves` before the search.
        """
        square = update.change_bound
        if square is None or isinstance(square, Tensor) or square <= _ABSURD_SIZE**2:
            return  # a tensor is not read, as this would synchronise the accelerator
        entries = sum(p.numel() for p in tap.parameters.values())
        if square <= _ABSURD_SIZE**2 * entries or tap.name in self._warned:
            return
        if not math.isfinite(square):
            self._unsolved.append(tap.name)
        if searched:
            return
        self.warn_of_failed_solves()
        if math.isfinite(square) and math.sqrt(square) > _ABSURD_CHANGE * (norm := parameter_norm(tap)):
            self._warn_once(
                tap.name,
                f"layer '{tap.name}': one step changes its weights by {math.sqrt(square):.1e}, but their norm is only "
                f"{norm:.1e}. {self._advice}",
            )

    def warn_of_failed_solves(self) -> None:
        """Warns of layers whose solve has failed. To be called only if the loss is finite."""
        for name in dict.fromkeys(self._unsolved):
            self._warn_once(
                name,
                f"layer '{name}': its subproblem has no finite solution in this precision, or its inputs are not "
                f"finite; its weights were kept. {self._advice}",
            )
        self._unsolved.clear()

    def forget(self) -> None:
        """Forgets failed solves, because their gradients were discarded or the loss is not finite."""
        self._unsolved.clear()

    def loss_not_finite(self, loss: float) -> None:
        """Warns that no step was taken, because the loss is not finite."""
        self.forget()
        self._warn_once(
            _LOSS,
            f"{self._method}: the loss before the step is {loss}, so no step was taken and all weights were "
            "kept. Look for NaN or infinite numbers in the batch and in the model's output. (Shown once.)",
        )

    def after_search(self, trials: Trials, *, refused: bool) -> None:
        """Warns if ten consecutive steps were refused, or if different weights gave the same loss in two searches.

        Args:
            trials: the search's trials.
            refused: whether the search refused the step.
        """
        losses = [*self._losses, *trials.losses]
        same = len(losses) > 1 and len(set(losses)) == 1 and math.isfinite(losses[0])
        zero = same and losses[0] == 0  # a loss that training has brought to 0 may stay there
        if same and not zero and not refused and trials.farthest_change() > _MOVED:
            self._warn_once(
                _CONSTANT,
                f"{self._method}: evaluate returned {losses[0]} at different weights, so the step was not checked. "
                "It has to compute the loss anew from the model, not return one computed before. (Shown once.)",
            )
        self._losses = trials.losses
        self._refused = self._refused + 1 if refused else 0
        if self._refused == _REFUSALS:
            self._warn_once(
                _SEARCH,
                f"{self._method}: the line search refused {_REFUSALS} steps in a row, so all weights were kept. "
                "Either evaluate does not compute the loss of the backward pass (another batch, a loss that is not "
                "finite at trial weights), or lr is so large that the direction is useless. (Shown once.)",
            )

    @property
    def _advice(self) -> str:
        return f"Lower lr or raise prox_weight of {self._method}. (Shown once for each layer.)"

    def _warn_once(self, about: str, sentence: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            warnings.warn(sentence, RuntimeWarning, stacklevel=4)


def parameter_norm(tap: Tap) -> float:
    """The norm of a layer's weight and bias together."""
    return math.sqrt(sum(float(p.detach().double().square().sum()) for p in tap.parameters.values()))
