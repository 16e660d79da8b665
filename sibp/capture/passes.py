"""Forward passes as objects: which layers ran in one call of the model, and on how many samples."""

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sibp.capture.shared import SharedInput
from sibp.internals import as_plain_tensors, backward_pass, tree_leaves

_PLAIN = (Tensor, int, float, complex, str, bytes, type(None))  # results that contain no other tensor


class RandomState:
    """The state of torch's random number generators at its creation, for the CPU and all CUDA devices."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []

    def restore(self, devices: Iterable[int]) -> None:
        """Sets the generators of the CPU and of these CUDA devices to the recorded state."""
        torch.set_rng_state(self._cpu)
        for device in devices:
            if device < len(self._cuda):
                torch.cuda.set_rng_state(self._cuda[device], device)


class ForwardPass:
    """One outermost call of the model, or of a part of it.

    The layers' graph nodes reference it, so it lives as long as its outputs can be differentiated.

    Attributes:
        batch: number of samples: the leading dimension at the first tapped layer that ran; None before. If that layer
            ran without gradients, the value is replaced by that of the first layer that runs with gradients on an
            input that needs none.
        counted_layer: name of the layer that `batch` comes from.
        inputs: the leading dimensions of the tensors given to the outermost call; empty if a layer is called alone.
        layers: names of the tapped layers in the order in which they ran.
        outputs: names of the layers whose output reaches the result of the call through no other tapped layer.
        incomplete: whether `outputs` may lack layers, because results are in an object of an unknown class or were
            stored elsewhere.
        inner: if `incomplete`, names of the layers whose output has reached a tapped layer in a backward pass.
        differentiable: whether gradients were enabled at the call.
        recomputes: whether it runs inside a backward pass, as activation checkpoints do.
        original: the pass that it recomputes; None if it recomputes none, or until the pass is known.
        random_state: torch's random state at the start of the call, if the opener keeps it; None otherwise.
        opener: the `Passes` object that created it.
    """

    def __init__(self, opener: "Passes | None" = None, given: Sequence[Any] = ()) -> None:
        self.opener = opener
        self.batch: int | None = None
        self.counted_layer = ""
        tensors = (leaf for leaf in given if isinstance(leaf, Tensor) and not leaf.is_nested)
        self.inputs = {leaf.shape[0] for leaf in tensors if leaf.dim() > 0}
        self._preliminary = True  # whether `batch` comes from a layer that ran without gradients
        self.layers: list[str] = []
        self.outputs: set[str] = set()
        self.incomplete = False
        self.inner: set[str] = set()
        self.differentiable = torch.is_grad_enabled()
        self.recomputes = backward_pass() != -1
        self.original: ForwardPass | None = None
        kept = opener is not None and opener.keeps_random_state and self.differentiable and not self.recomputes
        self.random_state = RandomState() if kept else None
        self._inputs: dict[int, SharedInput] = {}  # by identity

    def input(self, x: Tensor) -> SharedInput:
        """The record of the tensor x, shared by all layers of this pass that are called with it."""
        known = self._inputs.get(id(x))
        if known is None or not known.matches(x):  # another tensor may have the same address by now
            known = self._inputs[id(x)] = SharedInput(x)
        known.calls += 1
        return known

    def enter(self, layer: str, batch: int, *, recorded: bool, from_data: bool) -> None:
        """Records that a layer runs.

        Args:
            layer: the layer's name.
            batch: leading dimension of its input.
            recorded: whether gradients are enabled. If not, this may be the first run of an activation checkpoint, or
                a run that is never differentiated, such as a teacher's on other samples.
            from_data: whether its input needs no gradient, so that it does not come from a checkpoint.
        """
        if self.batch is None or (self._preliminary and recorded and from_data):
            self.batch, self.counted_layer = batch, layer
        self._preliminary &= not recorded
        self.layers.append(layer)

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the layers that ran first and last."""
        return self.layers[0], self.layers[-1]

    def is_output(self, layer: str, node: Any) -> bool:
        """Whether the layer is one of `outputs`; if these are unknown, as in a checkpoint, whether it ran last.

        Args:
            layer: the layer. Its backward call is running, and those of all layers after it have ended.
            node: the call's graph node.
        """
        if self.incomplete and self.opener is not None and node.call.recomputed_in == -1:
            self.inner |= self.opener.layers_before(node)
            return layer not in self.inner
        return layer in self.outputs if self.outputs else layer == self.ends[1]


class Passes:
    """Opens a pass at the outermost call of a module that contains tapped layers, and closes it when that call ends.

    A call whose input comes directly from an earlier pass continues that pass: for example, a head that is called after
    its body, or the layers of a model whose `forward` was called directly. Each thread has its own passes.

    Args:
        keeps_random_state: whether passes record torch's random state.
    """

    def __init__(self, *, keeps_random_state: bool = False) -> None:
        self.keeps_random_state = keeps_random_state
        self._local = threading.local()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._inside: dict[int, set[int]] = {}  # by identity of a watched module: the modules inside it

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """Registers hooks on modules, once each.

        Args:
            modules: the modules that contain tapped layers.
        """
        for module in modules:
            inside = {id(inner) for inner in module.modules()} - {id(module)}
            if id(module) in self._inside:
                self._inside[id(module)] |= inside
            else:
                self._inside[id(module)] = inside
                hooks = _PassHooks(self, module)
                self._hooks.append(module.register_forward_pre_hook(hooks.enter, prepend=True, with_kwargs=True))
                self._hooks.append(module.register_forward_hook(hooks.leave, always_call=True))

    def remove(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._inside.clear()

    def of_layer(self, x: Tensor, layer: str) -> ForwardPass:
        """The pass in which a tapped layer is called with the input x; a new one if the layer is called alone."""
        calls = self._calls
        if calls:
            return calls[-1][1]
        nodes = _nodes((x,))
        forward_pass = self._find_pass(nodes) or ForwardPass(self)
        forward_pass.outputs -= self._layer_names(_walk(nodes, self._is_tapped))
        forward_pass.outputs.add(layer)
        return forward_pass

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """Records that a module is called; opens a pass if this is the outermost call."""
        calls, this = self._calls, id(module)
        # Recorded calls that cannot contain this one were interrupted.
        outermost = not calls or this not in self._inside[calls[0][0]]
        if outermost:
            calls.clear()
        given = _leaves(inputs) if outermost else ()
        forward_pass = (self._find_pass(_nodes(given)) or ForwardPass(self, given)) if outermost else calls[-1][1]
        calls.append((this, forward_pass))

    def leave(self, module: nn.Module, outputs: Any) -> None:
        """Records that a call has returned or raised; closes the pass if it was the outermost call."""
        calls, this = self._calls, id(module)
        if all(running != this for running, _ in calls):
            return  # another pre-hook raised before the call was recorded
        running, forward_pass = calls.pop()
        while running != this:
            running, forward_pass = calls.pop()
        if not calls:
            self._attach(forward_pass, _leaves(outputs))

    def forget(self) -> None:
        """Forgets the calls recorded in this thread: torch does not report the end of a call that was interrupted."""
        self._calls.clear()

    @property
    def _calls(self) -> list[tuple[int, ForwardPass]]:
        """The calls running in this thread, outermost first: (identity of the module, pass)."""
        calls = getattr(self._local, "calls", None)
        if calls is None:
            calls = self._local.calls = []
        return calls

    def layers_before(self, node: Any) -> set[str]:
        """Names of the tapped layers whose output reaches a graph node through no other tapped layer."""
        return self._layer_names(_walk(_inputs([node]), self._is_tapped))

    def _attach(self, forward_pass: ForwardPass, outputs: Sequence[Any]) -> None:
        """Stores a pass in the graph of its outputs, which keeps it alive even if all its layers are checkpointed."""
        if forward_pass.layers and forward_pass.differentiable:
            nodes = _nodes(outputs)
            forward_pass.incomplete |= not all(isinstance(leaf, _PLAIN) for leaf in outputs) or not any(
                isinstance(leaf, Tensor) for leaf in outputs
            )
            for node in nodes:
                _metadata(node)[self] = forward_pass
            last = list(_walk(nodes, self._is_tapped))
            forward_pass.outputs |= self._layer_names(last)
            if len(forward_pass.outputs) > 1:  # an output may also be an input of another one
                inputs = _inputs(node for node in last if self._is_tapped(node))
                forward_pass.outputs -= self._layer_names(_walk(inputs))

    def _find_pass(self, nodes: Iterable[Any]) -> ForwardPass | None:
        """The pass that these graph nodes, or else their nearest ancestors, belong to; None if there is none."""
        return next((known for known in map(self._of_node, _walk(nodes)) if known is not None), None)

    def _layer_names(self, nodes: Iterable[Any]) -> set[str]:
        """Names of the tapped layers among graph nodes."""
        return {node.call.tap.name for node in nodes if self._is_tapped(node)}

    def _is_tapped(self, node: Any) -> bool:
        """Whether a graph node is that of a layer tapped for this object."""
        forward_pass = getattr(node, "forward_pass", None)
        return isinstance(forward_pass, ForwardPass) and forward_pass.opener is self

    def _of_node(self, node: Any) -> ForwardPass | None:
        """The pass of a graph node, if it is that of a tapped layer or of an output; otherwise None."""
        return node.forward_pass if self._is_tapped(node) else _metadata(node).get(self)


def _nodes(values: Iterable[Any]) -> list[Any]:
    """The graph nodes of those values that have one."""
    with as_plain_tensors():  # a marked output (`PreActivation`) stays marked
        return [node for node in (value.grad_fn for value in values if isinstance(value, Tensor)) if node is not None]


def _inputs(nodes: Iterable[Any]) -> list[Any]:
    """The nodes that computed the inputs of these nodes."""
    return [above for node in nodes for above, _ in node.next_functions if above is not None]


def _walk(nodes: Iterable[Any], ends: Callable[[Any], bool] = lambda _: False) -> Iterator[Any]:
    """Walks the graph backward from these nodes, breadth first, each node once; stops where `ends` holds."""
    seen = dict.fromkeys(nodes)
    waiting = deque(seen)
    while waiting:
        node = waiting.popleft()
        yield node
        further = {} if ends(node) else dict.fromkeys(above for above in _inputs([node]) if above not in seen)
        seen |= further
        waiting.extend(further)


def _leaves(tree: Any) -> Sequence[Any]:
    """The leaves of a tree, usually a single tensor."""
    return (tree,) if isinstance(tree, Tensor) else tree_leaves(tree)


def _metadata(node: Any) -> dict[Any, Any]:
    """The metadata dict of a graph node; torch's type stubs wrongly declare it as a method."""
    return node.metadata


def _refuse_compiler(module: nn.Module) -> None:
    """Raises RuntimeError while torch.compile traces; it then runs the module eagerly, or fails if fullgraph=True."""
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"{type(module).__name__} has layers tapped by a sibp optimizer and cannot be compiled or exported: "
            "compile or export copy.deepcopy(model), which has no taps, or train the uncompiled model."
        )


class UnrecordedPasses:
    """Passes in which a layer ran without gradients although they were enabled at the model's call; the latest is last.

    Reentrant activation checkpoints run a layer in this way, and run it again in the backward pass.
    """

    def __init__(self) -> None:
        self._passes: list[weakref.ref[ForwardPass]] = []

    def add(self, forward_pass: ForwardPass) -> None:
        """Adds a pass, by a weak reference."""
        self._passes = [known for known in self._passes if known() is not None]
        self._passes.append(weakref.ref(forward_pass))

    def pop_latest(self) -> ForwardPass | None:
        """Removes and returns the latest pass that still exists; None if there is none."""
        while self._passes:
            latest = self._passes.pop()()
            if latest is not None:
                return latest
        return None


class _PassHooks:
    """The forward hooks of one module. In a copy of the module they do nothing."""

    def __init__(self, passes: Passes | None = None, module: nn.Module | None = None) -> None:
        self.passes = weakref.ref(passes) if passes is not None else lambda: None
        self.module = weakref.ref(module) if module is not None else lambda: None

    def enter(self, module: nn.Module, inputs: Any, keywords: Any) -> None:
        """The pre-hook of the module's forward."""
        passes = self.passes()
        if passes is not None and module is self.module():
            _refuse_compiler(module)
            passes.enter(module, inputs[0] if len(inputs) == 1 and not keywords else (inputs, keywords))

    def leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """The hook after the module's forward, whether it returned or raised."""
        del inputs
        passes = self.passes()
        if passes is not None and module is self.module():
            _refuse_compiler(module)
            passes.leave(module, outputs)

    def __deepcopy__(self, memo: Any) -> "_PassHooks":
        return _PassHooks()

    def __reduce__(self) -> tuple[Any, ...]:
        return _PassHooks, ()
