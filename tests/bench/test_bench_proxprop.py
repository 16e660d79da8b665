"""The port of ProxProp's step takes ProxBP's steps."""

import pytest
import torch
import torch.nn.functional as F

from sibp import ProxBP
from sibp.bench.nets import Case
from sibp.bench.proxprop import ProxPropNet


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("case", [Case("30-20-5", 8), Case("6-5-4-3", 40)], ids=str)
def test_weights_equal_proxbps_after_some_steps(case, dtype, tolerance):
    ours, theirs = case.model().to(dtype), case.model().to(dtype)
    proxbp = ProxBP(ours, lr=0.3, prox_weight=2.0, solver="exact")
    port, sgd = ProxPropNet(theirs, eta=0.3, lam=2.0), torch.optim.SGD(theirs.parameters(), lr=1.0)
    generator = torch.Generator().manual_seed(5)
    for _ in range(4):
        x = torch.randn(case.batch, *case.shape, generator=generator).to(dtype)
        y = torch.randint(case.classes, (case.batch,), generator=generator)
        for model, optimizer in ((ours, proxbp), (port, sgd)):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=tolerance, atol=tolerance)
    assert (next(iter(ours.parameters())) - next(iter(case.model().to(dtype).parameters()))).abs().max() > 1e-3
