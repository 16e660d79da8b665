"""Taps: how a layer's input, output and difference reach the solver inside ordinary autograd.

A `Tap` takes the place of one layer's `forward`. The layer's output is computed as before, by an autograd Function
whose backward pass asks the optimizer for the layer's new weights, returns W_old - W_new (and b_old - b_new) as the
parameters' gradients, and sends the difference on through the weights that the method prescribes: the new ones for
semi-implicit back propagation, the old ones for ProxBP. The model itself stays as it is.
"""

import types
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sibp.activations import Activation
from sibp.capture.activation import Consumption, PreActivation
from sibp.capture.geometry import Geometry
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
    """

    W_decrease: Tensor | None
    b_decrease: Tensor | None
    backward_change: Callable[[Tensor], Tensor | None] | None = None
    input_difference: Tensor | None = None


class Owner(Protocol):
    """The optimizer, as a tap sees it."""

    semi_implicit: bool
    """Whether differences travel on through the new weights (SIBP) or the old ones (ProxBP)."""

    def active(self) -> bool:
        """Whether forward passes are to be tapped now."""
        ...

    def wants_activation(self, tap: "Tap") -> bool:
        """Whether the solver of this layer makes use of the activation that follows it."""
        ...

    def loss_terms(self, tap: "Tap", batch: int) -> float:
        """The number of terms that the loss averages over (1 for a sum), given the samples in this layer's input."""
        ...

    def solve(self, tap: "Tap", problem: LayerProblem) -> LayerUpdate:
        """The layer's update."""
        ...


class Tap:
    """Stands in for `module.forward` while an optimizer owns the layer.

    Copies and pickles of the module get the module's own `forward` back: a copy belongs to nobody.
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
        self.backward_passes = 0
        self.consumption = Consumption()
        wanted = {"weight": weight, "bias": bias}
        self.parameters = {key: p for key, p in module.named_parameters(recurse=False) if wanted.get(key)}
        self._task = -1
        self._returned: dict[str, tuple[int, int]] = {}
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def install(self) -> None:
        """Puts the tap in place of `module.forward`, taking the layer over from an earlier optimizer."""
        earlier = vars(self.module).get("forward")
        if isinstance(earlier, Tap):
            earlier.remove()
        self.module.forward = self
        this: weakref.ref[Tap] = weakref.ref(self)
        for key, parameter in self.parameters.items():
            if parameter.requires_grad:
                self._hooks.append(parameter.register_hook(_only_from_tap(this, key, weakref.ref(parameter))))

    @property
    def installed(self) -> bool:
        """Whether the layer still belongs to this tap's optimizer."""
        return vars(self.module).get("forward") is self

    def remove(self) -> None:
        """Gives the layer its own `forward` back."""
        if self.installed:
            del self.module.forward
        self.keeps = None
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def __call__(self, input: Tensor) -> Tensor:
        """The layer's output, marked if the solver has to know what follows."""
        owner, module = self.owner(), self.module
        if owner is None:
            self.remove()
        if owner is None or not torch.is_grad_enabled() or not owner.active():
            return type(module).forward(module, input)
        if torch.compiler.is_compiling():
            raise RuntimeError(
                f"layer '{self.name}' is tapped by {type(owner).__name__} and cannot be compiled: "
                "give torch.compile a model without a sibp optimizer, or train the uncompiled one."
            )
        if not self._moves():
            return type(module).forward(module, input)
        if isinstance(input, PreActivation):
            input = input.consumed_by(type(module).__name__)
        weight, bias = module._parameters["weight"], module._parameters.get("bias")
        terms = owner.loss_terms(self, self.geometry.batch(input))
        self.consumption = Consumption()
        z: Tensor = _TappedLayer.apply(  # pyright: ignore[reportAssignmentType]
            self.geometry.prepare(input), weight, bias, self, self.consumption, terms
        )
        return PreActivation.mark(z, self.consumption) if owner.wants_activation(self) else z

    def _moves(self) -> bool:
        """Whether a parameter is to be updated, and all are still the ones that were tapped."""
        held = self.module._parameters
        return all(held.get(key) is p for key, p in self.parameters.items()) and any(
            p.requires_grad for p in self.parameters.values()
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
        if task == self._task:
            raise RuntimeError(
                f"layer '{self.name}' runs more than once in this loss (a shared layer), so it has no single proximal "
                f"subproblem; leave it to the fallback optimizer with explicit=['{self.name}']."
            )
        self._task = task
        self.backward_passes += 1
        self._returned.clear()

    def returns(self, key: str, gradient: Tensor) -> Tensor:
        """Remembers which gradient was handed to autograd for a parameter, so that no other can slip in.

        Args:
            key: "weight" or "bias".
            gradient: the displacement p_old - p_new or the ordinary gradient, of the parameter's shape.

        Returns:
            The gradient as it was given.
        """
        self._returned[key] = (gradient.data_ptr(), gradient._version)
        return gradient

    def check_gradient(self, key: str, gradient: Tensor, *, alone: bool) -> None:
        """Refuses a parameter's gradient that did not come from the tap, or not only.

        Args:
            key: "weight" or "bias".
            gradient: what autograd is about to put into `.grad`, of the parameter's shape.
            alone: whether no other hook can have changed it.

        Raises:
            RuntimeError: if the parameter was used outside its layer's forward pass.
        """
        owner = self.owner()
        if owner is None or not owner.active() or not self.installed:
            return
        expected = self._returned.get(key)
        here = torch._C._current_graph_task_id() == self._task and expected is not None
        if not here or (alone and expected != (gradient.data_ptr(), gradient._version)):
            raise RuntimeError(
                f"layer '{self.name}': its {key} is also used outside the layer's own forward pass (tied weights, a "
                "penalty in the loss, a functional call), which a proximal update cannot include; use the optimizer's "
                f"weight_decay for a penalty, or leave the layer to the fallback with explicit=['{self.name}']."
            )

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A copied module gets its own forward back."""
        copy = memo.get(id(self.module))
        return types.MethodType(type(copy).forward, copy) if isinstance(copy, nn.Module) else None

    def __reduce__(self) -> tuple[Any, ...]:
        """A pickled module gets its own forward back."""
        return getattr, (self.module, "forward")


def _only_from_tap(tap: "weakref.ref[Tap]", key: str, parameter: "weakref.ref[nn.Parameter]") -> Any:
    def hook(gradient: Tensor) -> None:
        this, owner = tap(), parameter()
        if this is not None and owner is not None:
            this.check_gradient(key, gradient, alone=len(owner._backward_hooks or ()) == 1)

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
        terms: float,
    ) -> Tensor:
        ctx.save_for_backward(x, W, b)
        ctx.tap, ctx.consumption, ctx.terms = tap, consumption, terms
        return tap.geometry.forward(x, W, b)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        x, W, b = ctx.saved_tensors
        tap: Tap = ctx.tap
        owner = tap.owner()
        if owner is None or not tap.installed:
            raise RuntimeError(
                f"layer '{tap.name}': the optimizer that this forward pass was made for is gone; run it again."
            )
        tap.begin_backward()
        geometry, consumption = tap.geometry, ctx.consumption
        dtype = torch.promote_types(W.dtype, torch.float32)  # solves are never done in half precision
        gradient = _as(grad_outputs[0], dtype)
        needs_x, needs_W, needs_b = ctx.needs_input_grad[:3]
        features = geometry.features(_as(x, dtype), weight=needs_W and tap.weight, bias=needs_b and tap.bias)
        known = consumption.known
        problem = LayerProblem(
            name=tap.name,
            features=features,
            D_z=geometry.outputs(gradient, features),
            terms=ctx.terms,
            activation=_in_rows(consumption.activation, grad_outputs[0], geometry, features) if known else None,
            Z=geometry.outputs(_as(consumption.Z, dtype), features) if known else None,
            D=geometry.outputs(_as(consumption.D, dtype), features) if known else None,
            W=geometry.matrix(_as(W, dtype)),
            b=None if b is None else geometry.vector(_as(b, dtype)),
        )
        consumption.clear()
        update = owner.solve(tap, problem)
        grad_x = _input_gradient(geometry, x, gradient, W, problem, update, owner.semi_implicit) if needs_x else None
        grad_W = _weight_gradient(tap, W, problem, update) if needs_W else None
        grad_b = _bias_gradient(tap, b, problem, update) if needs_b else None
        return grad_x, grad_W, grad_b, None, None, None


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
    semi_implicit: bool,
) -> Tensor:
    """D_{l-1} = D_z W, with the new W if semi-implicit; step 3 of DESIGN section 2. `gradient` is D_z as it came."""
    W = _as(W, gradient.dtype)
    if update.input_difference is not None:
        sent = update.input_difference.reshape(x.shape)
    elif not semi_implicit or update.W_decrease is None:
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
