"""Finds the activation that follows a layer, however the model calls it.

A tapped layer returns its output as a `PreActivation`, a marked tensor. The first operation on it determines the
layer's subproblem. If that operation is an activation that `sibp.activations` knows (a module, a function or a method,
in place or not), `_Activate` computes it and keeps what the subproblem needs: the pre-activation Z and, in the backward
pass, the error signal D_l on the activation's output. Any other operation gets the plain tensor. The result of an
operation is never marked.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sibp.activations import Activation
from sibp.activations.registry import row_of
from sibp.internals import as_plain_tensors, tree_leaves, tree_map_only, version


@dataclass(slots=True)
class Consumption:
    """How one output of a tapped layer was used.

    Attributes:
        activation: the activation, if a known one was the first consumer; None otherwise.
        consumers: number of operations that used the output and required a gradient.
        names: names of the consumers, for tables.
        overwritten: whether an in-place activation has overwritten the output.
        sent: address and version of the gradient that the activation has returned to autograd, which show whether a
            hook has changed it since.
        Z: pre-activation, in the shape of the layer's output; kept from the activation's backward call to the layer's.
        D: error signal on the activation's output, of Z's shape; kept as long as Z.
    """

    activation: Activation | None = None
    consumers: int = 0
    names: list[str] = field(default_factory=list)
    overwritten: bool = False
    sent: tuple[int, int] | None = None
    Z: Tensor | None = None
    D: Tensor | None = None

    @property
    def known(self) -> bool:
        """Whether the activation is the only consumer, and its backward call has run."""
        return self.activation is not None and self.consumers == 1 and self.D is not None

    def has_sent(self, gradient: Tensor) -> bool:
        """Whether this is the gradient that the activation has returned, unchanged."""
        return self.sent is not None and self.sent == _identity(gradient)

    def clear(self) -> None:
        """Releases the tensors."""
        self.Z = self.D = self.sent = None


class PreActivation(Tensor):
    """A layer's output that has not been used yet."""

    _plain: Tensor
    _consumption: Consumption

    @classmethod
    def mark(cls, z: Tensor, consumption: Consumption) -> "PreActivation":
        """Marks z; the result shares z's memory and its node in the graph.

        Args:
            z: a layer's output, in the layer's own shape.
            consumption: records how the output is used.

        Raises:
            RuntimeError: in the backward pass, if a custom autograd Function used z after an activation overwrote it.
        """
        marked = z.as_subclass(cls)
        marked._plain = z
        marked._consumption = consumption

        # C++ code, such as `apply` of a user's autograd Function, takes the tensor itself and bypasses
        # __torch_function__; only this hook sees its gradient. The graph owns the hook, so a reference from the hook to
        # a tensor of the graph would be a cycle.
        def used_directly(gradient: Tensor) -> None:
            if consumption.has_sent(gradient):
                return  # the activation's gradient, which no hook has changed
            if consumption.overwritten:
                raise RuntimeError(
                    "A layer's output was overwritten by an in-place activation and then used by a custom autograd "
                    "Function, which cannot see the new value: use the activation's result instead of its argument."
                )
            consumption.consumers += 1
            consumption.names.append("Function")

        with as_plain_tensors():
            marked.register_hook(used_directly)
        return marked

    def marked_view(self) -> "PreActivation":
        """A marked view of the output, which torch requests for a module's backward hooks, to add its node to it."""
        with as_plain_tensors():
            seen = self.view_as(self).as_subclass(PreActivation)
        seen._consumption = self._consumption
        return seen

    def consumed_by(self, name: str) -> Tensor:
        """The plain tensor, of the same shape; records the operation `name`, which is no activation, as a consumer."""
        if not _is_marked(self):
            return _unmark(self)
        self._consumption.consumers += 1
        self._consumption.names.append(name)
        return self._plain

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Computes `func` on plain tensors and records it as a consumer."""
        kwargs = kwargs or {}
        recorded = torch.is_grad_enabled()
        activation = recognise(func, args, kwargs) if recorded else None
        if activation is not None:
            z = args[0] if args else kwargs["input"]
            if z._consumption.consumers == 0:
                return _activate(z, activation, in_place=_writes_in_place(func, kwargs))
        first: Any = args[0] if args else None
        if func is Tensor.view_as and args[-1] is first and not recorded and _is_marked(first):
            return first.marked_view()
        if func == _GRAD_FN and isinstance(first, cls) and "_plain" not in vars(first):
            with as_plain_tensors():  # torch looks up the node that it has just added for backward hooks
                return func(*args)
        marked = [leaf for leaf in _leaves((*args, *kwargs.values())) if _is_marked(leaf)]
        plain_args = [_unmark_nested(value) for value in args]
        plain_kwargs = {key: _unmark_nested(value) for key, value in kwargs.items()}
        if func in _BACKWARD:  # may recompute checkpointed layers, whose outputs must be marked as usual
            return func(*plain_args, **plain_kwargs)
        with as_plain_tensors():
            result = func(*plain_args, **plain_kwargs)
        if any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in _leaves((result,))):
            for z in marked:
                z.consumed_by(getattr(func, "__name__", str(func)))
        return result


_GRAD_FN: Any = Tensor.grad_fn.__get__  # pyright: ignore[reportOptionalMemberAccess, reportAttributeAccessIssue]
_BACKWARD = (Tensor.backward, torch.autograd.backward, torch.autograd.grad)
_CONTAINERS = (list, tuple, dict)  # arguments are searched recursively only if one of them is a container


def _leaves(values: tuple[Any, ...]) -> Sequence[Any]:
    return tree_leaves(values) if any(isinstance(value, _CONTAINERS) for value in values) else values


def _unmark_nested(value: Any) -> Any:
    """The value with plain tensors in place of marked ones."""
    if isinstance(value, PreActivation):
        return _unmark(value)
    return tree_map_only(PreActivation, _unmark, value) if isinstance(value, _CONTAINERS) else value


def _is_marked(value: Any) -> bool:
    if not isinstance(value, PreActivation):
        return False
    held = vars(value)  # without both attributes if other code has wrapped the tensor again; it is not marked then
    if "_plain" not in held and "_consumption" in held:  # a marked view, to which torch has added its node by now
        with as_plain_tensors():
            value._plain = value.as_subclass(Tensor)
    return "_consumption" in held


def _unmark(z: PreActivation) -> Tensor:
    if _is_marked(z):
        return z._plain
    with as_plain_tensors():
        return z.as_subclass(Tensor)


class _Activate(torch.autograd.Function):
    """a = s(z); its backward call keeps z and the gradient at a for the layer that computed z."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, consumption: Consumption, s: Activation, *learned: Tensor) -> Tensor:
        ctx.save_for_backward(z, *learned)  # s uses the same tensors, so autograd notices if they are overwritten
        ctx.consumption, ctx.activation = consumption, s
        return s.value(z)

    @staticmethod
    def backward(ctx: Any, *D: Tensor) -> tuple[Tensor | None, ...]:
        z, *_ = ctx.saved_tensors
        ctx.consumption.Z, ctx.consumption.D = z.detach(), D[0]
        learned = ctx.activation.learned_gradients(D[0], z, ctx.needs_input_grad[3:])
        D_z = ctx.activation.backward(D[0], z).to(z.dtype)
        ctx.consumption.sent = _identity(D_z)
        return D_z, None, None, *learned


def _identity(gradient: Tensor) -> tuple[int, int] | None:
    """Address and version; None for one of several vectorised gradients, which has no memory of its own."""
    try:
        return gradient.data_ptr(), version(gradient)
    except RuntimeError:
        return None


def _activate(marked: PreActivation, s: Activation, *, in_place: bool) -> Tensor:
    consumption, learned = marked._consumption, () if s.learned is None else s.learned.tensors
    consumption.activation = s = s.detached()
    consumption.consumers += 1
    consumption.names.append(s.name)
    a: Tensor = _Activate.apply(marked._plain, consumption, s, *learned)  # pyright: ignore[reportAssignmentType]
    if in_place:
        # References to the layer's output now refer to the activation's, which may have any number of consumers.
        consumption.overwritten = True
        marked._plain = a
        marked._consumption = Consumption()
    return a


def recognise(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Activation | None:
    """The activation that a call computes on its first argument, or None.

    Args:
        func: the function as `__torch_function__` gets it.
        args: its positional arguments; the first (or `kwargs["input"]`) must be a marked tensor.
        kwargs: its keyword arguments.
    """
    row = row_of(func)
    if row is None or "out" in kwargs:
        return None
    z = args[0] if args else kwargs.get("input")
    if not (isinstance(z, PreActivation) and _is_marked(z)):
        return None
    if len(args) + len(kwargs) == 1:
        return row.make(z._plain)
    return row.make(z._plain, *args[1:], **{key: v for key, v in kwargs.items() if key not in ("input", "inplace")})


def _writes_in_place(func: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    row = row_of(func)
    return bool(kwargs.get("inplace")) or (row is not None and row.in_place)
