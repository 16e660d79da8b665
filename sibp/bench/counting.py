"""What a step computes and moves, from formulas: floating-point operations, and numbers read or written.

A layer has N rows (the batch, times the positions of a convolution), n inputs and m neurons; its features have
p = n + 1 columns, with the bias. A product of (a, b) by (b, c) takes 2abc operations and moves ab + bc + ac numbers.

**SGD**: a product N n m forward, one for the weights' gradient, one for the inputs' (not at the first layer).

**Closed form**, in span coordinates (N <= p):

- Gram matrix A A': half of a product N n N, being symmetric; Cholesky N^3/3; its inverse 2N^3/3 and a product N N m
  (or, where 3m < N, two triangular solves, 2 N^2 m); U'A: m N n, in the place of SGD's gradient of the weights.
- backward (not at the first layer): D W as in SGD, and for the new weights either (D U')A, products N m N and N N n, or
  a pass over the weights, whichever is quicker if moving a number takes the time of 20 multiply-adds. ProxBP has
  neither.

In direct coordinates (N > p): Phi is written out (N p numbers); Phi'Phi: p N p; Phi'R: p N m, in the place of SGD's
gradient; Cholesky, inverse and product with p for N; the pass over the weights. For a convolution nothing of Phi is
written out but strips of the image, and Phi'Phi is a product (c w, K, c w) for each way in which K strips of w columns
and c channels meet (`sibp.prox.operators.window`).

**CG with K rounds** at layers that an activation follows, closed form at all others: no Cholesky; each round is one
product with the Gram matrix (N N m), in direct coordinates two with Phi (N p m each). A few neurons take all their
rounds in the nearer caches, so Z and T are read and x is written once. For a convolution each round is two
convolutions, and passes over images that read 9 arrays of N m and write 3.

Left out: pooling, norms, attention, the loss, and what is per neuron or per step. So a count is a little too low, as a
bound should be.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn

from sibp.capture.geometry import geometry_of
from sibp.experiment.models import ACTIVATIONS
from sibp.prox.operators import FeatureOperator

_ACTIVATIONS = tuple(ACTIVATIONS.values())
_OPERATIONS_A_ROUND = 30  # on each of the N m numbers, elementwise


@dataclass(frozen=True)
class Layer:
    """A layer as a matrix product.

    Attributes:
        rows: N.
        inputs: n.
        neurons: m.
        first: whether nothing before it needs a gradient.
        activated: whether an activation follows, with nothing in between.
        entries: numbers in its input tensor; fewer than N n for a convolution, whose patches overlap.
        features: where products are cheaper than the matrix: those of a convolution with N > n + 1.
    """

    rows: int
    inputs: int
    neurons: int
    first: bool
    activated: bool
    entries: int
    features: FeatureOperator | None = None

    @property
    def is_linear(self) -> bool:
        """Whether its input tensor is the matrix A itself."""
        return self.entries == self.rows * self.inputs

    @property
    def in_span(self) -> bool:
        """Whether the span's Gram matrix (N x N) is no larger than the direct one."""
        return self.rows <= self.inputs + 1


@dataclass(frozen=True)
class Work:
    """One operation: what it is, floating-point operations, numbers moved, and whether it is a matrix product."""

    name: str
    operations: float
    numbers: float
    is_product: bool = False


def layers_of(model: nn.Module, shape: Sequence[int], batch: int) -> list[Layer]:
    """The linear and convolutional layers of a net.

    Args:
        model: without groups in its convolutions.
        shape: one input's.
        batch: B.

    Returns:
        In the order in which they run.
    """
    seen: list[Layer] = []
    outputs: list[torch.Tensor] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if isinstance(module, _ACTIVATIONS) and outputs and inputs[0] is outputs[-1]:
            seen[-1] = replace(seen[-1], activated=True)
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            return
        (m, *_), geometry, x = module.weight.shape, geometry_of(module), inputs[0]
        features = geometry.features(x.detach(), weight=True, bias=True) if geometry else None
        matrix_free = features if features is not None and features.matrix_free else None
        N, n, first = output.numel() // m, module.weight.numel() // m, not x.requires_grad
        seen.append(Layer(N, n, m, first=first, activated=False, entries=x.numel(), features=matrix_free))
        outputs.append(output)

    hooks = [module.register_forward_hook(note) for module in model.modules()]
    model(torch.zeros(batch, *shape))
    for hook in hooks:
        hook.remove()
    return seen


def step_work(method: str, layers: Sequence[Layer]) -> list[Work]:
    """Everything that a step of a method does.

    Args:
        method: "sgd", "exact", "proxbp" or "cg:K".
        layers: of the net.

    Returns:
        The operations, layer by layer; see the module's text.
    """
    return [work for layer in layers for work in _layer_work(method, layer)]


def operations(work: Sequence[Work], products_only: bool = False) -> float:
    """Floating-point operations of some work.

    Args:
        work: of a step.
        products_only: count matrix products alone.

    Returns:
        Their number.
    """
    return sum(each.operations for each in work if each.is_product or not products_only)


def _layer_work(method: str, layer: Layer) -> list[Work]:
    N, m, weights = layer.rows, layer.neurons, (layer.inputs + 1) * layer.neurons
    work = [_layer_product("forward", layer), Work("apply", 2 * weights, 3 * weights)]
    if layer.activated:
        work.append(Work("activation, forward and backward", 2 * N * m, 5 * N * m))
    if not layer.first:
        work.append(_layer_product("gradient of the inputs", layer))
    if method == "sgd":
        return [*work, _layer_product("gradient of the weights", layer)]
    if method.startswith("cg:") and layer.activated:
        work += _conjugate_gradients(layer, int(method.removeprefix("cg:")))
    else:
        work += _closed_form(layer)
    if layer.in_span:
        work.append(_product("U'A", m, N, layer.inputs))
    if method != "proxbp" and not layer.first:
        work += _new_weights(layer)
    return work


def _closed_form(layer: Layer) -> list[Work]:
    N, m = layer.rows, layer.neurons
    size = N if layer.in_span else layer.inputs + 1
    work = [Work("R", N * m, 2 * N * m), *_features(layer), *_gram(layer)]
    if not layer.in_span:
        work.append(_layer_product("Phi'R", layer) if layer.features else _product("Phi'R", size, N, m))
    work.append(Work("Cholesky", size**3 / 3, 2 * size**2))
    if 3 * m < size:
        return [*work, Work("triangular solves", 2 * size**2 * m, size**2 + 2 * size * m)]
    return [*work, Work("inverse", 2 * size**3 / 3, 2 * size**2), _product("inverse R", size, size, m)]


def _conjugate_gradients(layer: Layer, rounds: int) -> list[Work]:
    N, m, p = layer.rows, layer.neurons, layer.inputs + 1
    work = [Work("T", 2 * N * m, 3 * N * m)]
    elementwise = _OPERATIONS_A_ROUND * N * m
    if layer.features is not None:
        products = [_layer_product(name, layer) for name in ("Phi'E", "Phi G")]
        return [*work, *[*products, Work("passes", elementwise, (9 + 3) * N * m)] * rounds]
    once = Work("rounds", elementwise * rounds, 2 * N * m + (N if layer.in_span else p) * m)
    if layer.in_span:
        return [*work, *_features(layer), *_gram(layer), once, *[_product("K G", N, N, m)] * rounds]
    return [*work, *_features(layer), once, *[_product("Phi'E", p, N, m), _product("Phi G", N, p, m)] * rounds]


def _features(layer: Layer) -> list[Work]:
    """Patches, or the column of ones, written out where the side or the layer needs it."""
    if layer.in_span and layer.is_linear:
        return []
    if layer.features is not None:
        return [Work("strips", 0.0, layer.features.numbers_copied())]
    return [Work("features", 0.0, layer.entries + layer.rows * (layer.inputs + 1))]


def _gram(layer: Layer) -> list[Work]:
    N, n = layer.rows, layer.inputs
    if layer.features is None:
        half = Work("A A'", N * (N + 1) * n, N * n + N * N, is_product=True)
        return [half if layer.in_span else _product("Phi'Phi", n + 1, N, n + 1)]
    return [_product("Phi'Phi", *product) for product in layer.features.gram_products()]


def _new_weights(layer: Layer) -> list[Work]:
    """What going back through the new weights takes beside the product with the old ones."""
    N, n, m = layer.rows, layer.inputs, layer.neurons
    if layer.in_span and layer.is_linear and N * N * (n + m) < 20 * m * n:
        return [_product("D U'", N, m, N), _product("(D U')A", N, N, n)]
    return [Work("new weights", m * n, 3 * m * n)]


def _layer_product(name: str, layer: Layer) -> Work:
    N, n, m = layer.rows, layer.inputs, layer.neurons
    return Work(name, 2 * N * n * m, layer.entries + n * m + N * m, is_product=True)


def _product(name: str, a: int, b: int, c: int) -> Work:
    return Work(name, 2 * a * b * c, a * b + b * c + a * c, is_product=True)
