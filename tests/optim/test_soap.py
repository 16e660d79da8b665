"""SOAP from its package: it differs from Adam as published, and a config selects it."""

import sys

import pytest
import torch
from torch import Tensor, nn

from sibp.experiment.compose import compose
from sibp.experiment.optimizers import build_optimizer
from sibp.runs.errors import UserError

F64 = torch.float64


def rotation(n: int, seed: int) -> Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=torch.Generator().manual_seed(seed), dtype=F64))[0]


class Fit(nn.Module):
    """||X U W V - Y||^2 and a W that starts where U W V does not depend on the rotations U and V."""

    def __init__(self, U: Tensor, V: Tensor):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.X, self.Y = (torch.randn(30, n, generator=generator, dtype=F64) for n in (4, 3))
        self.U, self.V = U, V
        self.W = nn.Parameter(U.T @ torch.randn(4, 3, generator=generator, dtype=F64) @ V.T)

    def product(self) -> Tensor:
        return self.U @ self.W @ self.V

    def loss(self) -> Tensor:
        scale = torch.tensor([1.0, 0.5, 0.2, 0.1], dtype=F64)  # an ill-conditioned problem
        return ((self.X * scale) @ self.product() - self.Y).square().mean()


def end(name: str, steps: int, rotated: bool, **settings: float) -> Tensor:
    U, V = (rotation(4, 1), rotation(3, 2)) if rotated else (torch.eye(4, dtype=F64), torch.eye(3, dtype=F64))
    model = Fit(U, V)
    optimizer = build_optimizer(compose([f"optimizer={name}"])["optimizer"] | settings, model)
    for _ in range(steps):
        optimizer.zero_grad()
        model.loss().backward()
        optimizer.step()
    return model.product().detach()


def test_steps_do_not_depend_on_the_basis():
    """In the eigenbasis of its preconditioner a step is the same for rotated weights; Adam's is not."""
    rotated, straight = end("soap", 40, True, lr=0.02), end("soap", 40, False, lr=0.02)
    torch.testing.assert_close(rotated, straight, rtol=1e-3, atol=1e-4)
    rotated, straight = end("adam", 40, True, lr=0.02), end("adam", 40, False, lr=0.02)
    assert (rotated - straight).norm() > 0.01 * straight.norm()


def test_without_a_preconditioned_side_it_is_adam():
    """But for its first step, which moves nothing, and the place of its epsilon, before the bias correction."""
    found = end("soap", 6, False, lr=0.02, largest=1, beta1=0.9, beta2=0.999)
    torch.testing.assert_close(found, end("adam", 5, False, lr=0.02), rtol=1e-3, atol=1e-5)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(UserError, match=r'optimizer=soap cannot be built: .*pip install -e "\.\[peers\]"'):
        build_optimizer(compose(["optimizer=soap"])["optimizer"], nn.Linear(2, 2))
