"""A training step written out by hand around ``solve_layer``: forward pass, targets, layers from the top."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sibp.prox.solvers.paper import CallTrace, IterationTrace, PaperSolution, solve_layer

DATA = Path(__file__).parent / "data"


@dataclass
class Case:
    """One golden file: settings, batches and initial parameters as tensors of one dtype."""

    golden: dict[str, np.ndarray]
    eta: float
    lam: float
    X: Tensor  # (K, B, n_0)
    labels: Tensor  # (K, B)
    Ws: list[Tensor]
    bs: list[Tensor]


def load(name: str, dtype: torch.dtype = torch.float64) -> Case:
    """Read ``data/<name>.npz``."""
    with np.load(DATA / f"{name}.npz") as archive:
        golden = dict(archive)
    X = golden["X_u8"] / 255.0 if "X_u8" in golden else golden["X"]
    layers = range(1, len(golden["sizes"]))
    return Case(
        golden,
        float(golden["eta"]),
        float(golden["lam"]),
        torch.tensor(X, dtype=dtype),
        torch.tensor(golden["labels"]),
        [torch.tensor(golden[f"W0_{layer}"], dtype=dtype) for layer in layers],
        [torch.tensor(golden[f"b0_{layer}"], dtype=dtype) for layer in layers],
    )


@dataclass
class LayerStep:
    """What one step did at one layer; A is the layer's input, T its target."""

    A: Tensor
    T: Tensor
    W_old: Tensor
    b_old: Tensor
    solution: PaperSolution


def sweep(X: Tensor, y: Tensor, Ws: list[Tensor], bs: list[Tensor], eta: float, lam: float) -> list[LayerStep]:
    """Do one step on a batch (steps 1-3) and put the new parameters into the lists; return layers 1..L."""
    As, Zs = [X], []
    for W, b in zip(Ws, bs, strict=True):
        Zs.append(As[-1] @ W.T + b)
        As.append(Zs[-1].relu())
    onehot = torch.nn.functional.one_hot(y, Zs[-1].shape[1]).to(X.dtype)
    D = Zs[-1].softmax(1) - onehot
    T = Zs[-1] - eta * D
    done: list[LayerStep] = []
    top = len(Ws) - 1
    for layer in range(top, -1, -1):
        A, W, b = As[layer], Ws[layer], bs[layer]
        solution = solve_layer(A, Zs[layer], T, W, b, lam, lam, relu=layer < top)
        assert solution.b is not None
        done.append(LayerStep(A, T, W, b, solution))
        Ws[layer], bs[layer] = solution.W, solution.b
        masked = D if layer == top else D * (As[layer + 1] > 0)
        D = masked @ solution.W
        T = A - eta * D
    return done[::-1]


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.double().numpy()


def _trace_arrays(prefix: str, trace: CallTrace | None) -> dict[str, np.ndarray]:
    assert trace is not None
    names = [field.name for field in fields(IterationTrace)]
    return {f"{prefix}_{name}": np.array([getattr(r, name) for r in trace.iterations]) for name in names}


def _layer_arrays(layer: int, step: LayerStep) -> dict[str, np.ndarray]:
    sol = step.solution
    assert sol.b is not None
    assert sol.trace_W is not None
    assert sol.trace_b is not None
    arrays = {
        "target": step.T, "F": step.A, "C": sol.C,
        "W_in": step.W_old, "W_out": sol.W, "W_g1": sol.trace_W.g1,
        "b_in": step.b_old, "b_out": sol.b, "b_g1": sol.trace_b.g1,
    }  # fmt: skip
    return {f"s1_l{layer}_{key}": _numpy(value) for key, value in arrays.items()}


def parameter_arrays(case: Case, k: int, Ws: list[Tensor], bs: list[Tensor]) -> dict[str, np.ndarray]:
    """Return the parameters after step k under their golden keys (v4: sampled entries, norms and logits)."""
    arrays = {}
    sampled = "X_u8" in case.golden
    for layer, (W, b) in enumerate(zip(Ws, bs, strict=True), start=1):
        arrays[f"b{k}_{layer}"] = _numpy(b)
        if sampled and k > 0:
            row, col = case.golden[f"idx_{layer}"].T
            W, W0 = _numpy(W), case.golden[f"W0_{layer}"].astype(np.float64)
            arrays[f"W{k}_{layer}_at"] = W[row, col]
            arrays[f"W{k}_{layer}_fro"] = np.linalg.norm(W)
            arrays[f"W{k}_{layer}_dfro"] = np.linalg.norm(W - W0)
        else:
            arrays[f"W{k}_{layer}"] = _numpy(W)
    if sampled and k > 0:
        A = torch.tensor(case.golden["probe_u8"] / 255.0, dtype=Ws[0].dtype)
        hidden = (A @ Ws[0].T + bs[0]).relu()
        arrays[f"logits{k}"] = _numpy(hidden @ Ws[1].T + bs[1])
    return arrays


def run(case: Case) -> dict[str, np.ndarray]:
    """Do all steps of a case; return everything that was computed under its golden key."""
    Ws, bs = list(case.Ws), list(case.bs)
    arrays = parameter_arrays(case, 0, Ws, bs)
    for k, (X, y) in enumerate(zip(case.X, case.labels, strict=True), start=1):
        for layer, step in enumerate(sweep(X, y, Ws, bs, case.eta, case.lam), start=1):
            if k == 1:
                arrays |= _layer_arrays(layer, step)
            arrays |= _trace_arrays(f"s{k}_l{layer}_W", step.solution.trace_W)
            arrays |= _trace_arrays(f"s{k}_l{layer}_b", step.solution.trace_b)
        arrays |= parameter_arrays(case, k, Ws, bs)
    return arrays


def deviation(actual: np.ndarray, expected: np.ndarray) -> float:
    """Return the largest error relative to the largest expected entry; equal NaNs count as equal."""
    actual, expected = np.asarray(actual, dtype=float), np.asarray(expected, dtype=float)
    if actual.shape != expected.shape or not np.array_equal(np.isnan(actual), np.isnan(expected)):
        return np.inf
    error = np.nanmax(np.abs(actual - expected), initial=0.0)
    scale = np.nanmax(np.abs(expected), initial=0.0)
    if error == 0.0 or scale == 0.0:
        return 0.0 if error == 0.0 else np.inf
    return float(error / scale)
