"""Random layers, and dense references for their subproblems in numpy and scipy."""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sibp import activations
from sibp.activations import Activation
from sibp.prox.operators import DenseFeatures
from sibp.prox.solvers.coordinates import Direct, Span
from sibp.prox.status import Solution

SIDES: list[type[Span] | type[Direct]] = [Span, Direct]
MOVES = [(True, True), (True, False), (False, True)]  # (weight, bias)

# Every activation beside torch's own function.
ACTIVATIONS: dict[str, tuple[Activation, Callable[[Tensor], Tensor]]] = {
    "identity": (activations.IDENTITY, lambda z: z * 1),
    "relu": (activations.RELU, F.relu),
    "leaky_relu": (activations.leaky_relu(0.2), lambda z: F.leaky_relu(z, 0.2)),
    "tanh": (activations.TANH, torch.tanh),
    "sigmoid": (activations.SIGMOID, torch.sigmoid),
    "gelu": (activations.gelu(), F.gelu),
    "gelu_tanh": (activations.gelu("tanh"), lambda z: F.gelu(z, approximate="tanh")),
    "silu": (activations.SILU, F.silu),
    "elu": (activations.elu(1.5), lambda z: F.elu(z, 1.5)),
    "softplus": (activations.softplus(2.0, 15.0), lambda z: F.softplus(z, 2.0, 15.0)),
    "mish": (activations.MISH, F.mish),
    "hardswish": (activations.HARDSWISH, F.hardswish),
    "hardtanh": (activations.hardtanh(-2.0, 8.0), lambda z: F.hardtanh(z, -2.0, 8.0)),
    "relu6": (activations.RELU6, F.relu6),
    "prelu": (activations.prelu(torch.tensor([0.3])), lambda z: F.prelu(z, torch.tensor([0.3]).to(z.dtype))),
}


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Normal numbers, the same ones in every dtype."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def features_matrix(features: DenseFeatures) -> np.ndarray:
    """[A, 1] as numpy, without the columns of frozen parameters; (g, N, k)."""
    A = features.A.double().numpy()
    parts = [A] * features.weight + [np.ones((*A.shape[:-1], 1))] * features.bias
    return np.concatenate(parts, axis=-1)


def ridge(P: np.ndarray, R: np.ndarray, lam: float) -> np.ndarray:
    """argmin_X ||R + P X||^2 + lam ||X||^2 as an ordinary least-squares problem, (k, m)."""
    stacked = np.vstack([P, np.sqrt(lam) * np.eye(P.shape[1])])
    right = np.vstack([-R, np.zeros((P.shape[1], R.shape[1]))])
    return np.linalg.lstsq(stacked, right, rcond=None)[0]


def moved(solution: Solution) -> np.ndarray:
    """The displacement [dW, db]' of a solution, (g, k, m)."""
    dW, db = solution.coordinates.displacement(solution.x)
    parts = ([dW.mT] if dW is not None else []) + ([db.unsqueeze(-2)] if db is not None else [])
    return torch.cat(parts, -2).double().numpy()


def objective(P: np.ndarray, Z: Tensor, T: Tensor, lam: float, s: Callable[[Tensor], Tensor], X: np.ndarray) -> Tensor:
    """||s(Z + P X) - T||^2 + lam ||X||^2 neuron by neuron, (g, m)."""
    change = torch.from_numpy(P @ X)
    return (s(Z.double() + change) - T.double()).square().sum(-2) + lam * torch.from_numpy(X).square().sum(-2)
