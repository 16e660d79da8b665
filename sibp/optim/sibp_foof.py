"""Semi-implicit back propagation with the running covariance of FOOF: this project's hybrid."""

from sibp.optim.foof import FOOF, builder


class RunningSIBP(FOOF):
    """The steps of `FOOF`, with error signals propagated through the new weights.

    `SIBP` with its exact solver, but with the running mean of the Gram matrix over batches in place of this batch's.
    With decay = 0 and inverse_every = 1 the two are equal.
    """

    backward_weights = "new"


build = builder(RunningSIBP)
