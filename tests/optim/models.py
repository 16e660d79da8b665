"""Small models of every kind, and equivalents of plain linear layers."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class UnfoldedConv(nn.Module):
    """A convolution followed by ReLU, written out: one `nn.Linear` per group, on explicitly extracted patches."""

    def __init__(self, conv: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self.dims = len(conv.kernel_size)
        self.kernel, self.stride, self.dilation = conv.kernel_size, conv.stride, conv.dilation
        self.pad = tuple(conv._reversed_padding_repeated_twice)
        self.mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        n, m = conv.weight[0].numel(), conv.out_channels // conv.groups
        self.linears = nn.ModuleList(
            nn.Linear(n, m, bias=conv.bias is not None, dtype=conv.weight.dtype) for _ in range(conv.groups)
        )
        with torch.no_grad():
            for g, linear in enumerate(self.linears):
                linear.weight.copy_(conv.weight[g * m : (g + 1) * m].flatten(1))
                if conv.bias is not None:
                    linear.bias.copy_(conv.bias[g * m : (g + 1) * m])

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, self.pad, mode=self.mode)
        for i in range(self.dims):
            # unfold extracts windows of the dilated kernel's extent; every dilation-th entry belongs to the kernel.
            reach = self.dilation[i] * (self.kernel[i] - 1) + 1
            x = x.unfold(2 + i, reach, self.stride[i])[..., :: self.dilation[i]]
        positions = x.shape[2 : 2 + self.dims]
        outputs = []
        for part, linear in zip(x.chunk(len(self.linears), 1), self.linears, strict=True):
            patches = part.movedim(1, 1 + self.dims).flatten(1 + self.dims)  # (B, *positions, channels * kernel)
            outputs.append(linear(patches).relu().movedim(-1, 1))
        return torch.cat(outputs, 1).reshape(x.shape[0], -1, *positions)


@dataclass(frozen=True)
class ConvCase:
    """A convolution, and the shape of an input."""

    name: str
    make: Callable[[], nn.Conv1d | nn.Conv2d]
    shape: tuple[int, ...]


def conv_cases() -> list[ConvCase]:
    f64 = torch.float64
    rows = [
        ("conv2d", lambda: nn.Conv2d(2, 3, 3, dtype=f64), (4, 2, 6, 5)),
        ("no bias", lambda: nn.Conv2d(2, 3, 3, bias=False, dtype=f64), (4, 2, 6, 5)),
        ("stride", lambda: nn.Conv2d(2, 3, (3, 2), stride=(2, 3), dtype=f64), (3, 2, 8, 9)),
        ("padding", lambda: nn.Conv2d(2, 4, 3, padding=(2, 1), dtype=f64), (3, 2, 5, 4)),
        ("dilation", lambda: nn.Conv2d(1, 3, 3, dilation=(2, 1), padding=1, dtype=f64), (3, 1, 7, 6)),
        ("all at once", lambda: nn.Conv2d(2, 3, (2, 3), (2, 1), (1, 2), (1, 2), dtype=f64), (3, 2, 8, 7)),
        ("groups", lambda: nn.Conv2d(4, 6, 3, groups=2, padding=1, dtype=f64), (3, 4, 5, 5)),
        ("depthwise", lambda: nn.Conv2d(3, 6, 3, groups=3, padding=1, dtype=f64), (3, 3, 5, 4)),
        ("same", lambda: nn.Conv2d(2, 3, (5, 3), padding="same", dilation=(1, 2), dtype=f64), (3, 2, 5, 4)),
        ("reflect", lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect", dtype=f64), (3, 2, 5, 4)),
        ("circular", lambda: nn.Conv2d(2, 3, 3, padding=(1, 2), padding_mode="circular", dtype=f64), (3, 2, 5, 4)),
        ("one position, n > N", lambda: nn.Conv2d(3, 4, 4, dtype=f64), (5, 3, 4, 4)),
        ("conv1d", lambda: nn.Conv1d(2, 3, 3, dtype=f64), (4, 2, 7)),
        ("conv1d all at once", lambda: nn.Conv1d(4, 6, 3, 2, 2, 2, groups=2, dtype=f64), (3, 4, 11)),
        ("conv1d same", lambda: nn.Conv1d(2, 3, 2, padding="same", dilation=2, dtype=f64), (3, 2, 7)),
        ("conv1d replicate", lambda: nn.Conv1d(2, 3, 3, padding=1, padding_mode="replicate", dtype=f64), (3, 2, 7)),
    ]  # fmt: skip
    return [ConvCase(*row) for row in rows]
