"""The backward call of a tapped layer: computes displacements from error signals, inside ordinary autograd."""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from sibp.activations import Activation
from sibp.capture.activation import Consumption
from sibp.capture.compiler import run_eagerly
from sibp.capture.geometry import Geometry
from sibp.capture.passes import ForwardPass
from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.shared import SharedInput
from sibp.internals import will_be_executed
from sibp.prox.operators import FeatureOperator

if TYPE_CHECKING:
    from sibp.capture.tap import Tap


class Call(NamedTuple):
    """What the backward pass of one call of a layer needs.

    Attributes:
        tap: the layer's tap.
        geometry: the layer as a matrix product, with the settings of this call.
        consumption: how the output was used.
        forward_pass: the forward pass that the call belongs to.
        shared: the record of the input, which other layers may share.
        recomputed_in: number of the backward pass that recomputes the call (an activation checkpoint); -1 if none does.
    """

    tap: "Tap"
    geometry: Geometry
    consumption: Consumption
    forward_pass: ForwardPass
    shared: SharedInput
    recomputed_in: int


class TappedLayer(torch.autograd.Function):
    """z = layer(x); its backward pass is the layer's proximal update."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, W: Tensor, b: Tensor | None, call: Call) -> Tensor:
        """The layer's output for its input x, weight W and bias b, all in the layer's own shapes."""
        ctx.save_for_backward(x, W, b)
        ctx.call, ctx.forward_pass = call, call.forward_pass  # the latter for `Passes`
        return call.geometry.forward(x, W, b)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """The error signal on x, and the displacements W_old - W_new and b_old - b_new."""
        (gradient,) = grad_outputs
        device = gradient.device.type
        if not (torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)):
            return _update(ctx, gradient)
        with torch.autocast(device, enabled=False):  # autocast would compute the products in half precision
            return _update(ctx, gradient)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:
        """Raises RuntimeError: there is no forward-mode derivative."""
        del tangents
        raise RuntimeError(
            f"layer '{ctx.call.tap.name}' is tapped and has no forward-mode derivative; differentiate inside "
            "`with optimizer.paused():`."
        )


@run_eagerly
def _update(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients for x, W and b (the error signal for the layer below, and the displacements); None for `call`.

    Raises:
        RuntimeError: if the optimizer was removed or deleted; see also `Tap.begin_backward`.
    """
    x, W, b = ctx.saved_tensors
    call: Call = ctx.call
    tap, geometry, consumption, forward_pass, shared, recomputed_in = call
    owner = tap.owner()
    if owner is None or not tap.installed:
        raise RuntimeError(
            f"layer '{tap.name}': the optimizer of this forward pass was removed or deleted; run the forward pass "
            "again."
        )
    needs_x, needs_W, needs_b = ctx.needs_input_grad[:3]
    dtype = torch.promote_types(W.dtype, torch.float32)  # subproblems are never solved in half precision
    needs_W, needs_b = needs_W and _is_requested(ctx, 1), needs_b and _is_requested(ctx, 2)
    if not needs_W and not needs_b:
        consumption.clear()  # if only the input's gradient is requested, it is the ordinary one
        ordinary = _adjoint(geometry, x, _cast(gradient, dtype), _cast(W, dtype)) if needs_x else None
        return None if ordinary is None else _cast(ordinary, x.dtype), None, None, None
    tap.begin_backward(recomputed_in)
    if consumption.known and not consumption.has_sent(gradient):
        consumption.consumers += 1  # something between activation and layer has changed the gradient
    x_given = x
    if needs_x:
        x, gradient = geometry.arranged(x, gradient)
    wide = _cast(gradient, dtype)
    moves = {"weight": needs_W and tap.weight, "bias": needs_b and tap.bias}
    key = None if geometry.features_key is None else (geometry.features_key, dtype, *moves.values())
    features = shared.features(x, key, lambda: geometry.features(_cast(x, dtype), **moves))
    Z, D = (consumption.Z, consumption.D) if consumption.known else (None, None)
    problem = LayerProblem(
        name=tap.name,
        features=features,
        D_z=geometry.outputs(wide, features),
        terms=owner.loss_terms(forward_pass),
        ends=forward_pass.ends,
        is_output=forward_pass.is_output(tap.name, ctx),
        activation=_activation_in_rows(consumption.activation, gradient, geometry, features) if Z is not None else None,
        Z=None if Z is None else geometry.outputs(_cast(Z, dtype), features),
        D=None if D is None else geometry.outputs(_cast(D, dtype), features),
        W=geometry.matrix(_cast(W, dtype)),
        b=None if b is None else geometry.vector(_cast(b, dtype)),
        dtype=gradient.dtype,
    )
    consumption.clear()
    update = owner.solve(tap, problem)
    new = owner.uses_new_weights_backward(tap)
    grad_x = _input_gradient(geometry, x, wide, W, problem, update, new) if needs_x else None
    if grad_x is not None and x is not x_given:
        grad_x = grad_x.contiguous()
    grad_W = _weight_gradient(tap, geometry, W, problem, update) if needs_W else None
    grad_b = _bias_gradient(tap, b, problem, update) if needs_b else None
    shared.end_call()
    return grad_x, grad_W, grad_b, None


def _is_requested(ctx: Any, index: int) -> bool:
    """Whether this backward pass computes the gradient of input `index` of the Function, one of the layer's parameters.

    `needs_input_grad` says only that the parameter requires a gradient; `torch.autograd.grad(loss, x)` does not compute
    it.
    """
    node = ctx.next_functions[index][0]
    if node is None:
        return False
    try:
        return will_be_executed(node)
    except RuntimeError:  # raised for a leaf among the `inputs` of torch.autograd.grad
        return True


def _activation_in_rows(
    s: Activation | None, z: Tensor, geometry: Geometry, features: FeatureOperator
) -> Activation | None:
    """The activation for Z in the subproblem's layout; z has the shape of the layer's output."""
    return s if s is None or s.learned is None else s.rearranged(z.shape, lambda t: geometry.outputs(t, features))


def _input_gradient(
    geometry: Geometry,
    x: Tensor,
    gradient: Tensor,
    W: Tensor,
    problem: LayerProblem,
    update: LayerUpdate,
    through_new: bool,
) -> Tensor:
    """D_{l-1} = D_z W, with the new or the old W (equation 10 of the paper).

    Args:
        geometry: the layer as a matrix product.
        x: the layer's input, whose shape the result has.
        gradient: D_z in the shape of the layer's output.
        W: the old weight, in the layer's own shape.
        problem: the layer's subproblem.
        update: its solution.
        through_new: whether to use W_new.
    """
    W = _cast(W, gradient.dtype)
    if update.input_difference is not None:
        grad_x = update.input_difference.reshape(x.shape)
    elif not through_new or update.W_decrease is None:
        grad_x = _adjoint(geometry, x, gradient, W)
    elif geometry.rows_are_inputs and update.backward_change is not None:
        change = update.backward_change(problem.D_z)
        grad_x = _adjoint(geometry, x, gradient, W)
        if change is not None:
            grad_x = grad_x.add_(change if x.dim() == 2 else change.reshape(x.shape))
    else:
        grad_x = _adjoint(geometry, x, gradient, W - geometry.weight(update.W_decrease, W.shape))
    return _cast(grad_x, x.dtype)


def _adjoint(geometry: Geometry, x: Tensor, gradient: Tensor, W: Tensor) -> Tensor:
    """`Geometry.input_gradient`, with x in the dtype of the gradient; under autocast, x may have another dtype."""
    return geometry.input_gradient(x if geometry.rows_are_inputs else _cast(x, gradient.dtype), gradient, W)


def _weight_gradient(tap: "Tap", geometry: Geometry, W: Tensor, problem: LayerProblem, update: LayerUpdate) -> Tensor:
    """W_old - W_new in the layer's own shape; the ordinary gradient if the optimizer does not own the weight."""
    if update.W_decrease is None:
        ordinary = problem.features.moving(weight=True, bias=False).rmatmat(problem.D_z).mT
        return _cast(geometry.weight(ordinary, W.shape), W.dtype)
    return tap.record_returned("weight", _cast(geometry.weight(update.W_decrease, W.shape), W.dtype))


def _bias_gradient(tap: "Tap", b: Any, problem: LayerProblem, update: LayerUpdate) -> Tensor:
    """b_old - b_new in the layer's own shape; the ordinary gradient if the optimizer does not own the bias."""
    if update.b_decrease is None:
        return _cast(problem.features.over_rows(problem.D_z).reshape(b.shape), b.dtype)
    b_decrease = update.b_decrease
    if b_decrease.shape != b.shape:
        b_decrease = b_decrease.reshape(b.shape)
    return tap.record_returned("bias", _cast(b_decrease, b.dtype))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """`Tensor.to`, without its overhead of a microsecond if the dtype is already right."""
    return tensor if tensor.dtype is dtype else tensor.to(dtype)
