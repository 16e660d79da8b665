"""Faster start of the training command: torch's compiler is imported only when something is compiled.

Some methods of torch's optimizers are wrapped by a decorator that imports the compiler on their first call, which takes
longer than a short run. Nothing can be compiled before that import, so until then the plain method is equivalent;
afterwards the decorator works as usual.
"""

import functools
import sys
from typing import Any

from torch import optim

HIDDEN = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def import_no_compiler() -> None:
    """Let torch's optimizers work without importing the compiler; calling this again has no effect."""
    for name in HIDDEN:
        hidden = getattr(optim.Optimizer, name)
        function = getattr(hidden, "__wrapped__", None)
        if function is not None and getattr(function, CACHE, None) is None:
            setattr(function, CACHE, functools.partial(_call, hidden, function))


CACHE = "__dynamo_disable"  # where the decorator stores the wrapped method


def _call(hidden: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    if "torch._dynamo" in sys.modules:
        setattr(function, CACHE, None)  # so that the decorator wraps it now, as this version of torch does
        return hidden(*args, **kwargs)
    return function(*args, **kwargs)
