"""Times the steps of one net with the ``sibp`` on PYTHONPATH.

Started by `sibp.bench.revisions`; imports nothing from `sibp.bench`, because it also runs with other revisions.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from sibp import SIBP

_STRETCH = 0.05  # seconds


def main() -> None:
    """Prints each method's least processor time of a step, in seconds, as JSON."""
    held, settings = torch.load(sys.argv[1], weights_only=False), json.loads(sys.argv[2])
    steps = {method: _step(held, method, settings) for method in settings["methods"]}
    lengths, least = {name: _warm_up(step) for name, step in steps.items()}, dict.fromkeys(steps, float("inf"))
    start = time.perf_counter()
    while time.perf_counter() - start < settings["seconds"] * len(steps) or float("inf") in least.values():
        for name, step in steps.items():
            begin = time.process_time()
            for _ in range(lengths[name]):
                step()
            least[name] = min(least[name], (time.process_time() - begin) / lengths[name])
    print(json.dumps(least))


def _step(held: dict[str, Any], method: str, settings: dict[str, Any]) -> Callable[[], None]:
    torch.manual_seed(0)
    model = torch.load(sys.argv[1], weights_only=False)["net"]  # a separate copy with the initial weights
    x, y = torch.randn(held["shape"]), torch.randint(held["classes"], held["shape"][:1])
    if method == "sgd":
        optimizer: Any = torch.optim.SGD(model.parameters(), lr=settings["sgd"])
    else:
        optimizer = SIBP(model, lr=settings["eta"], prox_weight=settings["lam"], solver=method)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()

    return step


def _warm_up(step: Callable[[], None]) -> int:
    """The number of steps that take about `_STRETCH`."""
    for _ in range(3):
        step()
    begin = time.perf_counter()
    step()
    return max(1, round(_STRETCH / max(time.perf_counter() - begin, 1e-9)))


if __name__ == "__main__":
    main()
