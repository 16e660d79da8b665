"""The loss at trial weights: every trial leaves the model, its statistics and the random numbers as they were."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

Evaluate = Callable[[], Tensor | float]
"""The loss again, at the weights that the model has when it is called."""


def as_number(loss: Tensor | float) -> float:
    """A loss as a float.

    Raises:
        TypeError: if it is not one number.
    """
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss.detach().item()
    if isinstance(loss, int | float):
        return float(loss)
    what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
    raise TypeError(f"A line search needs a loss that is one number, and got {what}: let evaluate return the loss.")


class Trials:
    """The losses along a step, p_old + alpha (p_new - p_old).

    Parameters of the fallback go the whole way unless the step is shorter than was expected: their learning rate is
    their own, and has nothing to do with the length that suits the others.

    Args:
        model: that is trained.
        params: that the step moves, the proximal ones.
        others: that it moves, the fallback's.
        evaluate: the loss at the present weights.
        average: makes one loss of all ranks' losses.
    """

    def __init__(
        self,
        model: nn.Module,
        params: list[Tensor],
        others: list[Tensor],
        evaluate: Evaluate,
        average: Callable[[float], float],
    ) -> None:
        self._model, self._evaluate, self._average = model, evaluate, average
        self.params, self.others = params, others
        self._old = [p.detach().clone() for p in (*params, *others)]
        self._asked: list[Tensor] = []
        self._new: list[Tensor] = []
        self._at: tuple[float, float] | None = None  # the last position
        self.expected = 1.0
        """The length at which the fallback's parameters have gone the whole way."""

    def stepped(self) -> None:
        """Notes that the parameters are at alpha = 1 now."""
        self._new = self._asked = [p.detach().clone() for p in (*self.params, *self.others)]

    def turn(self, by: list[Tensor] | None) -> None:
        """Leads another way.

        Args:
            by: what is added to the proximal parameters where `stepped` saw them, and is overwritten; None for nothing.
        """
        count = 0 if by is None else len(self.params)
        turned = [change.add_(new) for change, new in zip(by or [], self._asked[:count], strict=True)]
        self._new, self._at = [*turned, *self._asked[count:]], None

    def slope(self, gradients: list[Tensor | None]) -> float:
        """<gradient, p_new - p_old>, from gradients of the proximal parameters (None: it has none)."""
        steps = zip(gradients, self._old, self._new, strict=False)
        return sum(float(torch.sum(g * (new - old))) for g, old, new in steps if g is not None)

    def taken(self) -> list[Tensor]:
        """How far the proximal parameters are from where they were."""
        return [p.detach() - old for p, old in zip(self.params, self._old, strict=False)]

    @torch.no_grad()
    def move(self, alpha: float) -> None:
        """Puts all parameters at alpha, from the saved ones: at 0 and at 1 exactly there."""
        if self._at == (alpha, self.expected):
            return
        self._at = (alpha, self.expected)
        shares = [alpha] * len(self.params) + [min(1.0, alpha / self.expected)] * len(self.others)
        for p, old, new, share in zip((*self.params, *self.others), self._old, self._new, shares, strict=True):
            if share in (0, 1):
                p.copy_(new if share else old)
            else:
                torch.lerp(old, new, share, out=p.detach())

    def loss_at(self, alpha: float) -> float:
        """The loss at alpha, of all ranks together."""
        self.move(alpha)
        return self.loss()

    def loss(self) -> float:
        """The loss at the present weights, of all ranks together."""
        with _as_it_was(self._model), torch.no_grad():
            return self._average(as_number(self._evaluate()))

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Puts the old weights back if something is raised inside."""
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for p, old in zip((*self.params, *self.others), self._old, strict=True):
                    p.copy_(old)
            raise


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    """Inside, the model may count and draw: its buffers and the random numbers are put back."""
    buffers = [
        (module, name, tensor, tensor.clone())
        for module in model.modules()
        for name, tensor in module.named_buffers(recurse=False)
    ]
    devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=[device.index for device in devices]):
        yield
    for module, name, tensor, kept in buffers:
        tensor.copy_(kept)
        setattr(module, name, tensor)


def by_closure(closure: Callable[[], Any], params: list[Tensor]) -> Evaluate:
    """A closure as what is evaluated: it may call `backward`, whose gradients are thrown away.

    Args:
        closure: clears the gradients, computes the loss, calls `backward` and returns the loss.
        params: whose `.grad` stays what it is.
    """

    def evaluate() -> float:
        held = [p.grad for p in params]
        for p in params:
            p.grad = None
        try:
            with torch.enable_grad():
                return as_number(closure())
        finally:
            for p, grad in zip(params, held, strict=True):
                p.grad = grad

    return evaluate
