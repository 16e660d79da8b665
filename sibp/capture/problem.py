"""A layer's subproblem, as its backward call passes it to a method, and the method's answer."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sibp.activations import Activation
from sibp.prox.operators import FeatureOperator
from sibp.prox.scalars import Scalar


@dataclass(slots=True)
class LayerProblem:
    """One layer's subproblem as matrices; the axis g for the groups of a convolution is absent for `nn.Linear`.

    If the features have several row axes, so do the other arrays: (g, B, P, m) instead of (g, N, m).

    Attributes:
        name: the layer's, as in `model.named_modules()`.
        features: Phi (g, N, size), for the parameters that are trained.
        D_z: (g, N, m) error signal on the pre-activation, in the loss's units.
        terms: the number of terms that the loss averages over; error signals times this are the paper's sums.
        ends: names of the layers that ran first and last in this forward pass.
        is_output: whether the layer's output reaches the model's through no other layer with a subproblem.
        activation: s, if known; None means to solve the linear subproblem.
        Z: (g, N, m) the pre-activation, if s is known.
        D: (g, N, m) the unmasked error signal on s(Z), in the loss's units, if s is known.
        W: (g, m, n) the layer's weight.
        b: (g, m) its bias.
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


@dataclass(slots=True)
class LayerUpdate:
    """A solver's answer.

    Attributes:
        W_decrease: (g, m, n) W_old - W_new, or None if W is fixed.
        b_decrease: (g, m) b_old - b_new, or None if b is fixed.
        backward_change: maps D (g, N, m) to D (W_new - W_old) (g, N, n), if that is cheaper than with W_new itself.
        input_difference: (N, n) the error signal for the layer below, for methods on linear layers with their own rule.
        most_change: an upper bound of ||W_new - W_old||^2 + ||b_new - b_old||^2, exact above a mean square of 1 per
            entry; infinite if the solve was not finite, None if unknown.
    """

    W_decrease: Tensor | None
    b_decrease: Tensor | None
    backward_change: Callable[[Tensor], Tensor | None] | None = None
    input_difference: Tensor | None = None
    most_change: Scalar | None = None
