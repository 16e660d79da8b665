"""Functions that torch.compile must not trace."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch

from sibp.internals import compiled_call

P = ParamSpec("P")
R = TypeVar("R")


def run_eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run eagerly when a compiled step calls it.

    `torch.compiler.disable` alone would import the compiler immediately, which takes seconds, and add several
    microseconds to every eager call.

    Args:
        function: the function that torch.compile must not trace.
    """
    disabled: list[Callable[P, R]] = []  # the disabled function, from the first compiled call on

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not torch.compiler.is_compiling() and compiled_call() is None:
            return function(*args, **kwargs)
        if not disabled:
            eager: Any = torch.compiler.disable(function)
            disabled.append(eager)
        return disabled[0](*args, **kwargs)

    return call
