"""The nets that are measured, and the ratios to SGD that they are to reach."""

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from sibp.experiment.convnets import proxprop_convnet
from sibp.runs.errors import UserError

CONVNET = "proxprop_convnet"
CONVNET_SHAPE, CONVNET_CLASSES = (3, 32, 32), 10  # as on CIFAR-10


@dataclass(frozen=True)
class Case:
    """A net and the batch size that it is trained with.

    Attributes:
        net: widths with dashes between them, ReLU between the layers, such as ``784-500-10``; or ``proxprop_convnet``.
        batch: B.
    """

    net: str
    batch: int

    @property
    def title(self) -> str:
        """For headings."""
        return f"{self.net}, batch {self.batch}"

    @property
    def widths(self) -> list[int]:
        """Of the inputs and of each layer; empty for the convolutional net."""
        return [] if self.net == CONVNET else [int(width) for width in self.net.split("-")]

    @property
    def shape(self) -> tuple[int, ...]:
        """One input's shape."""
        return CONVNET_SHAPE if self.net == CONVNET else (self.widths[0],)

    @property
    def classes(self) -> int:
        """Number of outputs."""
        return CONVNET_CLASSES if self.net == CONVNET else self.widths[-1]

    def model(self) -> nn.Sequential:
        """The net with torch's own initial weights, the same at every call."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            if self.net == CONVNET:
                return proxprop_convnet(self.shape, self.classes)
            layers: list[nn.Module] = []
            for n, m in itertools.pairwise(self.widths):
                layers += [nn.Linear(n, m), nn.ReLU()]
            return nn.Sequential(*layers[:-1])


TARGETS = {
    Case("784-500-10", 100): {"exact": 1.4, "cg:5": 2.0},
    Case("784-500-500-500-10", 100): {"exact": 1.4, "cg:5": 2.0},
    Case("3072-2000-500-10", 100): {"exact": 1.2, "cg:5": 1.4},
    Case("3072-2000-500-10", 500): {"exact": 1.4, "cg:5": 2.0},
    Case(CONVNET, 500): {"exact": 2.0, "cg:5": 3.0},
}
"""Largest ratio of a step's time to SGD's, in float32 with two threads of a CPU."""


def choose_cases(nets: Sequence[str], batches: Sequence[int]) -> list[Case]:
    """The cases that a command line asks for.

    Args:
        nets: names; none for those of `TARGETS`.
        batches: sizes, each with every net; none for those of `TARGETS`, or 100 for a net that is not among them.

    Raises:
        UserError: a net or a size that cannot be.
    """
    for net in nets:
        if net != CONVNET and not re.fullmatch(r"[1-9]\d*(-[1-9]\d*)+", net):
            raise UserError(f"--net {net} is no net: give widths such as 784-500-10, or {CONVNET}.")
    for batch in batches:
        if batch < 1:
            raise UserError(f"--batch {batch} is no batch size: give 1 or more.")
    known = list(TARGETS)
    chosen = list(dict.fromkeys(nets or [case.net for case in known]))
    if batches:
        return [Case(net, batch) for net in chosen for batch in batches]
    return [case for net in chosen for case in [c for c in known if c.net == net] or [Case(net, 100)]]
