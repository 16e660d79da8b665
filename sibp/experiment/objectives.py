"""Training objectives: the loss on a batch, the accuracy if there is one, and the data required."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """A loss on outputs, with or without an accuracy.

    Attributes:
        loss: maps outputs (B, n), inputs, labels (B,) and a reduction, ``mean`` over the batch or ``sum``, to a number.
        right: counts correct outputs; None without an accuracy.
        misfit: returns the kind of data needed if inputs and labels are of another kind, otherwise None.
    """

    loss: Callable[[Tensor, Tensor, Tensor, str], Tensor]
    right: Callable[[Tensor, Tensor], Tensor] | None
    misfit: Callable[[Tensor, Tensor], str | None] = lambda inputs, labels: None


def _cross_entropy(outputs: Tensor, inputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
    del inputs
    return F.cross_entropy(outputs, labels, reduction=reduction)


def _label_misfit(inputs: Tensor, labels: Tensor) -> str | None:
    return None if labels.ndim == 1 else "for images with a label each"


def _reconstruction(outputs: Tensor, inputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Binary cross-entropy of every pixel, summed over the pixels of an image."""
    del labels
    total = F.binary_cross_entropy_with_logits(outputs, inputs.flatten(1), reduction="sum")
    return total / len(inputs) if reduction == "mean" else total


def _pixel_misfit(inputs: Tensor, labels: Tensor) -> str | None:
    fit = inputs.is_floating_point() and inputs.min() >= 0 and inputs.max() <= 1
    return None if fit else "for pixels between 0 and 1"


def _next_character(outputs: Tensor, inputs: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Outputs (B, T, letters): the mean over the T characters of a window, then the mean or sum over the batch."""
    del inputs
    total = F.cross_entropy(outputs.flatten(0, 1), labels.flatten(), reduction=reduction)
    return total if reduction == "mean" else total / labels.shape[1]


def _text_misfit(inputs: Tensor, labels: Tensor) -> str | None:
    return None if labels.ndim == 2 else "for text"


def _count_correct(outputs: Tensor, labels: Tensor) -> Tensor:
    """The number of correct outputs; an output with NaN is wrong, although argmax treats NaN as the largest value."""
    return ((outputs.argmax(dim=1) == labels) & ~outputs.isnan().any(dim=1)).sum()


CLASSIFICATION = Objective(_cross_entropy, _count_correct, misfit=_label_misfit)
RECONSTRUCTION = Objective(_reconstruction, None, misfit=_pixel_misfit)
NEXT_CHARACTER = Objective(_next_character, None, misfit=_text_misfit)
