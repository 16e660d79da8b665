"""The optimizers: each a `torch.optim.Optimizer`, one file per method."""

from sibp.optim.preconditioned import Preconditioned
from sibp.optim.proxbp import ProxBP
from sibp.optim.sibp import SIBP
from sibp.optim.sibp_auto import AutoSIBP

__all__ = ["SIBP", "AutoSIBP", "Preconditioned", "ProxBP"]
