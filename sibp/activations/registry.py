"""A table of calls and the activations that they compute, which users can extend.

A row maps a function as `__torch_function__` reports it (`torch.tanh`, `Tensor.tanh_`, ...) to a constructor of the
`Activation` from the call's other arguments. `register_activation` adds rows.
"""

import functools
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import handle_torch_function, has_torch_function_unary

from sibp.activations import functions
from sibp.activations.activation import Activation, Learned, slope_by_autograd
from sibp.internals import C_FUNCTIONS

MakeActivation = Callable[..., Activation]
"""Makes the activation of a call from z and the call's other arguments except `inplace`."""


@dataclass(frozen=True)
class Row:
    """The activation that a registered function computes.

    Attributes:
        make: creates the activation of a call.
        in_place: whether the function always overwrites z.
    """

    make: MakeActivation
    in_place: bool = False


_PLACEHOLDER = object()  # replaces tensors among a call's arguments: references would keep the model's graph alive
_rows: dict[Any, Row] = {}
_NAMESPACES = (torch, Tensor, F, torch.special, C_FUNCTIONS)  # modules with torch's functions


def row_of(func: Callable[..., Any]) -> Row | None:
    """The row of a function, or None if it is not known to be an activation."""
    try:
        return _rows.get(func)
    except TypeError:  # not hashable
        return None


def register_activation(
    fn: Callable[..., Any], value: Callable[..., Tensor], slope: Callable[..., Tensor] | None = None
) -> Callable[..., Any]:
    """Lets subproblems contain an elementwise activation of your own.

    Wherever a model calls it directly after a layer, it then becomes part of that layer's subproblem:

        register_activation(torch.sin, torch.sin, torch.cos)

        def squared_relu(z):
            return torch.relu(z).square()

        squared_relu = register_activation(squared_relu, squared_relu)

    Args:
        fn: the function that models call, or a class of modules. For a function of torch, its method, its in-place
            forms and the modules that call it are recognised, too. For a function of your own, only calls of the
            returned function are recognised; it also replaces `fn` in the Python module that defines `fn`. For a
            class, all instances are recognised.
        value: s; called with z of any shape, and with the other arguments of the call except `inplace`. Tensors among
            the other arguments must broadcast to z's shape, and get their ordinary gradients.
        slope: s', called with the same arguments; by default, autograd computes it.

    Returns:
        The function that models must call; `fn` itself if it is a function of torch or a class.

    Raises:
        TypeError: if calls of `fn` cannot be recognised, or if `value` or `slope` is not a function.
        ValueError: if `value` is not elementwise, does not return what `fn` returns, or if `slope` is not the
            derivative of `value`.
    """
    for what, given in (("value", value), ("slope", slope)):
        if not callable(given) and not (what == "slope" and given is None):
            raise TypeError(f"register_activation: {what} must be a function, not {given!r}.")
    if isinstance(fn, type) and issubclass(fn, nn.Module):
        return _register_class(fn, value, slope)
    name = getattr(fn, "__name__", "")
    if not callable(fn) or isinstance(fn, nn.Module | type | types.MethodType) or not name:
        raise TypeError(
            f"register_activation: {fn!r} is neither a function nor a class of modules; pass the function that models "
            "call, or the module's class."
        )
    check(name, fn, value, slope)
    row = Row(functools.partial(_activation_of_call, name, value, slope))
    named = list(_same_function(fn))
    if not named:
        called = _overridable(fn)
        named = [(called, False)]
        home = vars(sys.modules.get(fn.__module__, types.ModuleType("")))
        if home.get(name) is fn:
            home[name] = called
    for function, in_place in named:
        _rows[function] = Row(row.make, in_place)
    return fn if fn in _rows else named[0][0]


def _register_class(kind: type[nn.Module], value: Callable[..., Tensor], slope: Callable[..., Tensor] | None) -> type:
    """Registers a class of modules: `__torch_function__` then gets each call of an instance."""
    if kind.__module__.startswith("torch."):
        raise TypeError(
            f"register_activation: {kind.__name__} is torch's own class, whose settings would not reach value and "
            "slope; register the function of torch.nn.functional that it calls."
        )
    own = vars(kind.forward).get("__wrapped__", kind.forward)
    check(kind.__name__, None, value, slope)

    def call(z: Tensor, module: nn.Module) -> Any:
        return own(module, z)

    @functools.wraps(own)
    def forward(module: nn.Module, z: Tensor) -> Any:
        if not has_torch_function_unary(z):
            return own(module, z)
        if next(module.parameters(), None) is not None:
            raise TypeError(
                f"{kind.__name__} has parameters of its own: register a function that takes them as arguments, and "
                "call that in its forward."
            )
        return handle_torch_function(call, (z,), z, module)

    _rows[call] = Row(lambda z, module: _activation_of_call(kind.__name__, value, slope, z))
    kind.forward = forward
    return kind


def _same_function(fn: Callable[..., Any]) -> Iterator[tuple[Callable[..., Any], bool]]:
    """Torch's functions that compute what `fn` does, and whether each works in place; none if `fn` is not torch's."""
    name = fn.__name__.removesuffix("_")
    candidates = [(getattr(holder, name + end, None), end == "_") for holder in _NAMESPACES for end in ("", "_")]
    if any(function is fn for function, _ in candidates):
        yield from ((function, in_place) for function, in_place in candidates if function is not None)


def _overridable(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function, except that `__torch_function__` gets its call instead of the calls inside it."""

    @functools.wraps(fn)
    def call(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        if has_torch_function_unary(z):
            return handle_torch_function(call, (z,), z, *args, **kwargs)
        return fn(z, *args, **kwargs)

    return call


def _activation_of_call(
    name: str,
    value: Callable[..., Tensor],
    slope: Callable[..., Tensor] | None,
    z: Tensor,
    *args: Any,
    **kwargs: Any,
) -> Activation:
    """The activation that a call computes; `args` and `kwargs` are the call's arguments after z."""
    given = (*args, *kwargs.values())
    tensors = tuple(item for item in given if isinstance(item, Tensor))
    for t in tensors:
        if t.numel() != 1 and torch.broadcast_shapes(t.shape, z.shape) != z.shape:
            raise TypeError(f"{name}: an argument of shape {tuple(t.shape)} does not broadcast to {tuple(z.shape)}.")
    settings = [str(item) for item in given if not isinstance(item, Tensor)]
    label = f"{name}({', '.join(settings)})" if settings else name
    template = [_PLACEHOLDER if isinstance(item, Tensor) else item for item in given]
    count, keys = len(args), list(kwargs)

    def rebuild(*learned: Tensor) -> Activation:
        left = iter(learned)
        arguments = [next(left) if item is _PLACEHOLDER else item for item in template]
        own, named = arguments[:count], dict(zip(keys, arguments[count:], strict=True))
        s = functools.partial(_called, value, own, named)
        derivative = slope_by_autograd(s) if slope is None else functools.partial(_called, slope, own, named)
        return Activation(label, s, derivative, learned=Learned(learned, rebuild) if learned else None)

    return rebuild(*tensors)


def _called(f: Callable[..., Tensor], args: list[Any], kwargs: dict[str, Any], z: Tensor) -> Tensor:
    return f(z, *args, **kwargs)


def check(
    name: str,
    fn: Callable[..., Any] | None,
    value: Callable[..., Tensor],
    slope: Callable[..., Tensor] | None,
) -> None:
    """Tests an activation on a few numbers. Does nothing if `value` needs arguments other than z.

    Args:
        name: the name that error messages show.
        fn: the function that models call; None skips the comparison with `value`.
        value: s.
        slope: s'; None if autograd computes it.

    Raises:
        ValueError: if `value` is not elementwise, does not return what `fn` returns, or if `slope` is not the
            derivative of `value`.
    """
    z = torch.tensor([[-2.3, -0.7, 0.4], [0.9, 1.6, 2.8]], dtype=torch.float64)
    try:
        a = value(z)
    except TypeError:
        return
    one_by_one = torch.stack([value(entry.reshape(1)).reshape(()) for entry in z.flatten()]).view_as(z)
    if a.shape != z.shape or a.dtype != z.dtype or not torch.allclose(a, one_by_one):
        raise ValueError(f"register_activation: {name} is not elementwise, so it cannot be inside a subproblem.")
    if fn is not None and not torch.allclose(fn(z.clone()), a):
        raise ValueError(f"register_activation: value does not return what {name} returns.")
    h = 1e-6
    quotient = (value(z + h) - value(z - h)) / (2 * h)
    try:
        derivative = (slope or slope_by_autograd(value))(z)
    except RuntimeError as error:
        raise ValueError(
            f"register_activation: autograd cannot differentiate value of {name} ({error}); pass slope."
        ) from error
    if not torch.allclose(derivative, quotient, rtol=1e-4, atol=1e-6):
        raise ValueError(f"register_activation: slope of {name} is not the derivative of value.")


def _register_builtin(make: MakeActivation, *names: str) -> None:
    """Adds rows for all of torch's functions of these names, plain and in place."""
    for name in names:
        for holder in _NAMESPACES:
            for end in ("", "_"):
                function = getattr(holder, name + end, None)
                if function is not None:
                    _rows[function] = Row(make, in_place=end == "_")


for _s, _names in (
    (functions.RELU, ("relu",)),
    (functions.TANH, ("tanh",)),
    (functions.SIGMOID, ("sigmoid", "expit")),
    (functions.SILU, ("silu",)),
    (functions.MISH, ("mish",)),
    (functions.HARDSWISH, ("hardswish",)),
    (functions.RELU6, ("relu6",)),
):
    _register_builtin(lambda z, _s=_s: _s, *_names)
for _family in (functions.leaky_relu, functions.elu, functions.gelu, functions.softplus, functions.hardtanh):
    _register_builtin(lambda z, *args, _family=_family, **kwargs: _family(*args, **kwargs), _family.__name__)
_register_builtin(functions.prelu_by_channel, "prelu")
