"""A layer's features as its subproblem sees them: one interface, whatever form the layer has.

`FeatureOperator` says what a solver may ask of Phi = [A, 1]. Only `materialize`, or the products `matmat` and
`rmatmat`, have to be written for a new form; all else follows from them.
"""

from sibp.prox.operators.base import FeatureOperator
from sibp.prox.operators.convolution import ConvolutionFeatures
from sibp.prox.operators.dense import DenseFeatures
from sibp.prox.operators.window import Window

__all__ = ["ConvolutionFeatures", "DenseFeatures", "FeatureOperator", "Window"]
