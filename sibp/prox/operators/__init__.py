"""A layer's features Phi = [A, 1], behind one interface for all kinds of layers.

`FeatureOperator` defines the operations that solvers use. A subclass implements `materialize`, or both products
`matmat` and `rmatmat`; all other methods have fallbacks.
"""

from sibp.prox.operators.base import FeatureOperator
from sibp.prox.operators.convolution import ConvolutionFeatures
from sibp.prox.operators.dense import DenseFeatures
from sibp.prox.operators.window import Window

__all__ = ["ConvolutionFeatures", "DenseFeatures", "FeatureOperator", "Window"]
