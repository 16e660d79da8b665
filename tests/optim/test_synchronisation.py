"""A training step reads no value from an accelerator, as each read makes the CPU wait for the device.

No accelerator is needed. Solvers decide by reading on the CPU alone, so the tests first have them take the way of an
accelerator (`scalars.scalar` leaves tensors be, no kernels), and then forbid every operation by which a number is read.
"""

import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from sibp import SIBP, ProxBP
from sibp.prox import scalars
from sibp.prox.kernels import disabled
from sibp.prox.solvers import nonlinear

ATEN = torch.ops.aten
READING = {  # copies numbers to the CPU, or has a data-dependent shape
    ATEN._local_scalar_dense.default, ATEN.nonzero.default, ATEN.masked_select.default, ATEN.equal.default,
    ATEN._to_copy.default, ATEN.is_nonzero.default, ATEN.linalg_cholesky.default, ATEN._linalg_check_errors.default,
}  # fmt: skip


class NothingRead(TorchDispatchMode):
    """Refuses operations that would synchronise with an accelerator."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls the operation, unless it synchronises."""
        kwargs = kwargs or {}
        copies = func is ATEN._to_copy.default and kwargs.get("device") is None  # another dtype, on the device
        masked = func is ATEN.index.Tensor and any(i is not None and i.dtype is torch.bool for i in args[1])
        if masked or (func in READING and not copies):
            raise AssertionError(f"{func} has the CPU wait for an accelerator")
        return func(*args, **kwargs)


@pytest.fixture
def as_on_an_accelerator(monkeypatch: pytest.MonkeyPatch):
    reading = scalars.scalar
    for name, module in list(sys.modules.items()):
        if name.startswith("sibp.") and getattr(module, "scalar", None) is reading:
            monkeypatch.setattr(module, "scalar", lambda tensor: tensor)
    monkeypatch.setattr(nonlinear, "_may_read_values", lambda Z: False)
    with disabled():
        yield


def mlp() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 7), nn.GELU(), nn.Linear(7, 3)), torch.randn(12, 9)


def convnet() -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3)]
    return nn.Sequential(*layers), torch.randn(12, 2, 6, 6)


METHODS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "SIBP exact": lambda model: SIBP(model, solver="exact"),
    "SIBP cg:3": lambda model: SIBP(model, solver="cg:3"),
    "SIBP cg:3, old weights": lambda model: SIBP(model, solver="cg:3", backward_weights="old"),
    "ProxBP": lambda model: ProxBP(model, solver="exact"),
    "ProxBP gradient": lambda model: ProxBP(model, solver="gradient"),
}


@pytest.mark.parametrize("build", [mlp, convnet])
@pytest.mark.parametrize("method", METHODS)
def test_a_step_never_synchronises(method, build, as_on_an_accelerator):
    model, x = build()
    y = torch.arange(12) % 3
    optimizer = METHODS[method](model)
    before = [p.clone() for p in model.parameters()]
    with NothingRead():
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert all(not torch.equal(p, q) for p, q in zip(before, model.parameters(), strict=True))


@pytest.mark.parametrize("read", ["item", "bool", "float", "nonzero", "cpu", "where"])
def test_the_guard_detects_synchronisation(read):
    x = torch.ones(3)
    calls = {
        "item": lambda: x[0].item(), "bool": lambda: bool(x[0] > 0), "float": lambda: float(x.sum()),
        "nonzero": lambda: x.nonzero(), "cpu": lambda: x.to(device="meta"), "where": lambda: x[x > 0],
    }  # fmt: skip
    with pytest.raises((AssertionError, RuntimeError)), NothingRead():
        calls[read]()
