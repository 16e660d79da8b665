"""Taps: how a layer's input, output and error signal reach the solver inside ordinary autograd.

A `Tap` computes one layer's forward pass. The output is unchanged, but comes from an autograd Function whose backward
call asks the optimizer for the layer's new weights, returns W_old - W_new (and b_old - b_new) as the parameters'
gradients, and passes the error signal on through the weights that the method prescribes: the new ones for semi-implicit
back propagation, the old ones for ProxBP.
"""

import weakref
from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sibp.capture.activation import Consumption, PreActivation
from sibp.capture.backward import Call, TappedLayer
from sibp.capture.compiler import left_alone
from sibp.capture.displacements import PAUSED, Displacements
from sibp.capture.geometry import Geometry, has_other_bias, own_class
from sibp.capture.passes import ForwardPass, Passes, Unrecorded
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.internals import are_transforms_active, backward_pass, is_tracing, own_parameters, version


class Owner(Protocol):
    """The part of the optimizer that taps need."""

    passes: Passes
    """The forward passes of its model."""

    def active(self) -> bool:
        """Whether forward passes are tapped now."""
        ...

    def before_forward(self, layer: str) -> None:
        """Refuses a forward pass whose displacements a wrapper would alter."""
        ...

    def wants_activation(self, tap: "Tap") -> bool:
        """Whether this layer's solver uses the activation that follows it."""
        ...

    def solve(self, tap: "Tap", problem: LayerProblem) -> LayerUpdate:
        """The layer's update."""
        ...

    def loss_terms(self, one: ForwardPass) -> float:
        """The number of terms that the loss of a forward pass averages over; 1 for a sum."""
        ...

    def goes_back_through_new(self, tap: "Tap") -> bool:
        """Whether the error signal goes back through the layer's new weights, or else through the old ones."""
        ...


class Tap:
    """Computes a layer's forward pass while an optimizer owns the layer.

    The layer gets a subclass of its class, whose `forward` is the tap. Copies and pickles have the original class, and
    no optimizer.
    """

    def __init__(
        self, name: str, module: nn.Module, geometry: Geometry, owner: Owner, *, weight: bool, bias: bool
    ) -> None:
        """Prepares a tap; `install` puts it in place.

        Args:
            name: of the module, for messages.
            module: the layer.
            geometry: the layer as a matrix product.
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
        self._passed: deque[int] = deque(maxlen=_PARALLEL_PASSES)  # backward passes that have been through the layer
        self._returned: dict[int, dict[str, tuple[int, int]]] = {}  # by backward pass and parameter
        self._hooks: dict[str, list[torch.utils.hooks.RemovableHandle]] = {}

    def install(self) -> None:
        """Taps the layer, taking it from an earlier optimizer."""
        earlier = tap_of(self.module)
        if earlier is not None:
            earlier.remove()
        self.module.__class__ = _tapped(self._kind, self)
        self._guard()

    @property
    def installed(self) -> bool:
        """Whether the layer still belongs to this tap's optimizer."""
        return type(self.module).__dict__.get("_tap") is self  # `tap_of`, inlined

    @property
    def replaced(self) -> str | None:
        """The parameter or method of the layer that has been replaced since it was tapped; None if none has."""
        held = own_parameters(self.module)
        for key, p in self.parameters.items():
            if held.get(key) is not p:
                return key
        return "bias" if has_other_bias(self.module) else self.geometry.replaced_method(self.module)

    def refuse_replaced(self, method: str) -> None:
        """Raises RuntimeError if a part of the layer was replaced.

        Args:
            method: the optimizer's name.
        """
        if self.replaced is not None:
            if hasattr(own_parameters(self.module).get(self.replaced), "device_mesh"):
                raise RuntimeError(
                    f"layer '{self.name}': its {self.replaced} was sharded after the optimizer was made (fully_shard, "
                    f"DTensor), and no rank has all of it; give every rank the whole model, with {method}(model, "
                    "data_parallel=True)."
                )
            raise RuntimeError(
                f"layer '{self.name}': its {self.replaced} was replaced after the optimizer was made "
                "(load_state_dict(assign=True), a parametrization, pruning, a wrapper), so that training would not "
                f"move it; make the {method} afterwards."
            )

    def remove(self) -> None:
        """Restores the layer's class."""
        if self.installed:
            self.module.__class__ = self._kind
        self.keeps = None
        for hooks in self._hooks.values():
            for hook in hooks:
                hook.remove()
        self._hooks.clear()

    def forward(self, module: nn.Module, input: Tensor) -> Tensor:
        """The layer's output, marked if the solver uses the activation that follows.

        Args:
            module: the layer, or a copy that has its class.
            input: of the layer.

        Raises:
            RuntimeError: if the layer cannot be tapped here: in a copy, in a compiled model, under `torch.func`.
        """
        owner, plain = self.owner(), self._kind.forward
        if owner is None:
            self.remove()
        if owner is None or not owner.active() or not isinstance(input, Tensor):
            return plain(module, input)  # its error names an input that is not a tensor
        if not torch.is_grad_enabled():
            self._run_unrecorded(owner, input)
            return plain(module, input)
        self._refuse(module, input, type(owner).__name__)
        return self._run(owner, module, input) if self._moves() else plain(module, input)

    @left_alone
    def _run(self, owner: Owner, module: nn.Module, input: Tensor) -> Tensor:
        """The output, computed by the autograd Function."""
        owner.before_forward(self.name)
        self._guard()
        if isinstance(input, PreActivation):
            input = input.consumed_by(self._kind.__name__)
        one = self._enter(owner, input)
        held = own_parameters(module)
        weight, bias = held["weight"], held.get("bias")
        self.consumption = consumption = Consumption()  # another thread may replace the tap's at any time
        if not self.geometry.fits(module):
            self.geometry = type(self.geometry)(module)
        x = self.geometry.prepare(input)
        z: Tensor = TappedLayer.apply(  # pyright: ignore[reportAssignmentType]
            x, weight, bias, Call(self, self.geometry, consumption, one, one.input(x), backward_pass())
        )
        return PreActivation.mark(z, consumption) if owner.wants_activation(self) else z

    def _enter(self, owner: Owner, input: Tensor) -> ForwardPass:
        """The pass of the layer's backward call: for a recomputation, the original one."""
        one = owner.passes.of_layer(input, self.name)
        if one.recomputes:
            one.original = self._unrecorded.take() or one.original
            if one.original is not None:
                return one.original
        one.enter(self.name, self.geometry.batch(input), recorded=True, from_data=not input.requires_grad)
        return one

    def _run_unrecorded(self, owner: Owner, input: Tensor) -> None:
        """Records a run without gradients, which may be an activation checkpoint's first run."""
        one = owner.passes.of_layer(input, self.name)
        if one.differentiable:
            one.enter(self.name, self.geometry.batch(input), recorded=False, from_data=not input.requires_grad)
            self._unrecorded.add(one)

    def _moves(self) -> bool:
        """Whether a parameter is trained, and none has been replaced."""
        if has_other_bias(self.module):
            return False
        held, moves = own_parameters(self.module), False
        for key, p in self.parameters.items():
            if held.get(key) is not p:
                return False
            moves = moves or p.requires_grad
        return moves

    def _refuse(self, module: nn.Module, input: Tensor, method: str) -> None:
        """Raises if the backward call could not be this layer's proximal update."""
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
        if is_tracing():
            raise RuntimeError(
                f"{here} is tapped by {method}, and a trace with gradients would contain its backward pass; call "
                "torch.jit.trace inside `with torch.no_grad():`."
            )
        if are_transforms_active():
            raise RuntimeError(
                f"{here} is tapped by {method}, whose backward pass torch.func cannot transform; "
                "call the transform inside `with optimizer.paused():`."
            )
        if input.is_inference():
            raise RuntimeError(
                f"{here}: its input was made under torch.inference_mode(), so that autograd cannot keep it; make it "
                "under torch.no_grad(), or clone it."
            )
        if input.is_nested or input.layout is not torch.strided:
            kind = "nested" if input.is_nested else str(input.layout).removeprefix("torch.")
            raise RuntimeError(
                f"{here}: {method} takes dense inputs only, not {kind} ones; convert the input "
                f"(to_dense, to_padded_tensor), or leave the layer to the fallback with explicit=['{self.name}']."
            )

    def refuse_script(self) -> None:
        """Raises RuntimeError for `torch.jit.script`, if the layer still has an optimizer."""
        owner = self.owner()
        if owner is not None:
            raise RuntimeError(
                f"layer '{self.name}' is tapped by {type(owner).__name__}, and TorchScript cannot compile that; call "
                "optimizer.remove() before, or torch.jit.trace inside `with torch.no_grad():`."
            )
        self.remove()

    def begin_backward(self, within: int) -> None:
        """Records a backward pass through the layer.

        Args:
            within: the backward pass that recomputed the layer, which started this one (a reentrant checkpoint); -1 if
                none did.

        Raises:
            RuntimeError: under `create_graph=True`, or if the same backward pass has already been through the layer.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"layer '{self.name}': a proximal update cannot be differentiated again (create_graph=True); "
                "wrap that forward pass in `with optimizer.paused():`."
            )
        task = backward_pass()
        whole = task if within == -1 else within
        if whole in self._passed:
            raise RuntimeError(
                f"layer '{self.name}' runs more than once in this loss (a shared layer), so it has no single proximal "
                f"subproblem; leave it to the fallback optimizer with explicit=['{self.name}']."
            )
        self._passed.append(whole)
        self._returned[task] = {}
        while len(self._returned) > _PARALLEL_PASSES:
            del self._returned[min(self._returned)]

    def returns(self, key: str, gradient: Tensor) -> Tensor:
        """Remembers the gradient returned to autograd for a parameter, in order to detect any other.

        Args:
            key: "weight" or "bias".
            gradient: the displacement p_old - p_new or the ordinary gradient, of the parameter's shape.

        Returns:
            The gradient.
        """
        self._returned[backward_pass()][key] = (gradient.data_ptr(), version(gradient))
        return gradient

    def _guard(self) -> None:
        """Registers hooks on the parameters that require gradients now."""
        this: weakref.ref[Tap] = weakref.ref(self)
        for key, parameter in self.parameters.items():
            if parameter.requires_grad and key not in self._hooks:
                self._hooks[key] = [
                    parameter.register_hook(_before(this, key, weakref.ref(parameter))),
                    parameter.register_post_accumulate_grad_hook(_after(this, key)),
                ]

    @left_alone
    def before_accumulation(self, key: str, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Records a parameter's gradient; refuses one that is not entirely the tap's.

        Args:
            key: "weight" or "bias".
            parameter: the parameter.
            gradient: what autograd is about to add to `.grad`, of the parameter's shape.

        Raises:
            RuntimeError: if the parameter was used outside its layer's forward pass.
        """
        owner = self.owner()
        if owner is None or not self.installed:
            return
        expected = self._returned.get(backward_pass(), {}).get(key)
        ours = expected is not None
        # Only user hooks could have changed it; torch has no public list of them.
        if ours and len(parameter._backward_hooks or ()) == 1:
            ours = expected == (gradient.data_ptr(), version(gradient))
        if not ours and owner.active():
            self.refuse_replaced(type(owner).__name__)
            raise RuntimeError(
                f"layer '{self.name}': its {key} is also used outside the layer's own forward pass (tied weights, a "
                "penalty in the loss, a functional call, a forward pass inside paused() without its backward pass), "
                "which a proximal update cannot include; use the optimizer's weight_decay for a penalty, or leave the "
                f"layer to the fallback with explicit=['{self.name}']."
            )
        self.displacements.before(key, parameter, None if ours else PAUSED)


_PARALLEL_PASSES = 64  # backward passes that may be running at once, in different threads


def tap_of(module: nn.Module) -> Tap | None:
    """The tap that computes the module's forward pass, or None."""
    return vars(type(module)).get("_tap")


def _tapped(kind: type[nn.Module], tap: Tap) -> type[nn.Module]:
    """A subclass of `kind` with its name, whose `forward` is the tap's; copies are of the class `kind`."""

    def forward(self: nn.Module, input: Tensor) -> Tensor:
        return tap.forward(self, input)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        _, _, *state = object.__reduce_ex__(self, protocol)
        return object.__new__, (kind,), *state

    def prepare_scriptable(self: nn.Module) -> nn.Module:
        tap.refuse_script()
        return self

    members = {"_tap": tap, "_untapped": kind, "forward": forward, "__reduce_ex__": reduce, "__doc__": kind.__doc__}
    members["__prepare_scriptable__"] = prepare_scriptable  # torch.jit.script asks for it first
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
