"""Evaluates the loss at trial weights, and restores buffers, modules' mode and random number generators each time."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, SupportsFloat

import torch
from torch import Tensor, nn

from sibp.capture.passes import RandomState

Evaluate = Callable[[], Tensor | float]
"""Returns the loss at the model's weights at the time of the call."""


def as_number(loss: Tensor | float) -> float:
    """A loss as a float.

    Raises:
        TypeError: if it is not a single number.
    """
    if isinstance(loss, Tensor):
        if loss.numel() == 1 and not loss.is_complex():
            return loss.detach().item()
        what = "a complex number" if loss.is_complex() else f"a tensor of shape {tuple(loss.shape)}"
    elif isinstance(loss, SupportsFloat) and getattr(loss, "shape", ()) == ():
        return float(loss)
    else:
        what = type(loss).__name__
    raise TypeError(f"A line search needs a loss that is one number, but got {what}: let evaluate return the loss.")


class Trials:
    """The losses along a step, at p_old + alpha (p_new - p_old).

    The fallback's parameters take the share min(1, alpha / `expected`) of their step. Their learning rate is unrelated
    to the length that suits the proximal parameters, so they take the whole step unless alpha is below `expected`.

    Args:
        model: the model being trained.
        params: the proximal parameters that the step changes.
        fallback_params: the fallback's parameters that the step changes.
        evaluate: returns the loss at the current weights.
        average: averages a loss over all ranks.
        random_state: the random state at the start of the gradient's forward pass, from which each trial starts, too;
            None for the present one.
    """

    def __init__(
        self,
        model: nn.Module,
        params: list[Tensor],
        fallback_params: list[Tensor],
        evaluate: Evaluate,
        average: Callable[[float], float],
        random_state: RandomState | None = None,
    ) -> None:
        self._model, self._evaluate, self._average = model, evaluate, average
        self._random_state = random_state
        self.params, self.fallback_params = params, fallback_params
        self._old = [p.detach().clone() for p in (*params, *fallback_params)]
        self._full_step: list[Tensor] = []
        self._new: list[Tensor] = []
        self._at: tuple[float, float] | None = None  # current alpha and `expected`
        self._farthest = 0.0  # largest alpha tried
        self.losses: list[float] = []
        """All losses evaluated, in this order."""
        self.expected = 1.0
        """The smallest alpha at which the fallback's parameters take their whole step."""

    def record_full_step(self) -> None:
        """Records the current parameters as those at alpha = 1."""
        self._new = self._full_step = [p.detach().clone() for p in (*self.params, *self.fallback_params)]

    def set_direction(self, changes: list[Tensor] | None) -> None:
        """Changes the proximal parameters at alpha = 1.

        Args:
            changes: added to the proximal parameters that `record_full_step` recorded; a tensor for each, which is
                overwritten. None restores the recorded step.
        """
        count = 0 if changes is None else len(self.params)
        changed = [change.add_(new) for change, new in zip(changes or [], self._full_step[:count], strict=True)]
        self._new, self._at = [*changed, *self._full_step[count:]], None

    def slope(self, gradients: list[Tensor | None]) -> float:
        """<gradient, p_new - p_old> over the proximal parameters; a gradient of None counts as zero."""
        steps = zip(gradients, self._old, self._new, strict=False)
        return sum(float(torch.sum(g * (new - old))) for g, old, new in steps if g is not None)

    def changes(self) -> list[Tensor]:
        """The changes p - p_old of the proximal parameters at the current position."""
        return [p.detach() - old for p, old in zip(self.params, self._old, strict=False)]

    @torch.no_grad()
    def move(self, alpha: float) -> None:
        """Moves all parameters to the position alpha; at 0 and 1 they get exactly the recorded values."""
        if self._at == (alpha, self.expected):
            return
        self._at = (alpha, self.expected)
        shares = [alpha] * len(self.params) + [min(1.0, alpha / self.expected)] * len(self.fallback_params)
        for p, old, new, share in zip((*self.params, *self.fallback_params), self._old, self._new, shares, strict=True):
            if share in (0, 1):
                p.copy_(new if share else old)
            else:
                torch.lerp(old, new, share, out=p.detach())

    def loss_at(self, alpha: float) -> float:
        """Moves to alpha and returns the loss there, over all ranks."""
        self.move(alpha)
        self._farthest = max(self._farthest, alpha)
        return self.loss()

    def loss(self) -> float:
        """The loss at the current weights, over all ranks."""
        with _preserved_state(self._model, self._random_state), torch.no_grad():
            loss = self._average(as_number(self._evaluate()))
        self.losses.append(loss)
        return loss

    def farthest_change(self) -> float:
        """The relative change at the largest alpha tried; see `relative_change`."""
        return self._farthest * self.relative_change()

    def relative_change(self) -> float:
        """||p_new - p_old|| / ||p_old|| of all proximal parameters together; 0 if p_old is 0."""
        count = len(self.params)  # may be 0
        old = self._old[:count]
        changes = [p - q for p, q in zip(self._new[:count], old, strict=True)]
        change, size = (math.hypot(*(float(torch.linalg.vector_norm(t)) for t in of)) for of in (changes, old))
        return change / size if size else 0.0

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Restores the old weights if the block raises."""
        try:
            yield
        except BaseException:
            with torch.no_grad():
                for p, old in zip((*self.params, *self.fallback_params), self._old, strict=True):
                    p.copy_(old)
            raise


@contextmanager
def _preserved_state(model: nn.Module, random_state: RandomState | None) -> Iterator[None]:
    """Restores the buffers, the modules' mode (`train` or `eval`) and the random state (CPU and CUDA) on exit.

    Args:
        model: the model.
        random_state: at the start of the block; None for the present one.
    """
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, tensor, _unexpanded(tensor).clone())
        for module in model.modules()
        for name, tensor in module.named_buffers(recurse=False)
    ]
    devices = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    try:
        with torch.random.fork_rng(devices=devices):
            if random_state is not None:
                random_state.restore(devices)
            yield
    finally:
        for module, name, tensor, saved in buffers:
            _unexpanded(tensor).copy_(saved)
            setattr(module, name, tensor)
        for module, training in modes:
            module.training = training


def _unexpanded(tensor: Tensor) -> Tensor:
    """The tensor without the repeated entries of `expand`, which share memory."""
    for axis, stride in enumerate(tensor.stride() if tensor.layout is torch.strided else ()):
        if stride == 0 and tensor.shape[axis] > 1:
            tensor = tensor.narrow(axis, 0, 1)
    return tensor


def evaluate_from_closure(closure: Callable[[], Any], model: nn.Module) -> Evaluate:
    """Makes `evaluate` from a closure. The gradients of its `backward` are discarded.

    Args:
        closure: clears the gradients, computes the loss, calls `backward` and returns the loss.
        model: the model, whose parameters keep their `.grad`.
    """
    params = list(model.parameters())

    def evaluate() -> float:
        saved = [p.grad for p in params]
        for p in params:
            p.grad = None
        try:
            with torch.enable_grad():
                return as_number(closure())
        finally:
            for p, grad in zip(params, saved, strict=True):
                p.grad = grad

    return evaluate
