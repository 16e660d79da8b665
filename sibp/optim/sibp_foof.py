"""Semi-implicit back propagation with the running covariance of FOOF: a hybrid of ours."""

from sibp.optim.foof import FOOF, builder


class RunningSIBP(FOOF):
    """The steps of `FOOF`, sent backward through the new weights.

    `SIBP` with its exact solver, but for the Gram matrix: the running mean over batches in place of this batch's.
    With decay = 0 and inverse_every = 1 it is that.
    """

    backward_weights = "new"


build = builder(RunningSIBP)
