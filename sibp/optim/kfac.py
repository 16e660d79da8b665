"""K-FAC (Martens & Grosse, ICML 2015, arXiv 1503.05671; Grosse & Martens 2016, arXiv 1602.01407 for convolutions)."""

import weakref
from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import torch
from torch import Tensor, nn

from sibp.capture.problem import LayerProblem, LayerUpdate
from sibp.capture.tap import Tap
from sibp.internals import backward_pass
from sibp.optim.checks import in_range, whole
from sibp.optim.guard import GuardedOptimizer, finite_or
from sibp.optim.options import PeerOptions
from sibp.prox.solvers.coordinates import Direct
from sibp.prox.solvers.inverse import damped_inverse

# These functions never raise: non-finite outputs are left for the training loop to detect.


def _categorical(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    p = logits.softmax(-1)
    y = (p / torch.empty_like(p).exponential_(generator=generator)).argmax(-1, keepdim=True)
    return p.scatter_add(-1, y, p.new_full((), -1.0).expand(y.shape))


def _bernoulli(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    p = logits.sigmoid()
    return p - (torch.empty_like(p).uniform_(generator=generator) < p).to(p.dtype)


def _gaussian(means: Tensor, generator: torch.Generator | None) -> Tensor:
    return torch.empty_like(means).normal_(generator=generator)


LIKELIHOODS: dict[str, Callable[[Tensor, torch.Generator | None], Tensor]] = {
    "categorical": _categorical,
    "bernoulli": _bernoulli,
    "gaussian": _gaussian,
}
"""Functions that draw labels y from the model and return the gradient of -log p(y | outputs) in the outputs (B, n)."""


class KFAC(GuardedOptimizer):
    r"""Natural gradient with a Kronecker-factored Fisher matrix for every layer.

    Every layer has inputs Phi = [A, 1], N rows for B samples, and error signals E = dL/dZ of the summed loss. A second
    backward pass gives the error signals E^F of labels that are drawn from the model's own distribution, one for each
    sample:

    .. math::
        \bar A &\leftarrow m \bar A + (1 - m) \Phi^\top \Phi / B, \qquad
        \bar G \leftarrow m \bar G + (1 - m) {E^F}^\top E^F / N \\
        [W, b] &\leftarrow [W, b] - \eta (\bar G + \tfrac{\sqrt\lambda}{\pi} I)^{-1} (E^\top \Phi / B)
            (\bar A + \pi \sqrt\lambda I)^{-1}, \qquad
        \pi^2 = \frac{\operatorname{tr} \bar A / \dim \bar A}{\operatorname{tr} \bar G / \dim \bar G}

    (sections 3 and 6.3 of the paper). Not implemented: step sizes and momentum from the exact Fisher matrix, adaptive
    damping, and the block-tridiagonal inverse. Step size and damping are fixed, as in Benzing's comparison
    (2201.12250).

    Args:
        model: as for `SIBP`; its output must be one tensor (B, n), the parameters of the likelihood.
        lr: eta, the step size for the mean loss, >= 0.
        damping: lam, > 0.
        decay: m, 0.95 in the paper.
        inverse_every: steps from one inversion to the next, 20 in the paper. The first inversions are in the first step
            and after 1, 2, 4, 8, ... steps.
        likelihood: of the model's outputs: "categorical" for cross-entropy on logits, "bernoulli" for binary
            cross-entropy on logits, "gaussian" for half the squared error.
        generator: random number generator of the labels; default: torch's global one. Its state is not part of
            `state_dict`.
        **options: `loss_average`, `params`, `weight_decay`, `fallback`, `explicit`: see `PeerOptions`.

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
        *,
        generator: torch.Generator | None = None,
        **options: Unpack[PeerOptions],
    ) -> None:
        self.generator = generator
        defaults = {
            "lr": lr,
            "damping": damping,
            "decay": decay,
            "inverse_every": inverse_every,
            "likelihood": likelihood,
        }
        super().__init__(model, defaults, **options)

    def check(self, group: dict[str, Any]) -> None:
        """Raises ValueError if a setting of the group is out of range."""
        super().check(group)
        in_range(group, "damping", 0, open_at_low=True)
        in_range(group, "decay", 0, 1)
        whole(group, "inverse_every")
        if group["likelihood"] not in LIKELIHOODS:
            raise ValueError(f"Invalid likelihood: {group['likelihood']!r}; choose one of {', '.join(LIKELIHOODS)}.")

    def before_forward(self, layer: str) -> None:
        """Extends the base class: refuses a layer that is called outside the model's own forward pass.

        Raises:
            RuntimeError: if no labels would be drawn for this call.
        """
        recomputed = backward_pass() != -1  # activation checkpointing, inside a backward pass
        if not (self._in_forward_pass or recomputed):
            raise RuntimeError(
                f"layer '{layer}' was called outside the model's own forward pass, and K-FAC draws labels for "
                "the outputs of that pass only: call the whole model, model(x), or wrap the call in "
                "`with optimizer.paused():` if it is not for training."
            )
        super().before_forward(layer)

    def begin_forward(self) -> None:
        """Called when the model's forward pass starts."""
        self._in_forward_pass = True

    def sample_labels(self, outputs: Any) -> None:
        """Draws labels and propagates their error signal back through the graph of `outputs`, for the factor G.

        Args:
            outputs: (B, n) the model's output, still in the graph; None if the forward pass raised.

        Raises:
            RuntimeError: if the likelihood does not apply to such outputs.
        """
        self._in_forward_pass = False
        layers = [p for tap in self.layers for p in tap.parameters.values() if p.requires_grad]
        if not (self.active() and torch.is_grad_enabled() and layers) or outputs is None:
            return
        likelihood = self.group_of(next(iter(self.layers)))["likelihood"]
        _check_outputs(outputs, likelihood)
        if not outputs.requires_grad:
            return
        self._sampled_layers.clear()
        self._sampling = True
        try:
            D = LIKELIHOODS[likelihood](outputs.detach(), self.generator)
            torch.autograd.grad(outputs, layers, D, retain_graph=True, allow_unused=True)
        finally:
            self._sampling = False

    def layer_update(self, tap: Tap, problem: LayerProblem, group: dict[str, Any]) -> LayerUpdate:
        """One layer's step; in the backward pass of the sampled labels, updates its factors instead.

        Raises:
            RuntimeError: if the model's output does not depend on the layer.
        """
        phi, memory, B = Direct(problem.features), self.statistics(tap, problem), self._batch or 1
        if self._sampling:
            self._sampled_layers.add(tap.name)
            if problem.D_z.numel():  # an empty batch has no curvature
                E = problem.features.flat(problem.D_z)  # one row per position
                self._update_factors(memory, phi.gram / B, E.mT @ E / E.shape[-2], group)
            gradient = phi.gram.new_zeros(()).expand(phi.gram.shape[:-1] + problem.D_z.shape[-1:])
            return LayerUpdate(*phi.displacement(gradient))
        if tap.name not in self._sampled_layers:
            raise RuntimeError(
                f"layer '{tap.name}': K-FAC has drawn no labels for it, as the model's output does not depend on it; "
                f"leave it to the fallback optimizer with explicit=['{tap.name}']."
            )
        size = group["lr"] * problem.terms / B
        gradient = phi.adjoint(size * problem.D_z)
        if "A_inverse" not in memory:  # only empty batches so far
            return LayerUpdate(*phi.displacement(torch.zeros_like(gradient)))
        displacement = memory["A_inverse"] @ gradient @ memory["G_inverse"]
        self.record_step(tap, gradient, displacement, group)
        return LayerUpdate(*phi.displacement(displacement))

    def record_step(self, tap: Tap, gradient: Tensor, displacement: Tensor, group: dict[str, Any]) -> None:
        """Called with each layer's step, for subclasses.

        Args:
            tap: the layer.
            gradient: (..., size, m) gradient of the mean loss in weight and bias, times eta.
            displacement: W_old - W_new and b_old - b_new, in the same layout.
            group: the param group with the layer's settings.
        """

    def _update_factors(self, memory: dict[str, Any], A: Tensor, G: Tensor, group: dict[str, Any]) -> None:
        """Updates the running factors with a batch, and inverts them when due."""
        m, T, t = group["decay"], group["inverse_every"], memory.get("step", 0)
        memory["step"] = t + 1
        memory["weight"] = m * memory.get("weight", 0.0) + (1 - m)
        for key, M in (("A", A), ("G", G)):
            M = finite_or(M, partial(memory.get, key, torch.zeros_like(M)))
            memory[key] = memory.get(key, M).lerp(M, (1 - m) / memory["weight"])
        if t % T == 0 or (t < T and t & (t - 1) == 0):
            for key, inverse in zip(("A_inverse", "G_inverse"), _inverses(memory, group["damping"]), strict=True):
                memory[key] = finite_or(inverse, partial(memory.get, key, torch.zeros_like(inverse)))

    def _reset(self) -> None:
        super()._reset()
        self._sampling = False
        self._in_forward_pass = False  # whether the model's own forward pass is running
        self._sampled_layers: set[str] = set()  # layers for which the last forward pass has drawn labels

    def __getstate__(self) -> dict[str, Any]:
        """Extends the base class by the generator."""
        return {**super().__getstate__(), "generator": self.generator}

    def add_tap(self, tap: Tap, group: int) -> None:
        """Registers a layer; with the first one, adds hooks to the model that draw labels."""
        if not self.layers:
            enter, leave = _Hook(self, "begin_forward"), _Hook(self, "sample_labels")
            self._hooks.append(self.model.register_forward_pre_hook(enter))
            self._hooks.append(self.model.register_forward_hook(leave, always_call=True))
        super().add_tap(tap, group)


def _check_outputs(outputs: Any, likelihood: str) -> None:
    """Raises RuntimeError for model outputs to which the likelihood does not apply."""
    if not isinstance(outputs, Tensor):
        raise RuntimeError(
            f"K-FAC: the model returns a {type(outputs).__name__}, and labels can only be drawn for one tensor of "
            "outputs (B, n); let its forward return only that."
        )
    if likelihood == "categorical" and outputs.dim() > 2:
        raise RuntimeError(
            f"K-FAC: the model's output has shape {tuple(outputs.shape)}, and likelihood='categorical' is for logits "
            "(B, n), one row per label; let its forward move the classes to the last axis and flatten the others."
        )


def _inverses(memory: dict[str, Any], damping: float) -> tuple[Tensor, Tensor]:
    """Inverses of A + pi sqrt(lam) I and G + sqrt(lam)/pi I; pi is 1 if a trace is 0."""
    A, G = memory["A"], memory["G"]
    a, g = (M.diagonal(dim1=-2, dim2=-1).mean(-1) for M in (A, G))
    pi, root = (a / g).sqrt(), damping**0.5
    pi = torch.where(pi.isfinite() & (pi > 0), pi, 1)
    return damped_inverse(A, pi * root), damped_inverse(G, root / pi)


class _Hook:
    """A forward hook of the whole model that calls the optimizer; its copy in a copied model does nothing."""

    def __init__(self, owner: KFAC | None = None, method: str = "") -> None:
        self.owner = weakref.ref(owner) if owner is not None else lambda: None
        self.method = method

    def __call__(self, module: nn.Module, inputs: Any, *outputs: Any) -> None:
        del inputs
        owner = self.owner()
        if owner is not None and module is owner.model:
            getattr(owner, self.method)(*outputs)

    def __deepcopy__(self, memo: Any) -> "_Hook":
        return _Hook()

    def __reduce__(self) -> tuple[Any, ...]:
        return _Hook, ()


def build(model: nn.Module, *, lr: float, damping: float, decay: float, inverse_every: int, likelihood: str) -> KFAC:
    """Makes K-FAC from a config."""
    return KFAC(model, lr, damping, decay, inverse_every, likelihood)
