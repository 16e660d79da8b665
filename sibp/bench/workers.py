"""Training steps that can be timed: one net, one method, one device."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch import nn

from sibp.bench import modes, published
from sibp.bench.nets import NAMED, Case
from sibp.bench.proxprop import ProxPropNet
from sibp.experiment.compose import CONFIGS
from sibp.experiment.optimizers import build_optimizer
from sibp.optim import SIBP, ProxBP
from sibp.runs.errors import UserError

SGD, PROXBP, PROXPROP, PAPER, PUBLISHED = "sgd", "proxbp", "proxprop", "paper", "published"
PORTS = (PAPER, PUBLISHED, PROXPROP)
"""Steps as other authors published them, timed only for comparison."""
PEERS = ("adam", "muon", "soap", "kfac", "foof")
"""Alternative optimizers, with the settings of configs/optimizer."""
METHODS = (SGD, "exact", "cg:3", "cg:5", PROXBP)
ETA, LAM, SGD_STEP = 0.1, 1.0, 0.1
_POOL_BYTES, _POOL_MAX = 200_000_000, 50
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class Worker:
    """Takes training steps of a method on a net, cycling through a pool of random batches.

    `restart` returns to the initial weights, so that every timed stretch is the same work, and no method gains from
    training better.
    """

    def __init__(self, case: Case, method: str, device: str = "cpu", dtype: str = "float32", pool: int = 0) -> None:
        """Builds the net, its optimizer and the batches.

        Args:
            case: net and batch size.
            method: "sgd"; "exact", "cg:K" or "paper", the solvers of `SIBP`; "proxbp", `ProxBP` with its closed form;
                "proxprop", its authors' own step; "published", the step of "paper" with one product per trial;
                or one of `PEERS`; with one of `modes.MODES` after a plus sign, such as "exact+graph".
            device: "cpu" or "cuda".
            dtype: "float32" or "float64".
            pool: number of batches; 0: as many as fit into a limited amount of memory.
        """
        model = case.model().to(device, _DTYPES[dtype])
        method, mode = modes.split(method)
        self.model, self.optimizer = _prepared(model, method)
        self.period = _period(method)
        self._weights = list(model.parameters())
        self._initial: list[torch.Tensor] = []
        size = case.batch * torch.Size(case.shape).numel() * 4
        generator = torch.Generator().manual_seed(1)
        self._batches = []
        for _ in range(pool or min(_POOL_MAX, 1 + _POOL_BYTES // (size * len(METHODS)))):
            x = torch.randn(case.batch, *case.shape, generator=generator).to(device, _DTYPES[dtype])
            y = torch.randint(case.classes, (case.batch,), generator=generator).to(device)
            self._batches.append((x, y))
        self._next = 0
        self._take = self._train
        if mode:
            self.restart()  # saves the weights: recording a graph takes steps
            make = modes.compiled if mode == "compile" else modes.graph
            self._take = make(self._train, *self._batches[0])

    def step(self) -> None:
        """One step as in an ordinary training loop."""
        x, y = self._batches[self._next]
        self._next = (self._next + 1) % len(self._batches)
        self._take(x, y)

    def _train(self, x: torch.Tensor, y: torch.Tensor) -> None:
        if self.optimizer is None:
            published.step([m for m in self.model.modules() if isinstance(m, nn.Linear)], x, y, ETA, LAM)
            return
        self.optimizer.zero_grad()
        F.cross_entropy(self.model(x), y).backward()
        self.optimizer.step()

    @torch.no_grad()
    def restart(self) -> None:
        """Returns to the weights of the first call and to the first batch."""
        self._initial = self._initial or [p.detach().clone() for p in self._weights]
        for p, initial in zip(self._weights, self._initial, strict=True):
            p.copy_(initial)
        self._next = 0


def check_methods(methods: Sequence[str], case: Case, device: str = "cpu") -> None:
    """Refuses unknown methods, and those that do not support a net.

    Args:
        methods: names.
        case: the net.
        device: "cpu" or "cuda".

    Raises:
        UserError: naming the method.
    """
    for name in methods:
        method, mode = modes.split(name)
        if (mode or "+" in name) and mode not in modes.MODES:
            raise UserError(f"--methods {name} is not a method: after + comes {' or '.join(modes.MODES)}.")
        if mode == "graph" and device != "cuda":
            raise UserError(f"--methods {name}: graphs are CUDA's; leave it out, or use --device cuda.")
        if method in PEERS:
            try:
                _prepared(case.model(), method)
            except UserError as error:
                raise UserError(f"--methods {method} is not for --net {case.net}: {error}.") from error
            continue
        try:
            _prepared(nn.Sequential(nn.Linear(1, 1)), method)
        except ValueError as error:
            known = f"{', '.join(METHODS)}, cg:K, {', '.join((*PORTS, *PEERS))}"
            raise UserError(f"--methods {method} is not a method: choose from {known}.") from error
        if method in PORTS and (case.net in NAMED or (case.activation and method != PROXPROP)):
            raise UserError(f"--methods {method} is for MLPs with ReLU: leave it out, or leave out {case.label}.")


def _prepared(model: nn.Sequential, method: str) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    if method == PUBLISHED:
        return model, None
    if method == SGD:
        return model, torch.optim.SGD(model.parameters(), lr=SGD_STEP)
    if method == PROXBP:
        return model, ProxBP(model, lr=ETA, prox_weight=LAM, solver="exact")
    if method == PROXPROP:
        return ProxPropNet(model, ETA, LAM), torch.optim.SGD(model.parameters(), lr=1.0)
    if method in PEERS:
        return model, build_optimizer(_settings(method), model)
    return model, SIBP(model, lr=ETA, prox_weight=LAM, solver=method)


def _settings(peer: str) -> dict[str, Any]:
    """The settings of a peer in `configs/optimizer`."""
    return yaml.safe_load((CONFIGS / "optimizer" / f"{peer}.yaml").read_text())


def _period(method: str) -> int:
    """Steps between two updates of a preconditioner; 1 if all steps cost the same."""
    settings = _settings(method) if method in PEERS else {}
    return settings.get("inverse_every") or settings.get("every") or 1
