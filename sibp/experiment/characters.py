"""Text as a data set of characters: windows of it, in which every next character is to be predicted.

The text comes with the package: the language reference of Python 3.13.0's documentation, 510,060 ASCII characters
(`text/LICENSE`). Windows do not overlap. Of every 20 of them, one is for validation and one for test.
"""

import gzip
from pathlib import Path

import torch
from torch import Tensor, nn

TEXT = Path(__file__).parent / "text" / "python_docs.txt.gz"
WINDOW = 64  # characters that a model sees at once
OUT_OF = 20  # windows, of which the last but one is for validation and the last for test


def read_text() -> str:
    """The whole text."""
    return gzip.decompress(TEXT.read_bytes()).decode("ascii")


def encode(text: str, letters: str) -> Tensor:
    """Characters as their places in the alphabet.

    Args:
        text: made of these letters.
        letters: the alphabet, sorted.

    Returns:
        Shape (len(text),), int64.
    """
    places = {letter: place for place, letter in enumerate(letters)}
    return torch.tensor([places[letter] for letter in text])


def windows(codes: Tensor) -> tuple[Tensor, Tensor]:
    """Cut a text into windows, one beside the other; what is left over at its end has no part.

    Args:
        codes: shape (N,).

    Returns:
        Characters and the ones that follow each, both of shape (count, WINDOW).
    """
    count = (len(codes) - 1) // WINDOW
    first, following = codes[: count * WINDOW], codes[1 : count * WINDOW + 1]
    return first.view(count, WINDOW), following.view(count, WINDOW)


def parts(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Which windows are for training, validation and test: spread over the text, as its topics differ.

    Args:
        count: of windows.

    Returns:
        Three masks of shape (count,).
    """
    turn = torch.arange(count) % OUT_OF
    return turn < OUT_OF - 2, turn == OUT_OF - 2, turn == OUT_OF - 1


def sample(model: nn.Module, letters: str, length: int, seed: int) -> str:
    """Text that a model writes, each character drawn from its prediction; torch's own random state is left alone.

    Args:
        model: from characters (1, t), t up to WINDOW, to logits (1, t, letters).
        letters: the alphabet.
        length: characters to write.
        seed: of the draws: at every step of a run the same, so that samples differ by the model alone.

    Returns:
        The text; the first character is drawn after a line break.
    """
    generator = torch.Generator().manual_seed(seed)
    device = next(model.parameters()).device
    codes = [letters.index("\n")]
    model.eval()
    with torch.no_grad():
        for _ in range(length):
            logits = model(torch.tensor([codes[-WINDOW:]], device=device))[0, -1]
            drawn = torch.multinomial(logits.float().softmax(0).cpu(), 1, generator=generator)
            codes.append(int(drawn))
    model.train()
    return "".join(letters[code] for code in codes[1:])
