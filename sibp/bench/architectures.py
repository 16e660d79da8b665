"""Nets for measurements only: transformers, and a residual network for GPUs."""

import torch.nn.functional as F
from torch import Tensor, nn

from sibp.experiment.convnets import ResidualBlock
from sibp.experiment.models import ACTIVATIONS


class Attention(nn.Module):
    """Self-attention with several heads (Vaswani et al. 2017); each projection is a separate linear layer."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, tokens, width) to the same shape."""
        projected = (layer(x) for layer in (self.query, self.key, self.value))
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in projected)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)): layer norm precedes each branch."""

    def __init__(self, width: int, heads: int, activation: str) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.activation = ACTIVATIONS[activation]()

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, tokens, width) to the same shape."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(self.activation(self.up(self.norm2(x))))


class MeanOverTokens(nn.Module):
    """Maps (B, tokens, width) to (B, width)."""

    def forward(self, x: Tensor) -> Tensor:
        """The mean over tokens."""
        return x.mean(1)


def transformer(blocks: int, width: int, heads: int, classes: int, activation: str) -> nn.Sequential:
    """Transformer blocks, the mean over tokens, a linear layer.

    Args:
        blocks: number of blocks.
        width: d, of a token.
        heads: of each block's attention.
        classes: number of outputs.
        activation: inside the blocks' MLPs, one of `sibp.experiment.models.ACTIVATIONS`.

    Returns:
        The net, for inputs of shape (B, tokens, width).
    """
    stack = [TransformerBlock(width, heads, activation) for _ in range(blocks)]
    return nn.Sequential(*stack, nn.LayerNorm(width), MeanOverTokens(), nn.Linear(width, classes))


def resnet18(channels: int, classes: int) -> nn.Sequential:
    """ResNet-18 for images of 32 x 32 (He et al. 2016): its stem is one 3x3 convolution without pooling.

    Args:
        channels: of an image.
        classes: number of outputs.

    Returns:
        Two residual blocks each of 64, 128, 256 and 512 channels, the mean over positions, a linear layer.
    """
    blocks: list[nn.Module] = []
    for before, width in ((64, 64), (64, 128), (128, 256), (256, 512)):
        blocks += [ResidualBlock(before, width, stride=width // before), ResidualBlock(width, width)]
    return nn.Sequential(
        nn.Conv2d(channels, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU(inplace=True), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, classes),
    )  # fmt: skip
