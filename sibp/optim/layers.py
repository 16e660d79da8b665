"""Chooses the layers of a model that are updated proximally, and shows the choice in a table."""

from collections.abc import Collection, Iterable

from torch import nn

from sibp.capture.geometry import geometry_of, own_class
from sibp.capture.tap import Owner, Tap, tap_of
from sibp.optim.checks import check_real

Owners = dict[nn.Parameter, list[tuple[str, nn.Module]]]
"""For every parameter the modules that hold it, with their names; more than one for tied parameters."""


def parameter_owners(model: nn.Module) -> Owners:
    """The modules that hold each parameter of the model, with their names.

    Args:
        model: any module.
    """
    owners: Owners = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append((name, module))
    return owners


def new_taps(owner: Owner, params: Iterable[nn.Parameter], owners: Owners, explicit: Collection[str] = ()) -> list[Tap]:
    """Taps (not yet installed) for the layers whose weight or bias is among `params`.

    A layer gets no tap if its kind is not known (`geometry_of`), if one of its parameters is shared with another
    module, if a method that computes its output was already replaced, or if the user excluded it.

    Args:
        owner: the optimizer.
        params: parameters of one group.
        owners: the modules that hold each of the model's parameters.
        explicit: names of modules that get no taps, including everything inside them.

    Raises:
        ValueError: if a layer's weight and bias would be in different groups.
        TypeError: if a layer has complex parameters.
    """
    wanted = {id(p) for p in params}
    taps: dict[str, Tap] = {}
    for parameter in params:
        name, module = owners[parameter][0]
        geometry = geometry_of(module)
        held = dict(module.named_parameters(recurse=False))
        if name in taps or geometry is None or geometry.replaced_method(module) is not None:
            continue
        if any(len(owners[p]) > 1 for p in held.values()):
            continue
        if any(name == outer or name.startswith(f"{outer}.") for outer in explicit):
            continue
        check_real(name, held.values(), type(owner).__name__)
        earlier = tap_of(module)
        if earlier is not None and earlier.owner() is owner:
            raise ValueError(
                f"layer '{name}': its weight and bias form one subproblem, so they have to be in the same param group."
            )
        given = {key: id(p) in wanted for key, p in held.items()}
        taps[name] = Tap(
            name, module, geometry, owner, weight=given.get("weight", False), bias=given.get("bias", False)
        )
    return list(taps.values())


def containers(model: nn.Module, taps: Iterable[Tap]) -> list[nn.Module]:
    """The modules of the model that contain tapped layers, without the layers themselves.

    Args:
        model: the optimizer's model.
        taps: the taps on its layers.
    """
    tapped = {id(tap.module) for tap in taps}
    return [
        module
        for module in model.modules()
        if id(module) not in tapped and any(id(inner) in tapped for inner in module.modules())
    ]


def summary_table(
    model: nn.Module, tapped: dict[str, tuple[str, str]], owned: Collection[int], replaced: Collection[str], method: str
) -> str:
    """A table of all modules that hold parameters.

    Args:
        model: the optimizer's model.
        tapped: (what follows, solver) of every layer that is updated proximally, by name.
        owned: the `id` of every parameter that belongs to the optimizer.
        replaced: names of tapped layers that have since been replaced, or tapped by another optimizer.
        method: the optimizer's name.

    Returns:
        Lines of text, with the columns layer, kind, parameters (shapes), followed by, solver and update.
    """
    owners = parameter_owners(model)
    rows = [("layer", "kind", "parameters", "followed by", "solver", "update")]
    for name, module in model.named_modules():
        held = dict(module.named_parameters(recurse=False))
        if not held:
            continue
        shapes = ", ".join("x".join(map(str, p.shape)) for p in held.values())
        frozen = not any(p.requires_grad for p in held.values())
        follows, solver = tapped.get(name, ("-", "-"))
        tied = sorted({other or "(model)" for p in held.values() for other, _ in owners[p]} - {name or "(model)"})
        if frozen:
            update = "frozen"
        elif name in replaced:
            update = "replaced since"
        elif name in tapped:
            update = "proximal"
        else:
            update = "explicit" if any(id(p) in owned for p in held.values()) else "not in this optimizer"
        if tied:
            update += f", tied to {', '.join(tied)}"
        rows.append((name or "(model)", own_class(module).__name__, shapes, follows, solver, update))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return f"{method}:\n" + "\n".join(lines)
