"""A small transformer that predicts the next character."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sibp.experiment.memory import check_fits
from sibp.runs.errors import UserError

STD = 0.02  # standard deviation of initial embeddings, as in GPT-2


class Block(nn.Module):
    """Causal attention and a two-layer MLP with GELU, each with a preceding norm and a skip connection.

    The projections of the attention are `nn.Linear`s, so that proximal methods update them: `nn.MultiheadAttention`
    uses its weights without calling a layer.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.gelu, self.down = nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From (B, T, width) to the same shape."""
        heads = self.qkv(self.norm1(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = heads.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).flatten(2))
        return x + self.down(self.gelu(self.up(self.norm2(x))))


class Transformer(nn.Module):
    """A decoder: character and position embeddings, blocks, a norm and a linear output.

    Args:
        window: maximum number of input characters.
        letters: size of the alphabet.
        layers: number of blocks.
        width: of the residual stream; each block's hidden layer is four times as wide.
        heads: of each attention.
    """

    def __init__(self, window: int, letters: int, layers: int, width: int, heads: int):
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, width), nn.Embedding(window, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters)
        for embedding in (self.letters, self.places):
            nn.init.normal_(embedding.weight, std=STD)

    def forward(self, codes: Tensor) -> Tensor:
        """From characters (B, T), int64, to logits (B, T, letters) of the ones that follow."""
        x = self.letters(codes) + self.places(torch.arange(codes.shape[1], device=codes.device))
        return self.head(self.norm(self.blocks(x)))


def transformer(shape: tuple[int, ...], classes: int, *, layers: int, width: int, heads: int) -> Transformer:
    """A small transformer over characters.

    Args:
        shape: (window,), the characters that it sees at once.
        classes: size of the alphabet.
        layers: number of blocks.
        width: of the residual stream.
        heads: of each attention; they share the width.

    Returns:
        The model, from (B, T) to (B, T, classes).

    Raises:
        UserError: a setting is below 1 or far too large, the width is not a multiple of ``heads``, or the data are not
            text.
    """
    for key, value in (("layers", layers), ("width", width), ("heads", heads)):
        if value < 1:
            raise UserError(f"model.{key}={value} is not possible: give a whole number of 1 or more.")
    check_fits(12 * layers * width**2, "transformer", layers=layers, width=width)
    if width % heads:
        raise UserError(f"model.heads={heads} cannot share model.width={width}: give a width that is a multiple of it.")
    if len(shape) != 1:
        raise UserError("model=transformer is for text, not for images: give dataset=python_docs.")
    return Transformer(shape[0], classes, layers, width, heads)
