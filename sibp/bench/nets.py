"""The nets that are measured, and their target ratios to SGD."""

import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sibp.bench.architectures import resnet18, transformer
from sibp.experiment.convnets import proxprop_convnet, resnet8
from sibp.experiment.models import ACTIVATIONS
from sibp.runs.errors import UserError

CONVNET = "proxprop_convnet"
_IMAGE, _CLASSES = (3, 32, 32), 10  # as on CIFAR-10


@dataclass(frozen=True)
class Named:
    """A net with a name.

    Attributes:
        build: makes it, for an activation.
        shape: of one input.
        batch: default batch size.
        activation: default activation; "" for a net whose activation is fixed.
    """

    build: Callable[[str], nn.Sequential]
    shape: tuple[int, ...]
    batch: int
    activation: str = ""


NAMED = {
    CONVNET: Named(lambda _: proxprop_convnet(_IMAGE, _CLASSES), _IMAGE, 500),
    "resnet8": Named(lambda _: resnet8(_IMAGE, _CLASSES), _IMAGE, 128),
    "transformer_block": Named(lambda s: transformer(1, 256, 4, _CLASSES, s), (64, 256), 16, "gelu"),
    "resnet18": Named(lambda _: resnet18(_IMAGE[0], _CLASSES), _IMAGE, 512),
    "transformer_6": Named(lambda s: transformer(6, 512, 8, _CLASSES, s), (256, 512), 32, "gelu"),
}
"""Nets that are not described by widths; the last two are for GPUs."""


@dataclass(frozen=True)
class Case:
    """A net and its batch size.

    Attributes:
        net: widths joined by dashes, such as ``784-500-10``, or a name from `NAMED`.
        batch: B.
        activation: between the layers of an MLP, or inside the blocks of a transformer; "" for the net's own, which is
            ReLU for widths.
    """

    net: str
    batch: int
    activation: str = ""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Case":
        """The case of an entry of a record; early entries have no activation."""
        return cls(record["net"], record["batch"], record.get("activation", ""))

    @property
    def title(self) -> str:
        """The label and the batch size, for headings."""
        return f"{self.label}, batch {self.batch}"

    @property
    def label(self) -> str:
        """The net, and its activation unless it is the default."""
        return f"{self.net} {self.activation}" if self.activation else self.net

    @property
    def widths(self) -> list[int]:
        """Widths of the inputs and of each layer; empty for a net with a name."""
        return [] if self.net in NAMED else [int(width) for width in self.net.split("-")]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input."""
        return NAMED[self.net].shape if self.net in NAMED else (self.widths[0],)

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return _CLASSES if self.net in NAMED else self.widths[-1]

    def model(self) -> nn.Sequential:
        """The net with torch's default initialisation, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.net in NAMED:
                named = NAMED[self.net]
                return named.build(self.activation or named.activation)
            layers: list[nn.Module] = []
            for n, m in itertools.pairwise(self.widths):
                layers += [nn.Linear(n, m), ACTIVATIONS[self.activation or "relu"]()]
            return nn.Sequential(*layers[:-1])


_SMOOTH = {Case("784-500-500-10", 100, activation): {"cg:3": 2.1} for activation in ("tanh", "gelu", "silu")}
TARGETS: dict[Case, dict[str, float]] = {
    Case("784-500-10", 100): {"exact": 1.35, "cg:3": 1.65},
    Case("784-500-500-500-10", 100): {"exact": 1.35, "cg:3": 1.7},
    Case("3072-2000-500-10", 100): {"exact": 1.1, "cg:3": 1.2},
    Case("3072-2000-500-10", 500): {"exact": 1.3, "cg:3": 1.6},
    **_SMOOTH,
    Case(CONVNET, 500): {"exact": 1.5, "cg:3": 2.8},
    Case("resnet8", 128): {"exact": 1.5, "cg:3": 1.8},
    Case("transformer_block", 16): {"exact": 1.7, "cg:3": 2.5},
}
"""Largest ratio of a step's processor time to that of SGD's step, in float32 on a CPU."""


def choose_cases(nets: Sequence[str], batches: Sequence[int], activations: Sequence[str] = ()) -> list[Case]:
    """The cases of a command line.

    Args:
        nets: names; default those of `TARGETS`.
        batches: sizes, each with every net; default those of `TARGETS`, or the net's own: 100 for widths.
        activations: each with every net; default the net's own. Without `nets`, nets of `TARGETS` with a fixed
            activation are left out.

    Raises:
        UserError: an invalid net, batch size or activation.
    """
    _check(nets, batches, activations)
    wanted: list[Case] = []
    for net in nets or [case.net for case in TARGETS if not activations or _takes_activations(case.net)]:
        known = [case for case in TARGETS if case.net == net]
        sizes = batches or [case.batch for case in known] or [_default_batch(net)]
        own = [""] if nets else [case.activation for case in known]
        names = [_activation_override(net, activation) for activation in activations] or own
        wanted += [Case(net, size, name) for size in sizes for name in names]
    return list(dict.fromkeys(wanted))


def _check(nets: Sequence[str], batches: Sequence[int], activations: Sequence[str]) -> None:
    for net in nets:
        if net not in NAMED and not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)+", net):
            raise UserError(f"--net {net} is not a net: give widths such as 784-500-10, or one of {', '.join(NAMED)}.")
        if activations and not _takes_activations(net):
            raise UserError(f"--activation {activations[0]} is not for --net {net}, which has its own: leave out one.")
    for batch in batches:
        if batch < 1:
            raise UserError(f"--batch {batch} is not a batch size: give 1 or more.")
    for activation in activations:
        if activation not in ACTIVATIONS:
            raise UserError(f"--activation {activation} is not known: choose from {', '.join(ACTIVATIONS)}.")


def _takes_activations(net: str) -> bool:
    return net not in NAMED or bool(NAMED[net].activation)


def _activation_override(net: str, activation: str) -> str:
    """An activation as stored in a `Case`: "" for the net's default."""
    return "" if activation == (NAMED[net].activation if net in NAMED else "relu") else activation


def _default_batch(net: str) -> int:
    return NAMED[net].batch if net in NAMED else 100
