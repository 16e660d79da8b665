"""The optimizers, in the manner of torch.optim: one file each."""

from sibp.optim.auto import AutoSIBP
from sibp.optim.proxbp import ProxBP
from sibp.optim.sibp import SIBP

__all__ = ["SIBP", "AutoSIBP", "ProxBP"]
