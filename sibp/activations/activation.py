"""An activation as a subproblem needs it: value, slope, and the tensors that it depends on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Elementwise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Activation:
    """An elementwise function s.

    Attributes:
        name: for users.
        value: s, any shape.
        slope: s', same shape; at a kink the value that autograd uses, so ReLU's is [z > 0] strictly, as in the paper's
            code.
        negative_slope: a, if s(z) is z for z > 0 and a z otherwise, which compiled code needs; None for any other.
        through: maps (D, z) to D * s'(z), if that is possible in one pass.
        learned: the tensors that s depends on, such as the slopes of PReLU, if any.
        kernel: its name in `sibp.prox.kernels.KINDS`, if it has compiled code that `negative_slope` does not determine.
    """

    name: str
    value: Elementwise
    slope: Elementwise
    negative_slope: float | None = None
    through: Callable[[Tensor, Tensor], Tensor] | None = None
    learned: "Learned | None" = None
    kernel: str = ""

    @property
    def by_entry(self) -> bool:
        """Whether it differs from entry to entry of z."""
        return self.learned is not None and any(t.numel() > 1 for t in self.learned.tensors)

    def backward(self, D: Tensor, z: Tensor) -> Tensor:
        """D * s'(z): the error signal on z from that on s(z); all of one shape."""
        return self.through(D, z) if self.through is not None else D * self.slope(z)

    def rearranged(self, shape: torch.Size, layout: Elementwise) -> "Activation":
        """The same function for a Z with its entries in another order.

        Args:
            shape: of z in the model's order.
            layout: maps a tensor of that shape to the other order.
        """
        if self.learned is None:
            return self
        tensors = (t if t.numel() == 1 else layout(t.expand(shape)) for t in self.learned.tensors)
        return self.learned.rebuild(*tensors)

    def detached(self) -> "Activation":
        """The same, with learned tensors detached from the graph."""
        if self.learned is None:
            return self
        return self.learned.rebuild(*(t.detach() for t in self.learned.tensors))

    def learned_gradients(self, D: Tensor, z: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of sum(D * s(z)) for the learned tensors, each in its tensor's shape; None where not needed."""
        if self.learned is None or not any(wanted):
            return [None] * len(wanted)
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_(want) for t, want in zip(self.learned.tensors, wanted, strict=True)]
            a = self.learned.rebuild(*tensors).value(z.detach())
        found = iter(torch.autograd.grad(a, [t for t in tensors if t.requires_grad], D))
        return [next(found) if want else None for want in wanted]


@dataclass(frozen=True)
class Learned:
    """Tensors that an activation depends on; constants in a subproblem.

    Attributes:
        tensors: each broadcasts to z's shape.
        rebuild: creates the activation with other tensors instead.
    """

    tensors: tuple[Tensor, ...]
    rebuild: Callable[..., Activation]


def slope_by_autograd(value: Elementwise) -> Elementwise:
    """The derivative of an elementwise function, by autograd."""

    def slope(z: Tensor) -> Tensor:
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            a = value(point)
        return torch.autograd.grad(a, point, torch.ones_like(a))[0]

    return slope
