"""Common base of methods that propagate targets instead of gradients, for networks of linear layers."""

from typing import Any, Unpack

from torch import Tensor, nn

from sibp.activations import IDENTITY, Activation
from sibp.capture.problem import LayerProblem
from sibp.capture.tap import Tap
from sibp.optim.groups import NewParameters
from sibp.optim.guard import GuardedOptimizer
from sibp.optim.layers import parameter_owners
from sibp.optim.options import TargetOptions


class TargetOptimizer(GuardedOptimizer):
    """Base of methods whose error signals are displacements h - h_target of a layer's output, not gradients.

    Every parameter must therefore belong to a linear layer, and only known activations and changes of shape may stand
    between the layers.

    Raises:
        ValueError: if another module has parameters.
    """

    shared = TargetOptions

    def __init__(self, model: nn.Module, defaults: dict[str, Any], **options: Unpack[TargetOptions]) -> None:
        if isinstance(model, nn.Module):
            for name, module in model.named_modules():
                if any(True for _ in module.parameters(recurse=False)) and not isinstance(module, nn.Linear):
                    raise ValueError(self._only_linear(name, module))
        super().__init__(model, defaults, **options)

    def add_explicit(self, params: list[nn.Parameter], new: NewParameters, settings: dict[str, Any]) -> None:
        """Always raises ValueError: parameters without a tap would get gradients computed from displacements."""
        del new, settings
        name, module = parameter_owners(self.model)[params[0]][0]
        raise ValueError(self._only_linear(name, module))

    def _only_linear(self, name: str, module: nn.Module) -> str:
        return (
            f"layer '{name}' ({type(module).__name__}): {type(self).__name__} is for networks of linear layers and "
            "activations, such as model=mlp."
        )

    def wants_activation(self, tap: Tap) -> bool:
        """Always True: targets are defined on the activation's output."""
        del tap
        return True

    @staticmethod
    def output(problem: LayerProblem) -> tuple[Activation, Tensor, Tensor]:
        """s, Z (B, m) and s(Z) - target (B, m); s is the identity where no known activation follows."""
        if problem.activation is None or problem.Z is None or problem.D is None:
            Z = problem.features.forward(problem.W, problem.b)
            return IDENTITY, Z, problem.D_z
        return problem.activation, problem.Z, problem.D
