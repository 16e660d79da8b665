"""What a model is trained for: its loss on a batch, and what counts as right where that has a meaning."""

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Objective:
    """A loss on outputs, and an accuracy or none.

    Attributes:
        loss: maps outputs (B, n), images, labels (B,) and a reduction, ``mean`` over the batch or ``sum``, to a number.
        right: counts the outputs that fit their labels; None: there is no such thing as right.
    """

    loss: Callable[[Tensor, Tensor, Tensor, str], Tensor]
    right: Callable[[Tensor, Tensor], Tensor] | None


def _cross_entropy(outputs: Tensor, images: Tensor, labels: Tensor, reduction: str) -> Tensor:
    del images
    return F.cross_entropy(outputs, labels, reduction=reduction)


def _reconstruction(outputs: Tensor, images: Tensor, labels: Tensor, reduction: str) -> Tensor:
    """Every pixel is the chance of a coin, whose logit is the output; summed over the pixels of an image."""
    del labels
    total = F.binary_cross_entropy_with_logits(outputs, images.flatten(1), reduction="sum")
    return total / len(images) if reduction == "mean" else total


CLASSIFICATION = Objective(_cross_entropy, lambda outputs, labels: (outputs.argmax(dim=1) == labels).sum())
RECONSTRUCTION = Objective(_reconstruction, None)
