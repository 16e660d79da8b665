"""All private names of torch that the package uses, each with the reason.

`tests/install/test_internals.py` finds names that the installed torch lacks, and private names used in other files.
"""

from operator import attrgetter

import torch
from torch._C._dynamo import eval_frame

# The tree functions that torch.func, vmap and export use; torch has no public names for them.
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
"""The number of the backward pass that runs in this thread, or -1. There is no public function for it."""

compiled_call = eval_frame.get_eval_frame_callback
"""The callback that traces the functions called now; None outside compiled functions. There is no public function."""

will_be_executed = _C._will_engine_execute_node
"""Whether the running backward pass will execute a node of the graph. There is no public function for it."""

is_tracing = _C._is_tracing
"""Whether `torch.jit.trace` runs; the public `torch.jit.is_tracing` wraps it and takes twice as long."""

are_transforms_active = _C._are_functorch_transforms_active
"""Whether a transform of `torch.func` runs. There is no public function for it."""

as_plain_tensors = _C.DisableTorchFunctionSubclass
"""A context in which tensors of a subclass act as plain tensors; torch's notes on extending it use this class."""

C_FUNCTIONS = _C._nn  # pyright: ignore[reportAttributeAccessIssue]
"""The C++ activations of `torch.nn.functional`, also in place; only some of them have public names."""

own_parameters = attrgetter("_parameters")
"""A module's own parameters by name, without the generator that `named_parameters` creates at every call."""

version = attrgetter("_version")
"""The number of in-place changes of a tensor; torch's notes on autograd use this name."""
