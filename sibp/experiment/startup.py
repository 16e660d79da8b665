"""A shorter start of the training command: torch's compiler is imported when somebody compiles, not before.

Some methods of torch's optimizers are hidden from the compiler by a decorator that imports all of it when such a
method is first called, which takes longer than a short run. Nothing can be compiled before it is imported, so until
then the method itself does the same; from then on, the decorator does what it always did.
"""

import functools
import sys
from typing import Any

from torch import optim

HIDDEN = ("add_param_group", "zero_grad", "state_dict", "load_state_dict")


def import_no_compiler() -> None:
    """Have torch's optimizers do without the compiler until it has been imported; done twice, it is done once."""
    for name in HIDDEN:
        hidden = getattr(optim.Optimizer, name)
        function = getattr(hidden, "__wrapped__", None)
        if function is not None and getattr(function, CACHE, None) is None:
            setattr(function, CACHE, functools.partial(_call, hidden, function))


CACHE = "__dynamo_disable"  # where the decorator looks for what it made of the method


def _call(hidden: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
    if "torch._dynamo" in sys.modules:
        setattr(function, CACHE, None)  # so that the decorator makes its own now, as this version of torch does
        return hidden(*args, **kwargs)
    return function(*args, **kwargs)
