"""What of torch's private parts is used, all in one place and each with the reason: torch has no public name for it.

`tests/install/test_internals.py` finds what is missing in the installed torch, and what is used outside this file.
"""

from operator import attrgetter

import torch
from torch._C._dynamo import eval_frame

# The tree functions behind torch.func, vmap and export, which are public only through these.
from torch.utils._pytree import tree_leaves, tree_map_only

__all__ = [
    "C_FUNCTIONS",
    "are_transforms_active",
    "as_plain_tensors",
    "backward_pass",
    "compiled_call",
    "is_tracing",
    "own_parameters",
    "tree_leaves",
    "tree_map_only",
    "version",
    "will_be_executed",
]

_C = torch._C

backward_pass = _C._current_graph_task_id
"""The number of the backward pass that runs in this thread, -1 if none does: only the engine knows."""

compiled_call = eval_frame.get_eval_frame_callback
"""What traces the functions that are called now, None outside of what torch.compile has made."""

will_be_executed = _C._will_engine_execute_node
"""Whether the running backward pass computes what a node of the graph is for: only the engine knows."""

is_tracing = _C._is_tracing
"""Whether `torch.jit.trace` runs; `torch.jit.is_tracing` is a Python function around it, at twice the cost."""

are_transforms_active = _C._are_functorch_transforms_active
"""Whether a transform of `torch.func` runs: nothing public says so."""

as_plain_tensors = _C.DisableTorchFunctionSubclass
"""Inside, tensors of a subclass are plain ones: torch's notes on extending it name this class, and no public one."""

C_FUNCTIONS = _C._nn  # pyright: ignore[reportAttributeAccessIssue]
"""Holds the activations that `torch.nn.functional` takes from C++, in place too; it gives only some of them names."""

own_parameters = attrgetter("_parameters")
"""A module's own parameters by name; `named_parameters` makes a generator for every layer of every forward pass."""

version = attrgetter("_version")
"""How often a tensor was changed in place: torch's notes on autograd describe it, under this name alone."""
