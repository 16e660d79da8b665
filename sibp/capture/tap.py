"""Taps, through which a layer's input, output and error signal reach the solver inside ordinary autograd.

A `Tap` computes one layer's forward pass. The output is the same as without it, but an autograd Function computes it.
The backward call of that Function asks the optimizer for the layer's new weights and returns W_old - W_new and
b_old - b_new as the parameters' gradients. It propagates the error signal through the weights that the method
prescribes: the new ones for semi-implicit back propagation, the old ones for ProxBP.
"""

import weakref
from collections import deque
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from sibp.capture.activation import Consumption, PreActivation
from sibp.capture.backward import Call, TappedLayer
from sibp.capture.compiler import run_eagerly
from sibp.capture.displacements import PAUSED, Displacements
from sibp.capture.geometry import Geometry, has_other_bias, own_class
from sibp.capture.passes import ForwardPass, Passes, UnrecordedPasses
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.internals import are_transforms_active, backward_pass, is_tracing, own_parameters, version


class Owner(Protocol):
    """The interface of the optimizer that taps use; see `sibp.optim.base.TappedOptimizer`."""

    passes: Passes
    """The forward passes of its model."""

    def active(self) -> bool:
        """Whether forward passes are tapped now."""
        ...

    def before_forward(self, layer: str) -> None:
        """Called before a layer runs; raises if a wrapper would alter its displacements."""
        ...

    def wants_activation(self, tap: "Tap") -> bool:
        """Whether this layer's solver uses the activation that follows it."""
        ...

    def solve(self, tap: "Tap", problem: LayerProblem) -> LayerUpdate:
        """Solves the layer's subproblem."""
        ...

    def loss_terms(self, forward_pass: ForwardPass) -> float:
        """The number of terms that the loss of a forward pass averages over; 1 for a sum."""
        ...

    def uses_new_weights_backward(self, tap: "Tap") -> bool:
        """Whether the error signal is propagated through the layer's new weights instead of the old ones."""
        ...


class Tap:
    """Computes a layer's forward pass while an optimizer owns the layer.

    `install` replaces the layer's class by a subclass whose `forward` calls the tap. Copies and pickles of the layer
    have the original class, and no tap.

    Attributes:
        parameters: the parameters that the optimizer updates, by key: "weight", "bias".
        consumption: how the output of the layer's last call was used.
        displacements: tracks what the parameters' `.grad` contains.
        kept_owner: the optimizer, if nothing else may keep it alive; else None.
    """

    def __init__(
        self, name: str, module: nn.Module, geometry: Geometry, owner: Owner, *, weight: bool, bias: bool
    ) -> None:
        """Prepares a tap; `install` puts it in place.

        Args:
            name: the layer's name in the model.
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
        self.kept_owner: Owner | None = None
        self.weight, self.bias = weight, bias
        self.consumption = Consumption()
        self.displacements = Displacements()
        wanted = {"weight": weight, "bias": bias}
        self.parameters = {key: p for key, p in module.named_parameters(recurse=False) if wanted.get(key)}
        self._original_class = own_class(module)
        self._unrecorded_passes = UnrecordedPasses()
        self._seen_backward_passes: deque[int] = deque(maxlen=_PARALLEL_PASSES)
        self._returned_gradients: dict[int, dict[str, tuple[int, int]]] = {}  # by backward pass and parameter
        self._hooks: dict[str, list[torch.utils.hooks.RemovableHandle]] = {}

    def install(self) -> None:
        """Taps the layer; removes the tap of an earlier optimizer."""
        earlier = tap_of(self.module)
        if earlier is not None:
            earlier.remove()
        self.module.__class__ = _tapped(self._original_class, self)
        self._register_hooks()

    @property
    def installed(self) -> bool:
        """Whether the layer still has this tap."""
        return type(self.module).__dict__.get("_tap") is self  # `tap_of`, inlined

    @property
    def dtype_and_device(self) -> tuple[torch.dtype, torch.device]:
        """The dtype and device of the layer's parameters."""
        p = next(iter(self.parameters.values()))
        return p.dtype, p.device

    @property
    def replaced(self) -> str | None:
        """Name of a parameter or method of the layer that was replaced after it was tapped; None if none was."""
        held = own_parameters(self.module)
        for key, p in self.parameters.items():
            if held.get(key) is not p:
                return key
        return "bias" if has_other_bias(self.module) else self.geometry.replaced_method(self.module)

    def check_not_replaced(self, method: str) -> None:
        """Raises an error if a parameter or method of the layer was replaced.

        Args:
            method: the optimizer's name.

        Raises:
            RuntimeError: if one was replaced.
        """
        if self.replaced is not None:
            if hasattr(own_parameters(self.module).get(self.replaced), "device_mesh"):
                raise RuntimeError(
                    f"layer '{self.name}': its {self.replaced} was sharded after the optimizer was made (fully_shard, "
                    f"DTensor), so no rank holds all of it; give every rank the whole model, with {method}(model, "
                    "data_parallel=True)."
                )
            raise RuntimeError(
                f"layer '{self.name}': its {self.replaced} was replaced after the optimizer was made "
                "(load_state_dict(assign=True), a parametrization, pruning, a wrapper), so a step would not change the "
                f"new one; make the {method} afterwards."
            )

    def remove(self) -> None:
        """Restores the layer's class, and removes the hooks."""
        if self.installed:
            self.module.__class__ = self._original_class
        self.kept_owner = None
        for hooks in self._hooks.values():
            for hook in hooks:
                hook.remove()
        self._hooks.clear()

    def forward(self, module: nn.Module, input: Tensor) -> Tensor:
        """The layer's output, marked if the solver uses the activation that follows.

        Args:
            module: the layer, or a copy that has its class.
            input: the layer's input, in the layer's own shape.

        Raises:
            RuntimeError: if the layer cannot be tapped here: in a copy, in a compiled model, under `torch.func`.
        """
        owner, plain = self.owner(), self._original_class.forward
        if owner is None:
            self.remove()
        if owner is None or not owner.active() or not isinstance(input, Tensor):
            return plain(module, input)  # torch raises the right error for an input that is not a tensor
        if not torch.is_grad_enabled():
            self._run_unrecorded(owner, input)
            return plain(module, input)
        self._check_forward(module, input, type(owner).__name__)
        return self._run(owner, module, input) if self._is_trained() else plain(module, input)

    @run_eagerly
    def _run(self, owner: Owner, module: nn.Module, input: Tensor) -> Tensor:
        """The output, computed by the autograd Function."""
        owner.before_forward(self.name)
        self._register_hooks()
        if isinstance(input, PreActivation):
            input = input.consumed_by(self._original_class.__name__)
        forward_pass = self._forward_pass_of(owner, input)
        held = own_parameters(module)
        weight, bias = held["weight"], held.get("bias")
        self.consumption = consumption = Consumption()  # a local reference: other threads may replace the attribute
        if not self.geometry.fits(module):
            self.geometry = type(self.geometry)(module)
        x = self.geometry.prepare(input)
        shared = forward_pass.input(x)
        call = Call(self, self.geometry, consumption, forward_pass, shared, recomputed_in=backward_pass())
        z: Tensor = TappedLayer.apply(x, weight, bias, call)  # pyright: ignore[reportAssignmentType]
        return PreActivation.mark(z, consumption) if owner.wants_activation(self) else z

    def _forward_pass_of(self, owner: Owner, input: Tensor) -> ForwardPass:
        """The forward pass that the layer's call belongs to; if it is a recomputation, the original pass."""
        forward_pass = owner.passes.of_layer(input, self.name)
        if forward_pass.recomputes:
            forward_pass.original = self._unrecorded_passes.pop_latest() or forward_pass.original
            if forward_pass.original is not None:
                return forward_pass.original
        forward_pass.enter(self.name, self.geometry.batch(input), recorded=True, from_data=not input.requires_grad)
        return forward_pass

    def _run_unrecorded(self, owner: Owner, input: Tensor) -> None:
        """Records a run without gradients, which may be an activation checkpoint's first run."""
        forward_pass = owner.passes.of_layer(input, self.name)
        if forward_pass.differentiable:
            forward_pass.enter(self.name, self.geometry.batch(input), recorded=False, from_data=not input.requires_grad)
            self._unrecorded_passes.add(forward_pass)

    def _is_trained(self) -> bool:
        """Whether at least one parameter is trained, and none has been replaced."""
        if has_other_bias(self.module):
            return False
        held, trained = own_parameters(self.module), False
        for key, p in self.parameters.items():
            if held.get(key) is not p:
                return False
            trained = trained or p.requires_grad
        return trained

    def _check_forward(self, module: nn.Module, input: Tensor, method: str) -> None:
        """Raises RuntimeError if the backward call cannot compute this layer's proximal update."""
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
                f"{here}: its input was made under torch.inference_mode(), so autograd cannot save it; make it under "
                "torch.no_grad(), or clone it."
            )
        if input.is_nested or input.layout is not torch.strided:
            kind = "nested" if input.is_nested else str(input.layout).removeprefix("torch.")
            raise RuntimeError(
                f"{here}: {method} takes dense inputs only, not {kind} ones; convert the input "
                f"(to_dense, to_padded_tensor), or leave the layer to the fallback with explicit=['{self.name}']."
            )

    def refuse_script(self) -> None:
        """Raises RuntimeError if `torch.jit.script` is called while the layer has an optimizer."""
        owner = self.owner()
        if owner is not None:
            raise RuntimeError(
                f"layer '{self.name}' is tapped by {type(owner).__name__}, which TorchScript cannot compile; call "
                "optimizer.remove() first, or use torch.jit.trace inside `with torch.no_grad():`."
            )
        self.remove()

    def begin_backward(self, recomputed_in: int) -> None:
        """Records a backward pass through the layer.

        Args:
            recomputed_in: number of the backward pass that recomputed the layer and started this one (a reentrant
                checkpoint); -1 if there is none.

        Raises:
            RuntimeError: under `create_graph=True`, or if this backward pass has already passed through the layer.
        """
        if torch.is_grad_enabled():
            raise RuntimeError(
                f"layer '{self.name}': a proximal update cannot be differentiated again (create_graph=True); "
                "wrap that forward pass in `with optimizer.paused():`."
            )
        task = backward_pass()
        outermost = task if recomputed_in == -1 else recomputed_in
        if outermost in self._seen_backward_passes:
            raise RuntimeError(
                f"layer '{self.name}' runs more than once in this loss (a shared layer), so it has no single proximal "
                f"subproblem; leave it to the fallback optimizer with explicit=['{self.name}']."
            )
        self._seen_backward_passes.append(outermost)
        self._returned_gradients[task] = {}
        while len(self._returned_gradients) > _PARALLEL_PASSES:
            del self._returned_gradients[min(self._returned_gradients)]

    def record_returned(self, key: str, gradient: Tensor) -> Tensor:
        """Records the gradient that is returned to autograd for a parameter, in order to detect other gradients.

        Args:
            key: "weight" or "bias".
            gradient: the displacement p_old - p_new or the ordinary gradient, of the parameter's shape.

        Returns:
            The gradient.
        """
        self._returned_gradients[backward_pass()][key] = (gradient.data_ptr(), version(gradient))
        return gradient

    def _register_hooks(self) -> None:
        """Registers hooks on the parameters that require gradients, once each."""
        this: weakref.ref[Tap] = weakref.ref(self)
        for key, parameter in self.parameters.items():
            if parameter.requires_grad and key not in self._hooks:
                before = parameter.register_hook(_before(this, key, weakref.ref(parameter)))
                _move_first(before.id, parameter)
                self._hooks[key] = [before, parameter.register_post_accumulate_grad_hook(_after(this, key))]

    @run_eagerly
    def before_accumulation(self, key: str, parameter: nn.Parameter, gradient: Tensor) -> None:
        """Records a parameter's gradient before its accumulation, and checks that it is the one that the tap returned.

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
        expected = self._returned_gradients.get(backward_pass(), {}).get(key)
        is_own = expected is not None and expected == (gradient.data_ptr(), version(gradient))
        if not is_own and owner.active():
            self.check_not_replaced(type(owner).__name__)
            raise RuntimeError(
                f"layer '{self.name}': its {key} is also used outside the layer's own forward pass (tied weights, a "
                "penalty in the loss, a functional call, a forward pass inside paused() without its backward pass), "
                "which a proximal update cannot include; use the optimizer's weight_decay for a penalty, or leave the "
                f"layer to the fallback with explicit=['{self.name}']."
            )
        self.displacements.before_accumulation(key, parameter, None if is_own else PAUSED)


_PARALLEL_PASSES = 64  # largest number of backward passes that may run at once, in different threads


def tap_of(module: nn.Module) -> Tap | None:
    """The tap that computes the module's forward pass; None if it is not tapped."""
    return vars(type(module)).get("_tap")


def _tapped(kind: type[nn.Module], tap: Tap) -> type[nn.Module]:
    """A subclass of `kind` with its name, whose `forward` calls the tap. Copies of its modules have class `kind`."""

    def forward(self: nn.Module, input: Tensor) -> Tensor:
        return tap.forward(self, input)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        _, _, *state = object.__reduce_ex__(self, protocol)
        return object.__new__, (kind,), *state

    def prepare_scriptable(self: nn.Module) -> nn.Module:
        tap.refuse_script()
        return self

    members = {"_tap": tap, "_untapped": kind, "forward": forward, "__reduce_ex__": reduce, "__doc__": kind.__doc__}
    members["__prepare_scriptable__"] = prepare_scriptable  # torch.jit.script calls it first
    return type(kind.__name__, (kind,), {**members, "__module__": kind.__module__, "__qualname__": kind.__qualname__})


def _move_first(hook: int, parameter: nn.Parameter) -> None:
    """Makes a parameter's hook, given by its id, run before those of the user, which may change the gradient."""
    hooks = parameter._backward_hooks or {}  # torch has no public list of them
    for key in [key for key in hooks if key != hook]:
        hooks[key] = hooks.pop(key)


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
            this.displacements.after_accumulation(key, parameter.grad)

    return hook
