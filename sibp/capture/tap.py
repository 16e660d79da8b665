"""Taps: how a layer's input, output and error signal reach the solver inside ordinary autograd.

A `Tap` computes one layer's forward pass. The output is what it was before, but comes from an autograd Function whose
backward call asks the optimizer for the layer's new weights, returns W_old - W_new (and b_old - b_new) as the
parameters' gradients, and sends the error signal on through the weights that the method prescribes: the new ones for
semi-implicit back propagation, the old ones for ProxBP.
"""

import copyreg
import sys
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sibp.activations import Activation
from sibp.capture.activation import Consumption, PreActivation
from sibp.capture.displacements import PAUSED, Displacements
from sibp.capture.geometry import Geometry, own_class
from sibp.capture.passes import ForwardPass, Passes, Unrecorded
from sibp.prox.numbers import Number
from sibp.prox.operators import FeatureOperator


@dataclass(frozen=True)
class LayerProblem:
    """One layer's subproblem, as matrices; g stands for the groups of a convolution, and is left out for `nn.Linear`.

    Where the features have several axes of rows, so have the other arrays: (g, B, P, m) in the place of (g, N, m).

    Attributes:
        name: the layer's, as in `model.named_modules()`.
        features: Phi (g, N, size), with what moves.
        D_z: (g, N, m) difference on the pre-activation, as the loss has it.
        terms: the number of terms that the loss averages over: times this, differences are the paper's sums.
        ends: names of the layers that ran first and last in this forward pass.
        activation: s, if it is known; then Z (g, N, m) is the pre-activation and D (g, N, m) the unmasked difference on
            s(Z), as the loss has it. None: solve the linear subproblem.
        Z: see activation.
        D: see activation.
        W: (g, m, n) the layer's weight.
        b: (g, m) its bias.
    """

    name: str
    features: FeatureOperator
    D_z: Tensor
    terms: float
    ends: tuple[str, str]
    activation: Activation | None
    Z: Tensor | None
    D: Tensor | None
    W: Tensor
    b: Tensor | None


@dataclass(frozen=True)
class LayerUpdate:
    """What the solver answers.

    Attributes:
        W_decrease: (g, m, n) W_old - W_new, or None if W does not move.
        b_decrease: (g, m) b_old - b_new, or None if b does not move.
        backward_change: maps D (g, N, m) to D (W_new - W_old) (g, N, n), where that is cheaper than with W_new itself.
        input_difference: (N, n) what goes on to the layer below, where a method on linear layers has a rule of its own.
        squared_change: ||W_new - W_old||^2 + ||b_new - b_old||^2, infinite where the solve was not finite; None where
            nobody knows.
    """

    W_decrease: Tensor | None
    b_decrease: Tensor | None
    backward_change: Callable[[Tensor], Tensor | None] | None = None
    input_difference: Tensor | None = None
    squared_change: Number | None = None


class Owner(Protocol):
    """The optimizer, as a tap sees it."""

    passes: Passes
    """The forward passes of its model."""

    def active(self) -> bool:
        """Whether forward passes are to be tapped now."""
        ...

    def before_forward(self, layer: str) -> None:
        """Refuses a forward pass whose displacements somebody else would change."""
        ...

    def wants_activation(self, tap: "Tap") -> bool:
        """Whether the solver of this layer makes use of the activation that follows it."""
        ...

    def solve(self, tap: "Tap", problem: LayerProblem) -> LayerUpdate:
        """The layer's update."""
        ...

    def loss_terms(self, one: ForwardPass) -> float:
        """The number of terms that the loss of a forward pass averages over; 1 for a sum."""
        ...

    def goes_back_through_new(self, tap: "Tap") -> bool:
        """Whether the error signal travels on through the layer's new weights, or through its old ones."""
        ...


class Tap:
    """Computes a layer's forward pass while an optimizer owns the layer.

    The layer gets a class of its own, whose `forward` is the tap; copies and pickles of the layer have the layer's own
    class, and belong to nobody.
    """

    def __init__(
        self, name: str, module: nn.Module, geometry: Geometry, owner: Owner, *, weight: bool, bias: bool
    ) -> None:
        """Prepares a tap; `install` puts it in place.

        Args:
            name: of the module, for messages.
            module: the layer.
            geometry: how it is a matrix product.
            owner: the optimizer; only a weak reference is kept, so that dropping the optimizer frees the model.
            weight: whether the optimizer updates the layer's weight.
            bias: whether it updates the layer's bias.
        """
        self.name = name
        self.module = module
        self.geometry = geometry
        self.owner = weakref.ref(owner)
        self.keeps: Owner | None = None
        self.weight, self.bias = weight, bias
        self.consumption = Consumption()
        self.displacements = Displacements()
        wanted = {"weight": weight, "bias": bias}
        self.parameters = {key: p for key, p in module.named_parameters(recurse=False) if wanted.get(key)}
        self._kind = own_class(module)
        self._unrecorded = Unrecorded()
        self._returned: dict[int, dict[str, tuple[int, int]]] = {}  # by backward pass and parameter
        self._hooks: dict[str, list[torch.utils.hooks.RemovableHandle]] = {}

    def install(self) -> None:
        """Takes the layer over, from an earlier optimizer if need be."""
        earlier = tap_of(self.module)
        if earlier is not None:
            earlier.remove()
        self.module.__class__ = _tapped(self._kind, self)
        self._guard()

    @property
    def installed(self) -> bool:
        """Whether the layer still belongs to this tap's optimizer."""
        return tap_of(self.module) is self

    @property
    def replaced(self) -> str | None:
        """What was put in the place of the layer's own since it was tapped; None if nothing was."""
        held = self.module._parameters
        missing = [key for key, p in self.parameters.items() if held.get(key) is not p]
        return missing[0] if missing else "forward" if "forward" in vars(self.module) else None

    def remove(self) -> None:
        """Gives the layer its own class back."""
        if self.installed:
            self.module.__class__ = self._kind
        self.keeps = None
        for hooks in self._hooks.values():
            for hook in hooks:
                hook.remove()
        self._hooks.clear()

    def forward(self, module: nn.Module, input: Tensor) -> Tensor:
        """The layer's output, marked if the solver has to know what follows.

        Args:
            module: the layer, or a copy that has its class.
            input: of the layer.

        Raises:
            RuntimeError: where the layer cannot be tapped: in a copy, in a compiled model, under `torch.func`.
        """
        owner, plain = self.owner(), self._kind.forward
        if owner is None:
            self.remove()
        if owner is None or not owner.active():
            return plain(module, input)
        if not torch.is_grad_enabled():
            self._run_unrecorded(owner, input)
            return plain(module, input)
        self._refuse(module, input, type(owner).__name__)
        if not self._moves():
            return plain(module, input)
        owner.before_forward(self.name)
        self._guard()
        if isinstance(input, PreActivation):
            input = input.consumed_by(self._kind.__name__)
        one = self._enter(owner, input)
        weight, bias = module._parameters["weight"], module._parameters.get("bias")
        self.consumption = Consumption()
        z: Tensor = _TappedLayer.apply(  # pyright: ignore[reportAssignmentType]
            self.geometry.prepare(input), weight, bias, self, self.consumption, one
        )
        owner.passes.attach(one, (z,))
        return PreActivation.mark(z, self.consumption) if owner.wants_activation(self) else z

    def _enter(self, owner: Owner, input: Tensor) -> ForwardPass:
        """The pass that the layer's backward call belongs to: for a recomputation the one that is recomputed."""
        one = owner.passes.of_layer(input)
        if one.recomputes:
            one.original = self._unrecorded.take() or one.original
            if one.original is not None:
                return one.original
        one.enter(self.name, self.geometry.batch(input))
        return one

    def _run_unrecorded(self, owner: Owner, input: Tensor) -> None:
        """Notes that the layer ran without gradients, which may be an activation checkpoint's first run."""
        one = owner.passes.of_layer(input)
        if one.differentiable:
            one.enter(self.name, self.geometry.batch(input))
            self._unrecorded.add(one)

    def _moves(self) -> bool:
        """Whether a parameter is to be updated, and all are still the ones that were tapped."""
        held = self.module._parameters
        return all(held.get(key) is p for key, p in self.parameters.items()) and any(
            p.requires_grad for p in self.parameters.values()
        )

    def _refuse(self, module: nn.Module, input: Tensor, method: str) -> None:
        """Raises where the layer's backward call would not be this layer's proximal update."""
        here = f"layer '{self.name}'"
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"{here} is tapped by {method} and cannot be compiled: "
                "give torch.compile a model without a sibp optimizer, or train the uncompiled one."
            )
        if module is not self.module:
            raise RuntimeError(
                f"{here} runs as a copy (nn.DataParallel makes one for every device), which {method} does not own; "
                f"run the model itself, or one process for every device with {method}(model, data_parallel=True)."
            )
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"{here} is tapped by {method}, whose backward pass torch.func cannot transform; "
                "call the transform inside `with optimizer.paused():`."
            )
        if input.is_nested or input.layout is not torch.strided:
            kind = "nested" if input.is_nested else str(input.layout).removeprefix("torch.")
            raise RuntimeError(
                f"{here}: {method} takes dense inputs only, not {kind} ones; convert the input "
                f"(to_dense, to_padded_tensor), or leave the layer to the fallback with explicit=['{self.name}']."
            )

    def begin_backward(self) -> None:
        """Notes a backward pass through the layer.

        Raises:
            RuntimeError: under `create_graph=True`, or if the same backward pass has been here already.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"layer '{self.name}': a proximal update cannot be differentiated again (create_graph=True); "
                "wrap that forward pass in `with optimizer.paused():`."
            )
        task = torch._C._current_graph_task_id()
        if task in self._returned:
            raise RuntimeError(
                f"layer '{self.name}' runs more than once in this loss (a shared layer), so it has no single proximal "
                f"subproblem; leave it to the fallback optimizer with explicit=['{self.name}']."
            )
        self._returned[task] = {}
        while len(self._returned) > _PARALLEL_PASSES:
            del self._returned[min(self._returned)]

    def returns(self, key: str, gradient: Tensor) -> Tensor:
        """Remembers which gradient was handed to autograd for a parameter, so that no other can slip in.

        Args:
            key: "weight" or "bias".
            gradient: the displacement p_old - p_new or the ordinary gradient, of the parameter's shape.

        Returns:
            The gradient as it was given.
        """
        self._returned[torch._C._current_graph_task_id()][key] = (gradient.data_ptr(), gradient._version)
        return gradient

    def _guard(self) -> None:
        """Puts hooks on the parameters that can get a gradient; one that was frozen may have been thawed since."""
        this: weakref.ref[Tap] = weakref.ref(self)
        for key, parameter in self.parameters.items():
            if parameter.requires_grad and key not in self._hooks:
                self._hooks[key] = [
                    parameter.register_hook(_before(this, key, weakref.ref(parameter))),
                    parameter.register_post_accumulate_grad_hook(_after(this, key)),
                ]

    def before_accumulation(self, key: str, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Records a parameter's gradient, refusing one that did not come from the tap, or not only.

        Args:
            key: "weight" or "bias".
            parameter: it is for.
            gradient: what autograd is about to put into `.grad`, of the parameter's shape.

        Raises:
            RuntimeError: if the parameter was used outside its layer's forward pass.
        """
        owner = self.owner()
        if owner is None or not self.installed:
            return
        expected = self._returned.get(torch._C._current_graph_task_id(), {}).get(key)
        ours = expected is not None
        if ours and len(parameter._backward_hooks or ()) == 1:  # no other hook can have changed it
            ours = expected == (gradient.data_ptr(), gradient._version)
        if not ours and owner.active():
            raise RuntimeError(
                f"layer '{self.name}': its {key} is also used outside the layer's own forward pass (tied weights, a "
                "penalty in the loss, a functional call), which a proximal update cannot include; use the optimizer's "
                f"weight_decay for a penalty, or leave the layer to the fallback with explicit=['{self.name}']."
            )
        self.displacements.before(key, parameter, None if ours else PAUSED)


_PARALLEL_PASSES = 64  # backward passes that may be running at once, in different threads


def tap_of(module: nn.Module) -> Tap | None:
    """The tap that computes the module's forward pass, or None."""
    return vars(type(module)).get("_tap")


def _tapped(kind: type[nn.Module], tap: Tap) -> type[nn.Module]:
    """A class like `kind`, and called like it, whose `forward` is the tap's; copies are of the class `kind`."""

    def forward(self: nn.Module, input: Tensor) -> Tensor:
        return tap.forward(self, input)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        _, _, *state = object.__reduce_ex__(self, protocol)
        return copyreg._reconstructor, (kind, object, None), *state  # pyright: ignore[reportAttributeAccessIssue]

    members = {"_tap": tap, "_untapped": kind, "forward": forward, "__reduce_ex__": reduce, "__doc__": kind.__doc__}
    return type(kind.__name__, (kind,), {**members, "__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _before(tap: "weakref.ref[Tap]", key: str, parameter: "weakref.ref[nn.Parameter]") -> Any:
    def hook(gradient: Tensor) -> None:
        this, own = tap(), parameter()
        if this is not None and own is not None:
            this.before_accumulation(key, own, gradient)

    return hook


def _after(tap: "weakref.ref[Tap]", key: str) -> Any:
    def hook(parameter: Tensor) -> None:
        this = tap()
        if this is not None and parameter.grad is not None:
            this.displacements.after(key, parameter.grad)

    return hook


class _TappedLayer(torch.autograd.Function):
    """z = layer(x); its backward pass is the layer's proximal update."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        W: Tensor,
        b: Tensor | None,
        tap: Tap,
        consumption: Consumption,
        one: ForwardPass,
    ) -> Tensor:
        ctx.save_for_backward(x, W, b)
        ctx.tap, ctx.consumption, ctx.one = tap, consumption, one
        return tap.geometry.forward(x, W, b)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        return _eagerly()(ctx, grad_outputs[0])


def _eagerly() -> Callable[..., Any]:
    """`_update`, left alone by torch.compile where a compiled step calls `backward`."""
    return _update_outside_dynamo() if "torch._dynamo" in sys.modules else _update  # importing it takes seconds


@cache
def _update_outside_dynamo() -> Callable[..., Any]:
    return torch.compiler.disable(_update)  # pyright: ignore[reportReturnType]


def _update(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients for x, W and b: the error signal that goes on, and the layer's displacements."""
    x, W, b = ctx.saved_tensors
    tap: Tap = ctx.tap
    owner, geometry, consumption = tap.owner(), tap.geometry, ctx.consumption
    if owner is None or not tap.installed:
        raise RuntimeError(
            f"layer '{tap.name}': the optimizer that this forward pass was made for is gone; run it again."
        )
    needs_x, needs_W, needs_b = ctx.needs_input_grad[:3]
    if not any(_is_asked_for(ctx, place) for place, needed in ((1, needs_W), (2, needs_b)) if needed):
        consumption.clear()  # gradients of inputs alone are the loss's own
        return geometry.input_gradient(x, gradient, W) if needs_x else None, None, None, None, None, None
    tap.begin_backward()
    dtype = torch.promote_types(W.dtype, torch.float32)  # solves are never done in half precision
    wide = _as(gradient, dtype)
    features = geometry.features(_as(x, dtype), weight=needs_W and tap.weight, bias=needs_b and tap.bias)
    known = consumption.known
    problem = LayerProblem(
        name=tap.name,
        features=features,
        D_z=geometry.outputs(wide, features),
        terms=owner.loss_terms(ctx.one),
        ends=ctx.one.ends,
        activation=_in_rows(consumption.activation, gradient, geometry, features) if known else None,
        Z=geometry.outputs(_as(consumption.Z, dtype), features) if known else None,
        D=geometry.outputs(_as(consumption.D, dtype), features) if known else None,
        W=geometry.matrix(_as(W, dtype)),
        b=None if b is None else geometry.vector(_as(b, dtype)),
    )
    consumption.clear()
    update = owner.solve(tap, problem)
    new = owner.goes_back_through_new(tap)
    grad_x = _input_gradient(geometry, x, wide, W, problem, update, new) if needs_x else None
    grad_W = _weight_gradient(tap, W, problem, update) if needs_W else None
    grad_b = _bias_gradient(tap, b, problem, update) if needs_b else None
    return grad_x, grad_W, grad_b, None, None, None


def _is_asked_for(ctx: Any, place: int) -> bool:
    """Whether this backward pass computes the gradient of the layer's parameter, the input at `place`.

    `needs_input_grad` says only that it could: in `torch.autograd.grad(loss, x)` nobody asks for it.
    """
    node = ctx.next_functions[place][0]
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)  # private, but the engine alone knows
    except RuntimeError:  # what it says of a leaf that is among the `inputs` of torch.autograd.grad
        return True


def _in_rows(s: Activation | None, z: Tensor, geometry: Geometry, features: FeatureOperator) -> Activation | None:
    """The activation for Z as the subproblem has it; z has the shape of the layer's output."""
    return s if s is None or s.learned is None else s.rearranged(z.shape, lambda t: geometry.outputs(t, features))


def _input_gradient(
    geometry: Geometry,
    x: Tensor,
    gradient: Tensor,
    W: Tensor,
    problem: LayerProblem,
    update: LayerUpdate,
    through_new: bool,
) -> Tensor:
    """D_{l-1} = D_z W, with the new W or the old one (the paper's equation 10); `gradient` is D_z as it came."""
    W = _as(W, gradient.dtype)
    if update.input_difference is not None:
        sent = update.input_difference.reshape(x.shape)
    elif not through_new or update.W_decrease is None:
        sent = geometry.input_gradient(x, gradient, W)
    elif geometry.rows_are_inputs and update.backward_change is not None:
        change = update.backward_change(problem.D_z)
        sent = geometry.input_gradient(x, gradient, W)
        sent = sent if change is None else sent.add_(change.reshape(x.shape))
    else:
        sent = geometry.input_gradient(x, gradient, W - geometry.weight(update.W_decrease, W.shape))
    return _as(sent, x.dtype)


def _weight_gradient(tap: Tap, W: Tensor, problem: LayerProblem, update: LayerUpdate) -> Tensor:
    """W_old - W_new; the ordinary gradient of the loss for a weight that the optimizer does not own."""
    if update.W_decrease is None:
        ordinary = problem.features.moving(weight=True, bias=False).rmatmat(problem.D_z).mT
        return _as(tap.geometry.weight(ordinary, W.shape), W.dtype)
    return tap.returns("weight", _as(tap.geometry.weight(update.W_decrease, W.shape), W.dtype))


def _bias_gradient(tap: Tap, b: Any, problem: LayerProblem, update: LayerUpdate) -> Tensor:
    """b_old - b_new; the ordinary gradient of the loss for a bias that the optimizer does not own."""
    if update.b_decrease is None:
        return _as(problem.features.over_rows(problem.D_z).reshape(b.shape), b.dtype)
    return tap.returns("bias", _as(update.b_decrease.reshape(b.shape), b.dtype))


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in a dtype: `Tensor.to`, which takes a microsecond to see that there is nothing to do."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)
