"""Types of the keyword arguments that several methods share, for `**options`."""

from collections.abc import Iterable
from typing import Any, TypedDict

from torch import nn
from torch.distributed import ProcessGroup

from sibp.optim.fallback import MakeFallback

Explicit = Iterable[str | type[nn.Module]]
"""Modules that are left to the fallback: names, patterns of names ("blocks.*.norm"), or classes."""


class Options(TypedDict, total=False):
    """Keyword arguments that all proximal methods share.

    Attributes:
        params: parameters of the model, or param group dicts with settings of their own; default: all.
        fallback: creates an optimizer from a list of the parameters without a proximal subproblem; default: Adam with
            learning rate 1e-3.
        explicit: modules that are left to the fallback, with everything inside them: names as in
            `model.named_modules()`, patterns of names ("blocks.*.norm"), or classes.
        direction_only: True if the optimizer only fills `.grad` and another one takes the steps; `Preconditioned`
            combines both.
        data_parallel: True if every process of `torch.distributed` holds a part of the batch, and all take the step of
            the whole batch; a process group if only its processes do so. See docs/distributed.md.
    """

    params: Iterable[nn.Parameter] | Iterable[dict[str, Any]] | None
    fallback: MakeFallback | None
    explicit: Explicit
    direction_only: bool
    data_parallel: bool | ProcessGroup


class TargetOptions(TypedDict, total=False):
    """Keyword arguments that all peers share.

    Attributes:
        loss_average: whether the loss is a mean over the batch; see `SIBP`.
        params: parameters of the model, or param group dicts with settings of their own; default: all.
        weight_decay: w, decoupled: p is multiplied by 1 - lr w at each step.
    """

    loss_average: bool | int
    params: Iterable[nn.Parameter] | Iterable[dict[str, Any]] | None
    weight_decay: float


class PeerOptions(TargetOptions, total=False):
    """Keyword arguments of the peers that have a fallback optimizer, in addition to those of `TargetOptions`.

    Attributes:
        fallback: creates the optimizer of all parameters outside linear layers and convolutions; see `Options`.
        explicit: modules that are left to the fallback, with everything inside them; see `Options`.
    """

    fallback: MakeFallback | None
    explicit: Explicit
