"""Semi-implicit back propagation and its competitors, for PyTorch.

`SIBP` and `ProxBP` are torch optimizers for any `nn.Module`; `python -m sibp.train` runs comparisons.
"""

from sibp.optim import SIBP, ProxBP

__all__ = ["SIBP", "ProxBP"]
__version__ = "0.1.0"
