"""The built-in models, with initial weights that depend only on the seed and the config."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from sibp.experiment.convnets import lenet, proxprop_convnet, resnet8
from sibp.experiment.memory import check_fits, is_out_of_memory, sizes_of
from sibp.experiment.objectives import CLASSIFICATION, NEXT_CHARACTER, RECONSTRUCTION, Objective
from sibp.experiment.seeding import derived_seed
from sibp.experiment.settings import call_builder, checked, is_known, known_builder
from sibp.experiment.transformer import transformer
from sibp.runs.errors import UserError


@dataclass(frozen=True)
class ModelSpec:
    """A model's builder, its input form and its objective.

    ``build(shape, classes, **settings)`` takes one image's shape; ``flat``: images are flattened.
    """

    build: Callable[..., nn.Module]
    flat: bool
    objective: Objective = CLASSIFICATION


ACTIVATIONS = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "relu6": nn.ReLU6,
    "elu": nn.ELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "hardswish": nn.Hardswish,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def mlp(shape: tuple[int, ...], classes: int, *, hidden: list[int], activation: str = "relu") -> nn.Sequential:
    """A multi-layer perceptron: Linear layers with an activation between them.

    Args:
        shape: one image's shape.
        classes: number of outputs.
        hidden: width of each hidden layer; may be empty.
        activation: after every hidden layer, one of `ACTIVATIONS`.

    Returns:
        The model, for inputs of shape (B, pixels).

    Raises:
        UserError: a width is below 1, the weights do not fit into memory, or the activation is unknown.
    """
    _check_widths(hidden)
    _check_activation(activation)
    widths = [torch.Size(shape).numel(), *hidden, classes]
    check_fits(_weights(widths), "mlp", hidden=hidden)
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def autoencoder(shape: tuple[int, ...], classes: int, *, hidden: list[int], activation: str) -> nn.Sequential:
    """A deep autoencoder (Hinton & Salakhutdinov 2006): the encoder's layers, and their mirror image.

    Args:
        shape: one image's shape.
        classes: unused.
        hidden: widths of the encoder's layers, the code last.
        activation: after every layer but the code and the output, one of `ACTIVATIONS`.

    Returns:
        The model, from (B, pixels) to the logits of as many pixels.

    Raises:
        UserError: no width or one below 1, weights that do not fit into memory, or an unknown activation.
    """
    del classes
    _check_widths(hidden)
    if not hidden:
        raise UserError("model.hidden=[] is not possible: give the width of the code at least, such as [30].")
    _check_activation(activation)
    pixels = torch.Size(shape).numel()
    widths, code = [pixels, *hidden, *hidden[-2::-1], pixels], len(hidden)
    check_fits(_weights(widths), "autoencoder", hidden=hidden)
    layers: list[nn.Module] = []
    for i, (before, after) in enumerate(itertools.pairwise(widths), start=1):
        layers += [nn.Linear(before, after)] if i == code else [nn.Linear(before, after), ACTIVATIONS[activation]()]
    return nn.Sequential(*layers[:-1])


def _weights(widths: list[int]) -> int:
    return sum((before + 1) * after for before, after in itertools.pairwise(widths))


def _check_widths(hidden: list[int]) -> None:
    if any(width < 1 for width in hidden):
        raise UserError(
            f"model.hidden={hidden} is not possible: every hidden layer needs a width of 1 or more, "
            "such as model.hidden=[500]."
        )


def _check_activation(activation: str) -> None:
    if not is_known(ACTIVATIONS, activation):
        raise UserError(f"model.activation={activation} is not known; choose one of: {', '.join(ACTIVATIONS)}.")


MODELS = {
    "mlp": ModelSpec(mlp, flat=True),
    "autoencoder": ModelSpec(autoencoder, flat=True, objective=RECONSTRUCTION),
    "lenet": ModelSpec(lenet, flat=False),
    "proxprop_convnet": ModelSpec(proxprop_convnet, flat=False),
    "resnet8": ModelSpec(resnet8, flat=False),
    "transformer": ModelSpec(transformer, flat=False, objective=NEXT_CHARACTER),
}


def is_flat(config: dict[str, Any]) -> bool:
    """Whether a config's model takes flattened images.

    Args:
        config: the ``model`` group.

    Returns:
        True for (pixels,), False for (channels, height, width).
    """
    return known_builder("model", MODELS, config).flat


def objective_of(config: dict[str, Any]) -> Objective:
    """The training objective of a config's model.

    Args:
        config: the ``model`` group.

    Returns:
        Its loss, and its accuracy if it has one.
    """
    return known_builder("model", MODELS, config).objective


def build_model(config: dict[str, Any], shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
    """Build a config's model on the CPU.

    Args:
        config: the ``model`` group: ``name``, ``init``, ``init_std`` and the builder's settings.
        shape: one image's shape.
        classes: number of outputs.
        seed: the run's seed; the global random state is neither read nor changed.

    Returns:
        The model.

    Raises:
        UserError: unknown model or setting, or an invalid value.
    """
    own = dict(config)
    init = own.pop("init", "default")
    std = checked("model.init_std", own.pop("init_std", None), float | None)
    _check_init(init, std)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        build = known_builder("model", MODELS, own).build
        try:
            model = call_builder("model", {str(own.get("name")): build}, own, shape, classes)
        except (RuntimeError, MemoryError, OverflowError, TypeError) as error:  # errors of torch for invalid sizes
            reason = next(iter(str(error).splitlines()), type(error).__name__)
            if is_out_of_memory(error):
                reason = f"this machine has too little memory; give smaller numbers than {sizes_of(own) or 'its own'}."
            raise UserError(f"model={own.get('name')} cannot be built: {reason}") from error
        if std is not None:
            for parameter in model.parameters():
                nn.init.normal_(parameter, std=std)
        if init == "he":
            _he(model)
    return model


def _he(model: nn.Module) -> None:
    """Weights N(0, 2 / inputs), biases 0, which preserve the variance through ReLU layers (He et al. 2015)."""
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _check_init(init: Any, std: float | None) -> None:
    if init not in ("default", "normal", "he"):
        raise UserError(f"model.init={init} is not known; choose one of: default, normal, he.")
    if init == "normal" and (std is None or not std > 0):
        raise UserError("model.init=normal needs its standard deviation: give a positive model.init_std=...")
    if init != "normal" and std is not None:
        raise UserError(f"model.init_std={std} has no effect without model.init=normal: give both or neither.")
