"""Forward passes as objects: the layers that ran together, and their number of samples."""

import itertools
import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sibp.capture.shared import SharedInput
from sibp.internals import as_plain_tensors, backward_pass, tree_leaves

_REACH = 64  # graph nodes above an input that are searched for the pass that computed it


class ForwardPass:
    """One call of the model, or of a part of it, from outside.

    Its layers pass it to their backward calls in autograd's context, so it lives as long as its outputs can be
    differentiated.

    Attributes:
        batch: number of samples, the leading dimension at the first tapped layer that ran; None before. A layer that
            ran without gradients counts only until one starts from data with gradients enabled.
        layers: names of the tapped layers in the order in which they ran.
        outputs: names of those whose output reaches the result of the call through no other tapped layer.
        differentiable: whether gradients were enabled at the call.
        recomputes: whether it runs inside a backward pass, as activation checkpoints do.
        original: the pass that it recomputes, once known.
        opener: the module whose call opened it.
    """

    def __init__(self, opener: "Passes | None" = None) -> None:
        self.opener = opener
        self.batch: int | None = None
        self._preliminary = True  # whether `batch` comes from a layer that ran without gradients
        self.layers: list[str] = []
        self.outputs: set[str] = set()
        self.differentiable = torch.is_grad_enabled()
        self.recomputes = backward_pass() != -1
        self.original: ForwardPass | None = None
        self._inputs: dict[int, SharedInput] = {}  # by identity

    def input(self, x: Tensor) -> SharedInput:
        """The record shared by the layers of this pass that are called with this same tensor."""
        known = self._inputs.get(id(x))
        if known is None or not known.of(x):  # another tensor may have the same address by now
            known = self._inputs[id(x)] = SharedInput(x)
        known.layers += 1
        return known

    def enter(self, layer: str, batch: int, *, recorded: bool, from_data: bool) -> None:
        """Records that a layer runs.

        Args:
            layer: its name.
            batch: leading dimension of its input.
            recorded: whether gradients are enabled. If not, it may be the first run of an activation checkpoint, or
                something that is never differentiated (a teacher on other samples).
            from_data: whether its input needs no gradient, so that it does not follow a checkpoint.
        """
        if self.batch is None or (self._preliminary and recorded and from_data):
            self.batch = batch
        self._preliminary &= not recorded
        self.layers.append(layer)

    @property
    def ends(self) -> tuple[str, str]:
        """Names of the layers that ran first and last."""
        return self.layers[0], self.layers[-1]

    def is_output(self, layer: str) -> bool:
        """Whether it is one of the outputs; if none is known, as in a checkpoint, whether it ran last."""
        return layer in self.outputs if self.outputs else layer == self.ends[1]


class Passes:
    """Opens a pass when a module that contains tapped layers is called from outside, and closes it with that call.

    A call whose input comes directly from an earlier pass (a head after its body, a model whose `forward` was called
    directly) continues that pass. Each thread has its own passes.
    """

    def __init__(self) -> None:
        self._local = threading.local()
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []
        self._watched: set[int] = set()

    def watch(self, modules: Iterable[nn.Module]) -> None:
        """Registers hooks on modules, once each.

        Args:
            modules: those that contain tapped layers.
        """
        for module in modules:
            if id(module) not in self._watched:
                self._watched.add(id(module))
                gate = _Gate(self, module)
                self._hooks.append(module.register_forward_pre_hook(gate.enter, prepend=True, with_kwargs=True))
                self._hooks.append(module.register_forward_hook(gate.leave, always_call=True))

    def remove(self) -> None:
        """Removes the hooks."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        self._watched.clear()

    def of_layer(self, x: Tensor, layer: str) -> ForwardPass:
        """The pass in which a tapped layer is called with the input x; a new one if the layer is called alone."""
        calls = self._calls
        if calls:
            return calls[-1][1]
        nodes = _nodes((x,))
        one = self._came_from(nodes) or ForwardPass(self)
        one.outputs -= self._names(_walk(nodes, self._is_tapped))
        one.outputs.add(layer)
        return one

    def enter(self, module: nn.Module, inputs: Any) -> None:
        """A module is called: opens a pass if this is the outermost call."""
        calls, this = self._calls, id(module)
        outermost = not calls or calls[0][0] == this  # already running only if its last call was interrupted
        one = (self._came_from(_nodes(_leaves(inputs))) or ForwardPass(self)) if outermost else calls[-1][1]
        calls.append((this, one))

    def leave(self, module: nn.Module, outputs: Any) -> None:
        """The call ended, or raised: closes the pass if it was the outermost call."""
        calls, this = self._calls, id(module)
        if all(running != this for running, _ in calls):
            return  # it raised before it was recorded
        running, one = calls.pop()
        while running != this:
            running, one = calls.pop()
        if not calls:
            self._attach(one, _leaves(outputs))

    def forget(self) -> None:
        """Forgets the calls running in this thread: torch reports no end of one that Ctrl-C interrupted."""
        self._calls.clear()

    @property
    def _calls(self) -> list[tuple[int, ForwardPass]]:
        """The calls running in this thread, outermost first: modules by identity, with their passes."""
        calls = getattr(self._local, "calls", None)
        if calls is None:
            calls = self._local.calls = []
        return calls

    def _attach(self, one: ForwardPass, outputs: Iterable[Any]) -> None:
        """Ties a pass to the graph of its outputs, which keeps it alive even if all its layers are checkpointed."""
        if one.layers and one.differentiable:
            nodes = _nodes(outputs)
            for node in nodes:
                _metadata(node)[self] = one
            last = list(_walk(nodes, self._is_tapped))
            one.outputs |= self._names(last)
            if len(one.outputs) > 1:  # one of them may also be an input of another
                behind = _inputs(node for node in last if self._is_tapped(node))
                one.outputs -= self._names(_walk(behind))

    def _came_from(self, nodes: Iterable[Any]) -> ForwardPass | None:
        """The pass that one of these graph nodes belongs to, or one nearby behind them."""
        nearby = itertools.islice(_walk(nodes), _REACH)
        return next((known for known in map(self._of_node, nearby) if known is not None), None)

    def _names(self, nodes: Iterable[Any]) -> set[str]:
        """Names of the tapped layers among graph nodes."""
        return {node.call.tap.name for node in nodes if self._is_tapped(node)}

    def _is_tapped(self, node: Any) -> bool:
        """Whether it is a tapped layer's node."""
        own = getattr(node, "forward_pass", None)
        return isinstance(own, ForwardPass) and own.opener is self

    def _of_node(self, node: Any) -> ForwardPass | None:
        """The pass of a tapped layer's node, or of an output's."""
        return node.forward_pass if self._is_tapped(node) else _metadata(node).get(self)


def _nodes(values: Iterable[Any]) -> list[Any]:
    """The graph nodes of those values that have one."""
    with as_plain_tensors():  # a marked output (`PreActivation`) stays marked
        return [node for node in (value.grad_fn for value in values if isinstance(value, Tensor)) if node is not None]


def _inputs(nodes: Iterable[Any]) -> list[Any]:
    """The nodes that computed the inputs of these."""
    return [above for node in nodes for above, _ in node.next_functions if above is not None]


def _walk(nodes: Iterable[Any], ends: Callable[[Any], bool] = lambda _: False) -> Iterator[Any]:
    """These graph nodes and those behind them, each once, nearest first; nothing behind a node that `ends`."""
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
    """The metadata dict of a graph node (a property, which torch's stubs declare as a method)."""
    return node.metadata


def _refuse_compiler(module: nn.Module) -> None:
    """Raises inside torch.compile's tracing, which then falls back to eager or, with fullgraph=True, reports it."""
    if torch.compiler.is_compiling():
        raise RuntimeError(
            f"{type(module).__name__} has layers tapped by a sibp optimizer and cannot be compiled: "
            "give torch.compile a model without one, or train the uncompiled one."
        )


class Unrecorded:
    """Passes in which a layer ran without gradients although they were enabled at the model's call, latest last.

    Reentrant activation checkpoints do this, and rerun the layer in the backward pass.
    """

    def __init__(self) -> None:
        self._passes: list[weakref.ref[ForwardPass]] = []

    def add(self, one: ForwardPass) -> None:
        """Remembers a pass while it can be differentiated."""
        self._passes = [known for known in self._passes if known() is not None]
        self._passes.append(weakref.ref(one))

    def take(self) -> ForwardPass | None:
        """Pops the latest pass."""
        while self._passes:
            latest = self._passes.pop()()
            if latest is not None:
                return latest
        return None


class _Gate:
    """The hooks of one module; a copied module's do nothing."""

    def __init__(self, passes: Passes | None = None, module: nn.Module | None = None) -> None:
        self.passes = weakref.ref(passes) if passes is not None else lambda: None
        self.module = weakref.ref(module) if module is not None else lambda: None

    def enter(self, module: nn.Module, inputs: Any, keywords: Any) -> None:
        """Before the module's forward."""
        passes = self.passes()
        if passes is not None and module is self.module():
            _refuse_compiler(module)
            passes.enter(module, inputs[0] if len(inputs) == 1 and not keywords else (inputs, keywords))

    def leave(self, module: nn.Module, inputs: Any, outputs: Any) -> None:
        """After it, whether it returned or raised."""
        del inputs
        passes = self.passes()
        if passes is not None and module is self.module():
            _refuse_compiler(module)
            passes.leave(module, outputs)

    def __deepcopy__(self, memo: Any) -> "_Gate":
        return _Gate()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Gate, ()
