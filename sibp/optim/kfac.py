"""K-FAC (Martens & Grosse, ICML 2015, arXiv 1503.05671; Grosse & Martens 2016, arXiv 1602.01407 for convolutions)."""

import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sibp.capture.tap import LayerProblem, LayerUpdate, Tap
from sibp.optim.base import Explicit, TappedOptimizer
from sibp.optim.checks import in_range, whole
from sibp.optim.fallback import MakeFallback
from sibp.prox.solvers.coordinates import Direct
from sibp.prox.solvers.inverse import damped_inverse

# Draws that never raise: outputs that are not finite are the training loop's to notice.


def _categorical(logits: Tensor) -> Tensor:
    p = logits.softmax(-1)
    y = (p / torch.empty_like(p).exponential_()).argmax(-1, keepdim=True)
    return p.scatter_add(-1, y, p.new_full((), -1.0).expand(y.shape))


def _bernoulli(logits: Tensor) -> Tensor:
    p = logits.sigmoid()
    return p - (torch.rand_like(p) < p).to(p.dtype)


LIKELIHOODS: dict[str, Callable[[Tensor], Tensor]] = {
    "categorical": _categorical,
    "bernoulli": _bernoulli,
    "gaussian": torch.randn_like,
}
"""Gradient of -log p(y | outputs) with respect to the outputs (B, n), y drawn from the model itself."""


class KFAC(TappedOptimizer):
    r"""Natural gradient with a Kronecker-factored Fisher matrix for every layer.

    For every layer with inputs Phi = [A, 1] and per-sample differences D of the loss, D^F of labels drawn from the
    model's own distribution (one a sample, by a second backward pass), B samples, N rows of Phi:

    .. math::
        \bar A &\leftarrow m \bar A + (1 - m) \Phi^\top \Phi / B, \qquad
        \bar G \leftarrow m \bar G + (1 - m) {D^F}^\top D^F / N \\
        [W, b] &\leftarrow [W, b] - \eta (\bar G + \tfrac{\sqrt\lambda}{\pi} I)^{-1} (D^\top \Phi / B)
            (\bar A + \pi \sqrt\lambda I)^{-1}, \qquad
        \pi^2 = \frac{\operatorname{tr} \bar A / \dim \bar A}{\operatorname{tr} \bar G / \dim \bar G}

    (sections 3 and 6.3 of the paper). What it lacks of the paper: step sizes and momentum by the exact Fisher matrix,
    and damping that adapts; the block-tridiagonal inverse. All are fixed here, as in Benzing's comparison (2201.12250).

    Args:
        model: as for `SIBP`; its output has to be what the likelihood is about, (B, n).
        lr: eta.
        damping: lam.
        decay: m, 0.95 in the paper.
        inverse_every: steps between two inversions (after the first, second, fourth, eighth, ...); 20 in the paper.
        likelihood: of the model's outputs: "categorical" for cross-entropy on logits, "bernoulli" for binary
            cross-entropy on logits, "gaussian" for half the squared error.
        loss_average: as for `SIBP`.
        params: as for `SIBP`.
        weight_decay: as for `SIBP`.
        fallback: as for `SIBP`.
        explicit: as for `SIBP`.

    Raises:
        ValueError: for hyper-parameters out of range.
        TypeError: for a model that cannot be tapped.
    """

    def __init__(
        self,
        model: nn.Module,
        lr: float = 0.1,  # eta
        damping: float = 0.1,  # lambda in the paper
        decay: float = 0.95,  # the largest epsilon in the paper
        inverse_every: int = 20,  # T_3 in the paper
        likelihood: str = "categorical",
        loss_average: bool | int = True,
        *,
        params: Iterable[nn.Parameter] | Iterable[dict[str, Any]] | None = None,
        weight_decay: float = 0.0,
        fallback: MakeFallback | None = None,
        explicit: Explicit = (),
    ) -> None:
        defaults = {
            "lr": lr,
            "damping": damping,
            "decay": decay,
            "inverse_every": inverse_every,
            "likelihood": likelihood,
            "weight_decay": weight_decay,
        }
        super().__init__(model, params, defaults, loss_average, fallback, explicit)

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of its range."""
        in_range(group, "lr", 0)
        in_range(group, "damping", 0, open_at_low=True)
        in_range(group, "decay", 0, 1)
        in_range(group, "weight_decay", 0)
        whole(group, "inverse_every")
        if group["likelihood"] not in LIKELIHOODS:
            raise ValueError(f"Invalid likelihood: {group['likelihood']!r}; choose one of {', '.join(LIKELIHOODS)}.")

    def sample(self, outputs: Tensor) -> None:
        """Sends the difference of drawn labels back through the graph of `outputs`, for the second factor.

        Args:
            outputs: (B, n) of the model, still in the graph.
        """
        layers = [p for tap in self._taps.values() for p in tap.parameters.values() if p.requires_grad]
        if not (self.active() and outputs.requires_grad and layers):
            return
        self._sampling = True
        try:
            D = LIKELIHOODS[self.param_groups[0]["likelihood"]](outputs.detach())
            torch.autograd.grad(outputs, layers, D, retain_graph=True, allow_unused=True)
        finally:
            self._sampling = False

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """One layer's step; while sampling, its factors."""
        phi, memory, B = Direct(problem.features), self.memory(tap), self._batch or 1
        if self._sampling:
            D = problem.features.flat(problem.D_z)  # a row a position
            self._observe(memory, phi.gram / B, D.mT @ D / D.shape[-2], group)
            gradient = phi.gram.new_zeros(()).expand(phi.gram.shape[:-1] + problem.D_z.shape[-1:])
            return LayerUpdate(*phi.displacement(gradient))
        size = group["lr"] * problem.terms / B
        gradient = phi.adjoint(size * problem.D_z)
        return LayerUpdate(*phi.displacement(memory["A_inverse"] @ gradient @ memory["G_inverse"]))

    def _observe(self, memory: dict[str, Any], A: Tensor, G: Tensor, group: dict[str, Any]) -> None:
        """Takes a batch into the running factors, and inverts them when it is time."""
        m, T, t = group["decay"], group["inverse_every"], memory.get("step", 0)
        memory["step"] = t + 1
        memory["weight"] = m * memory.get("weight", 0.0) + (1 - m)
        memory["A"] = A = memory.get("A", A).lerp(A, (1 - m) / memory["weight"])
        memory["G"] = G = memory.get("G", G).lerp(G, (1 - m) / memory["weight"])
        if t % T == 0 or (t < T and t & (t - 1) == 0):
            a, g = (M.diagonal(dim1=-2, dim2=-1).mean(-1).clamp_min(torch.finfo(M.dtype).tiny) for M in (A, G))
            pi, root = (a / g).sqrt(), group["damping"] ** 0.5
            memory["A_inverse"], memory["G_inverse"] = damped_inverse(A, pi * root), damped_inverse(G, root / pi)

    def _reset(self) -> None:
        super()._reset()
        self._sampling = False

    def _own(self, tap: Tap, group: int) -> None:
        if not self._taps:
            self._hooks.append(self.model.register_forward_hook(_Sampler(self)))
        super()._own(tap, group)


class _Sampler:
    """The forward hook of the whole model; one that was copied with a model does nothing."""

    def __init__(self, owner: KFAC | None = None) -> None:
        self.owner = weakref.ref(owner) if owner is not None else lambda: None

    def __call__(self, module: nn.Module, inputs: Any, outputs: Tensor) -> None:
        del inputs
        owner = self.owner()
        if owner is not None and module is owner.model:
            owner.sample(outputs)

    def __deepcopy__(self, memo: Any) -> "_Sampler":
        return _Sampler()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Sampler, ()


def build(model: nn.Module, *, lr: float, damping: float, decay: float, inverse_every: int, likelihood: str) -> KFAC:
    """K-FAC, as a config names it."""
    return KFAC(model, lr, damping, decay, inverse_every, likelihood)
