"""Scales AutoSIBP's steps on the neurons by the size of the error signals."""

import math

NORMAL_RATIO = 30.0
"""Ratios of squared error signals, and of Polyak's steps on the outputs, are normal within this factor of 1."""

_POLYAK_STEP = 2.5  # Polyak's step on the outputs for the cross-entropy of ten classes


def layer_factor(layer: float, output: float) -> float:
    """Factor of a layer's step: above 1 if its error signals have vanished, below 1 if they have exploded.

    Let r be `output` / `layer`. The factor is r / `NORMAL_RATIO` if that is above 1, r * `NORMAL_RATIO` if that is
    below 1, and 1 otherwise. The decreases of the loss that the layers predict are then of similar size.

    Args:
        layer: sum of the layer's squared error signals, over the batch and all neurons.
        output: the same sum at the output; NaN if unknown.

    Returns:
        A factor > 0; 1 if the ratio is unusable.
    """
    ratio = output / layer if layer > 0 else math.nan
    if not 0 < ratio < math.inf:
        return 1.0
    return max(ratio / NORMAL_RATIO, 1.0) if ratio > 1 else min(ratio * NORMAL_RATIO, 1.0)


def loss_unit(loss: float, output: float) -> float:
    """Polyak's step on the outputs, relative to that of the cross-entropy of ten classes; 1 if the ratio is normal.

    Polyak's step (1987) is L / mean_i ||D_i||^2, with L the mean loss and D_i the error signals of sample i on all
    outputs. If the loss is multiplied by s, Polyak's step is divided by s.

    Args:
        loss: sum of the losses of all samples.
        output: sum of all outputs' squared error signals.

    Returns:
        A ratio > 0; 1 if it is within a factor `NORMAL_RATIO` of 1, or unusable (for example for a negative loss).
    """
    unit = loss / output / _POLYAK_STEP if output > 0 else math.nan
    unusual = 0 < unit < 1 / NORMAL_RATIO or NORMAL_RATIO < unit < math.inf
    return unit if unusual else 1.0
