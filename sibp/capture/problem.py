"""A layer's subproblem, which its backward call passes to the method, and the method's update."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sibp.activations import Activation
from sibp.prox.operators import FeatureOperator
from sibp.prox.scalars import Scalar


@dataclass(slots=True)
class LayerProblem:
    """One layer's subproblem as matrices. The axis g, for the groups of a convolution, is absent for `nn.Linear`.

    If the features have several row axes, the other arrays have them, too: (g, B, P, m) instead of (g, N, m).

    Attributes:
        name: the layer's name in `model.named_modules()`.
        features: Phi (g, N, size), with columns for the parameters that are trained.
        D_z: (g, N, m) error signal on the pre-activation: the gradient of the loss as the user computed it, mean or
            sum.
        terms: the number of terms that the loss averages over, 1 for a sum. Error signals times `terms` are those of
            the summed loss, as in the paper.
        ends: names of the layers that ran first and last in this forward pass.
        is_output: whether the layer's output reaches the model's output through no other layer with a subproblem.
        activation: s; None if no known activation follows, so that the subproblem is linear.
        Z: (g, N, m) the pre-activation; None if s is unknown.
        D: (g, N, m) error signal on s(Z), in the units of D_z; None if s is unknown.
        W: (g, m, n) the layer's weight.
        b: (g, m) its bias; None if it has none.
        dtype: the dtype in which the layer's output was computed; half precision under autocast.
    """

    name: str
    features: FeatureOperator
    D_z: Tensor
    terms: float
    ends: tuple[str, str]
    is_output: bool
    activation: Activation | None
    Z: Tensor | None
    D: Tensor | None
    W: Tensor
    b: Tensor | None
    dtype: torch.dtype


@dataclass(slots=True)
class LayerUpdate:
    """A layer's update by a method.

    Attributes:
        W_decrease: (g, m, n) W_old - W_new; None if W is fixed.
        b_decrease: (g, m) b_old - b_new; None if b is fixed.
        backward_change: maps D (g, N, m) to D (W_new - W_old) (g, N, n); None if using W_new itself is cheaper.
        input_difference: (N, n) the error signal for the layer below, if the method does not propagate it through
            weights (linear layers only); otherwise None.
        change_bound: an upper bound of ||W_new - W_old||^2 + ||b_new - b_old||^2; the exact value if the bound exceeds
            the number of entries. Infinite if the solve was not finite, None if unknown.
    """

    W_decrease: Tensor | None
    b_decrease: Tensor | None
    backward_change: Callable[[Tensor], Tensor | None] | None = None
    input_difference: Tensor | None = None
    change_bound: Scalar | None = None
