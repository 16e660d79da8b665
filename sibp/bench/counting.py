"""Counts a step's floating-point operations and the numbers that it reads or writes, from formulas.

A layer has N rows (the batch, times the positions of a convolution or the tokens of a sequence), n inputs and m
neurons; its features have p = n + 1 columns, with the bias. These sizes are recorded in a forward
pass. A product of (a, b) by (b, c) takes 2abc operations and moves ab + bc + ac numbers.

**SGD**: a product N n m forward, one for the weights' gradient, one for the inputs' (not at the first layer).

**Closed form**, in span coordinates (N <= p):

- Gram matrix A A^T: half of a product N n N, being symmetric; Cholesky N^3/3 and two triangular solves, 2 N^2 m. Linear
  layers with the same input (query, key and value of an attention) share one Gram matrix and one factor.
- U^T A: m N n, in place of SGD's gradient of the weights.
- Backward (not at the first layer): D W as in SGD, and for the new weights either (D U^T) A, products N m N and N N n,
  or a pass over the weights, whichever is faster if moving a number takes as long as 20 multiply-adds. ProxBP needs
  neither.

In direct coordinates (N > p): Phi is materialised (N p numbers); Phi^T Phi: half of p N p; Phi^T R: p N m, in place of
SGD's gradient; Cholesky and triangular solves with p for N; the pass over the weights. For a convolution Phi is not
materialised: Phi^T Phi consists of products of pixels, each formed once (`sibp.prox.operators.patches`).

**CG with K iterations** at layers followed by an activation, closed form at all others: no Cholesky; each iteration is
one product with the Gram matrix (N N m), in direct coordinates two with Phi (N p m each). A few neurons at a time run
all their iterations in cache, so Z and T are read and x is written once. For a convolution each iteration
is two convolutions, and passes over outputs that read 9 arrays of N m and write 3. An iteration evaluates the
activation once.

Not counted: pooling, norms, attention, the loss, and work per neuron or per step, which SGD has, too. A count is
therefore a little too low, as a bound should be.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from sibp.bench import alone
from sibp.bench.alone import Piece
from sibp.capture.geometry import geometry_of
from sibp.experiment.models import ACTIVATIONS
from sibp.prox.operators import ConvolutionFeatures

_NAMES = {kind: name for name, kind in ACTIVATIONS.items()}
_OPERATIONS_PER_ITERATION = 30  # on each of the N m numbers, elementwise
# Additional operations of an activation and its slope per number (`sibp/prox/kernels/activations.h`); 0 for others.
_OPERATIONS_OF = {"tanh": 38, "sigmoid": 36, "silu": 42, "gelu": 72}


@dataclass(frozen=True)
class Layer:
    """A layer as a matrix product.

    Attributes:
        rows: N.
        inputs: n.
        neurons: m.
        first: whether nothing before it needs a gradient.
        activation: the one that directly follows, by its name in a config; "" for none.
        entries: numbers in its input tensor; fewer than N n for a convolution, whose patches overlap.
        features: of a convolution with N > n + 1, for which products are cheaper than the matrix.
        input: index of its input tensor, equal for layers with the same one.
    """

    rows: int
    inputs: int
    neurons: int
    first: bool
    activation: str
    entries: int
    features: ConvolutionFeatures | None = None
    input: int = 0

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
    """One operation of a step.

    Attributes:
        name: what it computes.
        operations: floating-point operations.
        numbers: numbers that it reads or writes.
        is_product: whether it is a matrix product.
        piece: an operation that can be timed in isolation, at the rate of which this one runs; it may be larger, as the
            full product is for a Gram matrix.
    """

    name: str
    operations: float
    numbers: float
    is_product: bool = False
    piece: Piece | None = field(default=None, compare=False)


def layers_of(model: nn.Module, shape: Sequence[int], batch: int) -> list[Layer]:
    """The linear and convolutional layers of a net.

    Args:
        model: its convolutions have a single group.
        shape: of one input.
        batch: B.

    Returns:
        In the order of execution.
    """
    seen: list[Layer] = []
    outputs: list[torch.Tensor] = []
    inputs_seen: list[torch.Tensor] = []

    def note(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        if type(module) in _NAMES and outputs and inputs[0] is outputs[-1]:
            seen[-1] = replace(seen[-1], activation=_NAMES[type(module)])
        if not isinstance(module, (nn.Linear, nn.Conv2d)):
            return
        (m, *_), geometry, x = module.weight.shape, geometry_of(module), inputs[0]
        features = geometry.features(x.detach(), weight=True, bias=True) if geometry else None
        free = features if isinstance(features, ConvolutionFeatures) else None
        place = next((k for k, known in enumerate(inputs_seen) if known is x), len(inputs_seen))
        inputs_seen[place:] = [x] if place == len(inputs_seen) else inputs_seen[place:]
        N, n, first = output.numel() // m, module.weight.numel() // m, not x.requires_grad
        seen.append(Layer(N, n, m, first, "", entries=x.numel(), features=free, input=place))
        outputs.append(output)

    shapes = copy.deepcopy(model).to("meta")  # meta tensors: a large net takes no time
    for module in shapes.modules():
        module.register_forward_hook(note)
    shapes(torch.zeros(batch, *shape, device="meta"))
    return seen


def step_work(method: str, layers: Sequence[Layer]) -> list[Work]:
    """All operations of a method's step.

    Args:
        method: "sgd", "exact", "proxbp" or "cg:K".
        layers: of the net.

    Returns:
        The operations, layer by layer; see the module's docstring.
    """
    made: set[tuple[str, int]] = set()
    return [work for layer in layers for work in _layer_work(method, layer, made)]


def operations(work: Sequence[Work], products_only: bool = False) -> float:
    """The total of floating-point operations.

    Args:
        work: of a step.
        products_only: count matrix products only.

    Returns:
        Their number.
    """
    return sum(each.operations for each in work if each.is_product or not products_only)


def _layer_work(method: str, layer: Layer, made: set[tuple[str, int]]) -> list[Work]:
    """A layer's part; `made` names what earlier layers have already computed from their inputs."""
    N, m, weights = layer.rows, layer.neurons, (layer.inputs + 1) * layer.neurons
    work = [_layer_product("forward", layer), Work("apply", 2 * weights, 3 * weights)]
    if layer.activation:
        work.append(Work("activation, forward and backward", 2 * N * m, 5 * N * m))
    if not layer.first:
        work.append(_layer_product("gradient of the inputs", layer))
    if method == "sgd":
        return [*work, _layer_product("gradient of the weights", layer, adjoint=True)]
    if method.startswith("cg:") and layer.activation:
        work += _conjugate_gradients(layer, int(method.removeprefix("cg:")), made)
    else:
        work += _closed_form(layer, made)
    if layer.in_span:
        work.append(_product("U^T A", m, N, layer.inputs))
    if method != "proxbp" and not layer.first:
        work += _new_weights(layer)
    return work


def _closed_form(layer: Layer, made: set[tuple[str, int]]) -> list[Work]:
    N, m = layer.rows, layer.neurons
    size = N if layer.in_span else layer.inputs + 1
    work = [Work("R", N * m, 2 * N * m), *_gram(layer, made)]
    if not layer.in_span:
        conv = layer.features is not None
        work.append(_layer_product("Phi^T R", layer, adjoint=True) if conv else _product("Phi^T R", size, N, m))
    if not _is_computed("factor", layer, made):
        work.append(Work("Cholesky", size**3 / 3, 2 * size**2, piece=alone.solution(size, m)))
    return [*work, Work("triangular solves", 2 * size**2 * m, size**2 + 2 * size * m, piece=alone.solution(size, m))]


def _conjugate_gradients(layer: Layer, iterations: int, made: set[tuple[str, int]]) -> list[Work]:
    N, m, p = layer.rows, layer.neurons, layer.inputs + 1
    each = _OPERATIONS_OF.get(layer.activation, 0)
    work = [Work("T", (2 + each) * N * m, 3 * N * m)]
    elementwise = (_OPERATIONS_PER_ITERATION + each) * N * m
    if layer.features is not None:
        products = [_layer_product("Phi^T E", layer, adjoint=True), _layer_product("Phi G", layer)]
        return [*work, *[*products, Work("passes", elementwise, (9 + 3) * N * m)] * iterations]
    once = Work("iterations", elementwise * iterations, 2 * N * m + (N if layer.in_span else p) * m)
    if layer.in_span:  # these products run in cache, at the rate of a large product
        return [*work, *_gram(layer, made), once, *[replace(_product("K G", N, N, m), piece=None)] * iterations]
    return [*work, *_features(layer), once, *[_product("Phi^T E", p, N, m), _product("Phi G", N, p, m)] * iterations]


def _features(layer: Layer) -> list[Work]:
    """Materialising patches or the column of ones, where the coordinates or the layer need it."""
    if layer.in_span and layer.is_linear:
        return []
    if layer.features is not None:
        return [Work("pixels", 0.0, layer.features.numbers_copied())]
    return [Work("features", 0.0, layer.entries + layer.rows * (layer.inputs + 1))]


def _gram(layer: Layer, made: set[tuple[str, int]]) -> list[Work]:
    """The Gram matrix and its parts."""
    N, n, p = layer.rows, layer.inputs, layer.inputs + 1
    if _is_computed("gram", layer, made):
        return []
    if layer.features is not None:
        # Compiled code computes them at the rate of a large product; the pixels stay in cache.
        products = [_product("Phi^T Phi", *sizes) for sizes in layer.features.gram_products()]
        return [*_features(layer), *(replace(product, numbers=0.0, piece=None) for product in products)]
    if layer.in_span:
        half = Work("A A^T", N * (N + 1) * n, N * n + N * N, is_product=True, piece=alone.product(N, n, N))
    else:
        half = Work("Phi^T Phi", p * (p + 1) * N, N * p + p * p, is_product=True, piece=alone.product(p, N, p))
    return [*_features(layer), half]


def _is_computed(what: str, layer: Layer, made: set[tuple[str, int]]) -> bool:
    """Whether an earlier layer with the same input has computed it; marks it as computed."""
    shares, key = layer.is_linear and layer.features is None, (what, layer.input)
    if shares and key in made:
        return True
    made.add(key)
    return False


def _new_weights(layer: Layer) -> list[Work]:
    """The additional cost of propagating backward through the new weights instead of the old ones."""
    N, n, m = layer.rows, layer.inputs, layer.neurons
    if layer.in_span and layer.is_linear and N * N * (n + m) < 20 * m * n:
        return [_product("D U^T", N, m, N), _product("(D U^T) A", N, N, n)]
    return [Work("new weights", m * n, 3 * m * n)]


def _layer_product(name: str, layer: Layer, adjoint: bool = False) -> Work:
    """A product of the layer's size; for a convolution, the convolution itself or (adjoint) its weight gradient."""
    N, n, m = layer.rows, layer.inputs, layer.neurons
    if layer.features is None:
        piece = alone.product(N, n, m) if layer.is_linear else None
    else:
        piece = alone.convolution(layer.features, m, adjoint, 2.0 * N * n * m)
    return Work(name, 2 * N * n * m, layer.entries + n * m + N * m, is_product=True, piece=piece)


def _product(name: str, a: int, b: int, c: int) -> Work:
    return Work(name, 2 * a * b * c, a * b + b * c + a * c, is_product=True, piece=alone.product(a, b, c))
