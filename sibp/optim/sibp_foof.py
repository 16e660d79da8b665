"""Semi-implicit back propagation with the running covariance of FOOF: a hybrid of ours."""

from torch import nn

from sibp.optim.foof import FOOF


class RunningSIBP(FOOF):
    """The steps of `FOOF`, sent backward through the new weights.

    `SIBP` with its exact solver, but for the Gram matrix: the running mean over batches in place of this batch's.
    With decay = 0 and inverse_every = 1 it is that.
    """

    backward_weights = "new"


def build(
    model: nn.Module, *, lr: float, damping: float, decay: float, inverse_every: int, covariance_steps: int
) -> RunningSIBP:
    """The hybrid, as a config names it."""
    return RunningSIBP(model, lr, damping, decay, inverse_every, covariance_steps)
