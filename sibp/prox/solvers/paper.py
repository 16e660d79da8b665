"""The published solver of one layer's proximal subproblem, with all its peculiarities.

Source: Liu & Zhang 2020 (arXiv 2002.03516) and the authors' MATLAB program, whose numbers `tests/golden` contains.

A layer l maps its input A (A_{l-1} in the paper) to s(A W^T + b), where s is ReLU in a hidden layer and the identity
at the output. For a target T (T_l) of its output, a training step computes

    a.  W_new = argmin_W  ||s(A W^T + b) - T||_F^2 + lam ||W - W_old||_F^2      (with the old b)
    b.  b_new = argmin_b  ||s(C + b)     - T||_F^2 + lam ||b - b_old||^2        (C = A W_new^T)

approximately: each by exactly five iterations of Fletcher-Reeves conjugate gradients with an Armijo line search,
without restarts, descent check or stopping tolerance. One iteration starts at the point x with gradient g and direction
d, which is -g at first:

    1.  f0 = f(x), gd = <g, d>. The step rho^m is accepted if f(x + rho^m d) < f0 + sigma rho^m gd.
    2.  Output layer: m = the smallest accepted power in 0..49.
        Hidden layer: m0 = max(0, floor(ln(0.01 f0 / |sigma gd|) / ln rho)). If m = 0 is accepted, m := m0
        without testing m0; otherwise m = the smallest accepted power in m0+1..49.
    3.  If m > 0: x <- x + rho^m d. If m = 0 or no power is accepted, x stays, so a full step is never taken.
    4.  g' = grad f(x), beta = ||g'||^2 / ||g||^2, d <- -g' + beta d.

Two more peculiarities are kept because results depend on them. The ReLU mask of the gradient is strict (s(.) > 0). At
the output layer, the first g leaves out the constant term of the residual: b in the W call, C in the b call. A zero
gradient makes beta = 0/0 = NaN; the direction is then NaN, no further step is accepted, and the weights stay as they
are.

The bias call is the weight call on an input of ones, so one routine serves both. Besides the point x it stores the
pre-activation P, and it computes the forward product Q = A d^T once per iteration. A trial of the line search then
costs elementwise passes over (B, n_out) only, and none at the output layer, where f is quadratic along d. A trial
computes the change f(x + rho^m d) - f(x), so its rounding error is relative to the change, not to f. This is what keeps
the decisions in float32 those of float64.
"""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

RHO = 0.6
"""Ratio of successive trial steps (rho)."""
SIGMA = 0.1
"""Share of the decrease predicted by the slope that a step must reach (sigma)."""
ITERATIONS = 5
"""Conjugate-gradient iterations in each call."""
POWERS = 50
"""The line search tries rho^m for m in 0..POWERS-1 only."""


@dataclass(frozen=True)
class IterationTrace:
    """What one iteration did.

    Attributes:
        m: Power of the step rho^m; -1 if no step was accepted; 0 if m was 0, which leaves x unchanged, too.
        m0: Power that a hidden layer jumps to when m = 0 is accepted; -1 at the output layer.
        f: Objective f0 at the start of the iteration.
        gd: Slope <g, d> at the start of the iteration.
        beta: Fletcher-Reeves factor at the end of the iteration; NaN for 0/0.
    """

    m: int
    m0: int
    f: float
    gd: float
    beta: float


@dataclass(frozen=True)
class CallTrace:
    """What one call (for W or for b) did.

    Attributes:
        iterations: One record for each iteration.
        g1: The first gradient, in the shape of W or b.
        f_end: Objective after the last iteration.
        squared_change: ||W_new - W_old||_F^2 or ||b_new - b_old||^2.
    """

    iterations: tuple[IterationTrace, ...]
    g1: Tensor
    f_end: float
    squared_change: float


@dataclass(frozen=True)
class PaperSolution:
    """New parameters of one layer and how they were found.

    Attributes:
        W: W_new, (n_out, n_in), in the dtype of the old W.
        b: b_new, (n_out,), in the dtype of the old b; None for a layer without a bias.
        C: A W_new^T, (B, n_out), the constant term of the b call.
        trace_W: Record of the W call; None if it was skipped.
        trace_b: Record of the b call; None if it was skipped.
    """

    W: Tensor
    b: Tensor | None
    C: Tensor
    trace_W: CallTrace | None  # noqa: N815 (the paper's symbol)
    trace_b: CallTrace | None


@torch.no_grad()
def solve_layer(
    A: Tensor,
    Z: Tensor,
    T: Tensor,
    W: Tensor,
    b: Tensor | None,
    lam_W: float,
    lam_b: float,
    *,
    relu: bool,
    train_W: bool = True,
    train_b: bool = True,
) -> PaperSolution:
    """Solve one layer's subproblem, first for W with the old b, then for b with the new W (a and b above).

    No argument is modified. Half-precision arguments are converted to float32, since squared norms of whole matrices
    overflow float16.

    Args:
        A: Input A_{l-1} of the layer, (B, n_in).
        Z: Pre-activation A W^T + b of the forward pass at the old parameters, (B, n_out).
        T: Target T_l of the layer's output, (B, n_out).
        W: Old weights W_l, (n_out, n_in).
        b: Old bias b_l, (n_out,), or None for a layer without a bias.
        lam_W: Proximal weight lam of the W call.
        lam_b: Proximal weight lam of the b call.
        relu: True for a hidden layer (s = ReLU), False for the output layer (s = identity). The two differ in their
            line search and first gradient.
        train_W: False keeps W and skips the W call.
        train_b: False keeps b and skips the b call.

    Returns:
        The new parameters and the traces of the calls.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    _check_shapes(A, Z, T, W, b)
    dtype = torch.promote_types(W.dtype, torch.float32)
    A, P, T = A.to(dtype), Z.to(dtype), T.to(dtype)
    bias = torch.zeros_like(P[:1]) if b is None else b.to(dtype)
    W_new, b_new, trace_W, trace_b = W, b, None, None
    if train_W:
        x, P, trace_W = _minimise(A, W.to(dtype), P, bias, T, lam_W, relu=relu)
        W_new = x.to(W.dtype)
    C = P - bias
    if b is not None and train_b:
        x, _, trace = _minimise(A.new_ones(len(A), 1), bias[:, None], P, C, T, lam_b, relu=relu)
        b_new = x[:, 0].to(b.dtype)
        trace_b = replace(trace, g1=trace.g1[:, 0])
    return PaperSolution(W_new, b_new, C, trace_W, trace_b)


def _check_shapes(A: Tensor, Z: Tensor, T: Tensor, W: Tensor, b: Tensor | None) -> None:
    """Refuse shapes that broadcasting would accept silently."""
    if A.ndim != 2 or W.ndim != 2 or A.shape[1] != W.shape[1]:
        raise ValueError(f"A (B, n_in) and W (n_out, n_in) do not fit: {tuple(A.shape)}, {tuple(W.shape)}")
    output = (len(A), len(W))
    if Z.shape != output or T.shape != output:
        raise ValueError(f"Z and T must be (B, n_out) = {output}, got {tuple(Z.shape)}, {tuple(T.shape)}")
    if b is not None and b.shape != output[1:]:
        raise ValueError(f"b must be (n_out,) = {output[1:]}, got {tuple(b.shape)}")


def _minimise(
    A: Tensor, x_old: Tensor, P: Tensor, const: Tensor, T: Tensor, lam: float, *, relu: bool
) -> tuple[Tensor, Tensor, CallTrace]:
    """Run the five iterations on f(x) = ||s(A x^T + const) - T||^2 + lam ||x - x_old||^2 from x_old.

    Args:
        A: (B, k) input; a column of ones for a bias.
        x_old: (n, k) starting point.
        P: (B, n) pre-activation A x_old^T + const.
        const: The constant term in P, broadcastable to (B, n).
        T: (B, n) target.
        lam: Proximal weight.
        relu: Whether s is ReLU and the rules of hidden layers hold.

    Returns:
        The point reached, its pre-activation and the trace.
    """
    E = torch.zeros_like(x_old, memory_format=torch.contiguous_format)  # x - x_old
    R, RM = _residual(P, T, relu)
    # x = x_old, hence no proximal term. The first g of the output layer leaves out the constant term.
    g1 = g = 2 * (RM if relu else P - const - T).T @ A
    gg, d = _dot(g, g), -g
    iterations = []
    for _ in range(ITERATIONS):
        Q = A @ d.T
        pairs = [(g, d), (R, R), (R, Q), (Q, Q), (E, E), (E, d), (d, d)]
        gd, rr, rq, qq, ee, ed, dd = torch.stack([_dot(*pair) for pair in pairs]).tolist()  # one transfer
        f = rr + lam * ee
        prox = _slope_and_curvature(2 * lam * ed, lam * dd)
        data = _relu_change(P, Q, R) if relu else _slope_and_curvature(2 * rq, qq)
        m0 = _hidden_power(f, gd) if relu else -1
        # A zero or NaN direction cannot be accepted: skip its trials.
        m = _line_search(data, prox, f, gd, m0) if dd > 0 else -1
        if m > 0:
            E.add_(d, alpha=RHO**m)
            P = P.add(Q, alpha=RHO**m)
            R, RM = _residual(P, T, relu)
        g = torch.addmm(E, RM.T, A, beta=2 * lam, alpha=2)
        gg_old, gg = gg, _dot(g, g)
        beta = gg / gg_old  # as tensors: 0/0 is NaN, not an exception
        d.mul_(beta).sub_(g)
        iterations.append(IterationTrace(m, m0, f, gd, beta.item()))
    rr, ee = torch.stack([_dot(R, R), _dot(E, E)]).tolist()
    return x_old + E, P, CallTrace(tuple(iterations), g1, rr + lam * ee, ee)


def _residual(P: Tensor, T: Tensor, relu: bool) -> tuple[Tensor, Tensor]:
    """Return R = s(P) - T and R * M, where M = [s(P) > 0] for ReLU and 1 for the identity."""
    if not relu:
        R = P - T
        return R, R
    R = P.relu() - T
    return R, R * (P > 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product <a, b> of two tensors of one shape, as a 0-dimensional tensor."""
    return torch.dot(a.flatten(), b.flatten())


def _slope_and_curvature(slope: float, curvature: float) -> Callable[[float], float]:
    """Return t -> t slope + t^2 curvature, the change of a quadratic."""
    return lambda t: t * (slope + t * curvature)


def _relu_change(P: Tensor, Q: Tensor, R: Tensor) -> Callable[[float], float]:
    """Return t -> ||R + S||^2 - ||R||^2, where S = relu(P + t Q) - relu(P) = max(t Q, -P) + min(P, 0)."""
    floor, offset = -P, P.clamp(max=0)
    S = torch.empty_like(P)

    def change(t: float) -> float:
        torch.mul(Q, t, out=S)
        torch.maximum(S, floor, out=S).add_(offset)
        return (_dot(S, S) + 2 * _dot(S, R)).item()

    return change


def _hidden_power(f: float, gd: float) -> int:
    """Return m0 of step 2 for a hidden layer; 0 when gd is zero or NaN."""
    ratio = 0.01 * f / abs(SIGMA * gd) if gd else math.inf
    if not ratio < 1:
        return 0
    return math.floor(math.log(max(ratio, sys.float_info.min)) / math.log(RHO))


def _line_search(data: Callable[[float], float], prox: Callable[[float], float], f: float, gd: float, m0: int) -> int:
    """Return the power m that step 2 chooses, or -1 when it accepts none.

    Args:
        data: t -> ||s(A (x + t d)^T + const) - T||^2.
        prox: t -> lam ||x + t d - x_old||^2.
        f: f(x).
        gd: <g, d>.
        m0: The hidden layer's m0, or -1 for the rule of the output layer.
    """

    def accepted(m: int) -> bool:
        t = RHO**m
        return f + (data(t) + prox(t)) < f + SIGMA * t * gd

    if m0 >= 0 and accepted(0):
        return m0  # untested, as published
    return next((m for m in range(m0 + 1, POWERS) if accepted(m)), -1)
