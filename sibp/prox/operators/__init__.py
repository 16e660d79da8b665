"""A layer's features as its subproblem sees them: one interface, whatever form the layer has.

`FeatureOperator` defines what a solver may ask of Phi = [A, 1]. A new form implements `materialize`, or the products
`matmat` and `rmatmat`; everything else has fallbacks.
"""

from sibp.prox.operators.base import FeatureOperator
from sibp.prox.operators.convolution import ConvolutionFeatures
from sibp.prox.operators.dense import DenseFeatures
from sibp.prox.operators.window import Window

__all__ = ["ConvolutionFeatures", "DenseFeatures", "FeatureOperator", "Window"]
