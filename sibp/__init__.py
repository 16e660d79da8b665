"""Semi-implicit back propagation and its competitors, for PyTorch.

`SIBP` and `ProxBP` are torch optimizers for any `nn.Module`; the command `sibp train` runs comparisons, and
`sibp report` says who won.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sibp.activations import register_activation
    from sibp.capture.geometry import register_layer
    from sibp.optim import SIBP, AutoSIBP, Preconditioned, ProxBP

__all__ = ["SIBP", "AutoSIBP", "Preconditioned", "ProxBP", "register_activation", "register_layer"]
_ELSEWHERE = {"register_activation": "sibp.activations", "register_layer": "sibp.capture.geometry"}
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    """Import the optimizers, and torch with them, on first use; the report does not need them."""
    if name in __all__:
        return getattr(importlib.import_module(_ELSEWHERE.get(name, "sibp.optim")), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
