"""Private parts of torch and Hydra: few, each with its reason, and there in the installed versions."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from sibp import internals

SIBP = Path(internals.__file__).parent
PRIVATE = re.compile(
    r"torch\._[A-Za-z]|torch\.[\w.]+\._[a-z]|hydra\._internal|copyreg\._|\bDistributedDataParallel\._|"
    r"\b(?:module|conv|layer|model|parameter|tensor|grad|gradient|input)\._[a-z]"
)
# Outside `sibp.internals`, with the reason on the line before or on the line itself.
KNOWN = {
    "capture/tap.py": 1,  # _backward_hooks
    "experiment/compose.py": 1,
    "experiment/launch.py": 3,
    "optim/checks.py": 1,  # _compiled_call_impl
    "optim/parallel.py": 1,  # _get_active_ddp_module
    "train.py": 1,
}


def uses(path: Path) -> list[str]:
    lines = [line for line in path.read_text().splitlines() if "torch._dynamo" not in line]  # looked up, never imported
    return [line for line in lines if PRIVATE.search(line)]


@pytest.mark.parametrize("path", sorted(SIBP.rglob("*.py")), ids=lambda path: str(path.relative_to(SIBP)))
def test_private_names_stand_in_one_place(path):
    if path == Path(internals.__file__):
        return
    found = uses(path)
    assert len(found) == KNOWN.get(str(path.relative_to(SIBP)), 0), found


def test_every_private_name_outside_has_its_reason_beside_it():
    for name in KNOWN:
        lines = (SIBP / name).read_text().splitlines()
        for number, line in enumerate(lines):
            if PRIVATE.search(line) and "hydra._internal" not in line and "torch._dynamo" not in line:
                assert "#" in "".join(lines[number - 2 : number + 1]), f"{name}: {line}"


def test_the_installed_torch_has_them():
    assert internals.backward_pass() == -1
    assert not internals.is_tracing()
    assert not internals.are_transforms_active()
    layer = nn.Linear(2, 2)
    assert set(internals.own_parameters(layer)) == {"weight", "bias"}
    x = torch.zeros(2)
    before = internals.version(x)
    x.add_(1)
    assert internals.version(x) == before + 1
    with internals.as_plain_tensors():
        assert type(torch.add(nn.Parameter(x), 1)) is torch.Tensor
    seen = []
    y = torch.zeros(2, requires_grad=True)
    z = y * 2
    z.register_hook(lambda _: seen.append((internals.backward_pass(), internals.will_be_executed(z.grad_fn))))
    z.sum().backward()
    ((number, executed),) = seen
    assert number >= 0
    assert executed
