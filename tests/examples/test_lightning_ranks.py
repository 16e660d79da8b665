"""AutoSIBP under Lightning's DistributedDataParallel: the steps of one process with the whole batch."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from lightning_ranks import BATCH, data, network

from sibp import AutoSIBP

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("lightning_ranks.py")


@pytest.mark.skipif(importlib.util.find_spec("lightning") is None, reason="pip install sibp[examples]")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Lightning cannot fork here")
def test_lightnings_ranks_take_the_steps_of_one_process(tmp_path: Path) -> None:
    here = {"GLOO_SOCKET_IFNAME": "lo"} if sys.platform == "linux" else {}  # a host's own name may not resolve
    command = [sys.executable, "-W", "ignore", str(PROGRAM), str(tmp_path)]
    done = subprocess.run(command, env={**os.environ, **here}, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    model = network()
    optimizer = AutoSIBP(model)
    for x, y in zip(*(part.split(BATCH) for part in data()), strict=True):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step(evaluate=lambda x=x, y=y: F.cross_entropy(model(x), y), loss=loss)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    start = network().state_dict()
    for key, weight in model.state_dict().items():
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], weight, rtol=1e-9, atol=1e-9)
        assert (weight - start[key]).abs().max() > 1e-4
