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
        name: the name that tables and messages show.
        value: s; maps z of any shape to s(z) of the same shape.
        slope: s'; maps z to s'(z) of the same shape. At a kink it is the value that autograd uses: ReLU's slope at 0
            is 0, as in the paper's code.
        negative_slope: a, if s(z) is z for z > 0 and a z otherwise; None for any other function. It selects compiled
            code.
        fused_backward: maps (D, z) to D * s'(z) in one pass over memory; None if torch has no such function.
        learned: the tensors that s depends on, such as the slopes of PReLU; None if there are none.
        kernel: the name of its compiled code in `sibp.prox.kernels.KINDS`; empty if there is none, or if
            `negative_slope` determines it.
    """

    name: str
    value: Elementwise
    slope: Elementwise
    negative_slope: float | None = None
    fused_backward: Callable[[Tensor, Tensor], Tensor] | None = None
    learned: "Learned | None" = None
    kernel: str = ""

    @property
    def varies_by_entry(self) -> bool:
        """Whether the function differs between the entries of z, as PReLU's with one slope per channel."""
        return self.learned is not None and any(t.numel() > 1 for t in self.learned.tensors)

    def backward(self, D: Tensor, z: Tensor) -> Tensor:
        """D * s'(z): the error signal on z, from the error signal D on s(z); all have the same shape."""
        return self.fused_backward(D, z) if self.fused_backward is not None else D * self.slope(z)

    def rearranged(self, shape: torch.Size, layout: Elementwise) -> "Activation":
        """The same function for a z whose entries are stored in another order.

        Args:
            shape: the shape of z in the model's order.
            layout: maps a tensor of that shape to the other order.
        """
        if self.learned is None:
            return self
        tensors = (t if t.numel() == 1 else layout(t.expand(shape)) for t in self.learned.tensors)
        return self.learned.rebuild(*tensors)

    def detached(self) -> "Activation":
        """The same function, with its learned tensors detached from the graph."""
        if self.learned is None:
            return self
        return self.learned.rebuild(*(t.detach() for t in self.learned.tensors))

    def learned_gradients(self, D: Tensor, z: Tensor, wanted: Sequence[bool]) -> list[Tensor | None]:
        """The gradients of sum(D * s(z)) with respect to the learned tensors.

        Args:
            D: error signal on s(z), of z's shape.
            z: pre-activations, any shape.
            wanted: for each learned tensor, whether its gradient is needed.

        Returns:
            One gradient per learned tensor, of its shape; None where it is not needed.
        """
        if self.learned is None or not any(wanted):
            return [None] * len(wanted)
        with torch.enable_grad():
            tensors = [t.detach().requires_grad_(want) for t, want in zip(self.learned.tensors, wanted, strict=True)]
            a = self.learned.rebuild(*tensors).value(z.detach())
        found = iter(torch.autograd.grad(a, [t for t in tensors if t.requires_grad], D))
        return [next(found) if want else None for want in wanted]


@dataclass(frozen=True)
class Learned:
    """Tensors that an activation depends on; a subproblem treats them as constants.

    Attributes:
        tensors: each broadcasts to z's shape.
        rebuild: creates the same activation from other tensors, given in the same order.
    """

    tensors: tuple[Tensor, ...]
    rebuild: Callable[..., Activation]


def slope_by_autograd(value: Elementwise) -> Elementwise:
    """The derivative of an elementwise function, computed by autograd."""

    def slope(z: Tensor) -> Tensor:
        with torch.enable_grad():
            point = z.detach().requires_grad_()
            a = value(point)
        return torch.autograd.grad(a, point, torch.ones_like(a))[0]

    return slope
