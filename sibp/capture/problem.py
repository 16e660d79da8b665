"""A layer's subproblem, as its backward call hands it to a method, and the method's answer."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from sibp.activations import Activation
from sibp.prox.operators import FeatureOperator
from sibp.prox.scalars import Scalar


@dataclass(slots=True)
class LayerProblem:
    """One layer's subproblem, as matrices; g stands for the groups of a convolution, and is absent for `nn.Linear`.

    Where the features have several row axes, so have the other arrays: (g, B, P, m) in place of (g, N, m).

    Attributes:
        name: the layer's, as in `model.named_modules()`.
        features: Phi (g, N, size), for the parameters that are trained.
        D_z: (g, N, m) error signal on the pre-activation, in the loss's units.
        terms: the number of terms that the loss averages over: times this, error signals are the paper's sums.
        ends: names of the layers that ran first and last in this forward pass.
        activation: s, if it is known; then Z (g, N, m) is the pre-activation and D (g, N, m) the unmasked error signal
            on s(Z), in the loss's units. None: solve the linear subproblem.
        Z: see activation.
        D: see activation.
        W: (g, m, n) the layer's weight.
        b: (g, m) its bias.
    """

    name: str
    features: FeatureOperator
    D_z: Tensor
    terms: float
    ends: tuple[str, str]
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
        backward_change: maps D (g, N, m) to D (W_new - W_old) (g, N, n), where that is cheaper than with W_new itself.
        input_difference: (N, n) the error signal for the layer below, for methods on linear layers with their own rule.
        most_change: at least ||W_new - W_old||^2 + ||b_new - b_old||^2, and exactly that where it exceeds 1 for each
            number; infinite where the solve was not finite, None if unknown.
    """

    W_decrease: Tensor | None
    b_decrease: Tensor | None
    backward_change: Callable[[Tensor], Tensor | None] | None = None
    input_difference: Tensor | None = None
    most_change: Scalar | None = None
