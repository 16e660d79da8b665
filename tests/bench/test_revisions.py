"""`bench revisions`: times training steps of an earlier commit and of the present one."""

import argparse
import shutil
from pathlib import Path

import pytest
import torch

from sibp.bench import revisions
from sibp.bench.nets import Case
from sibp.bench.step import verdict

ROOT = Path(__file__).parents[2]
RECORD = {
    "old": "0123456789",
    "cases": [
        {
            "net": "784-500-10",
            "batch": 100,
            "activation": "tanh",
            "then": {"sgd": [1e-3, 2e-3, 4e-3], "exact": [2e-3, 3e-3, 5e-3]},
            "now": {"sgd": [1e-3, 2e-3, 4e-3], "exact": [3e-3, 3e-3, 6e-3]},
        }
    ],
}


def test_least_times_and_the_ratios_of_neighbouring_processes():
    table = revisions.sections(RECORD)[0].blocks[1]
    sgd, exact = table.rows
    assert exact[:4] == ["784-500-10 tanh, batch 100", "exact", 2.0, 3.0]
    ratio = exact[4]
    assert (ratio.median, ratio.low, ratio.high) == pytest.approx((1.5, 1.1, 1.35))  # of 1.5, 1 and 1.2
    assert exact[5:] == ["missed", 2.0, 3.0]
    assert sgd[4].median == 1
    assert sgd[5:] == [None, 1.0, 1.0]


def test_a_step_that_got_faster_meets_the_bound():
    case = RECORD["cases"][0] | {"now": {"sgd": [1e-3], "exact": [1e-3]}, "then": {"sgd": [1e-3], "exact": [2e-3]}}
    assert verdict(revisions.ratio_of(case, "exact"), revisions.SLOWER) == "met"


@pytest.mark.skipif(not (ROOT / ".git").exists() or not shutil.which("git"), reason="needs a checkout by git")
@pytest.mark.slow
def test_both_revisions_are_timed_and_worktrees_removed(monkeypatch):
    monkeypatch.setattr(revisions, "_build", lambda tree: None)  # half a minute; without kernels the steps are the same
    given = {"net": ["6-5-3"], "batch": [4], "activation": ["tanh"], "methods": ["exact"], "rounds": 1, "seconds": 0.0}
    before = revisions._git("worktree", "list")
    record = revisions.measure(argparse.Namespace(old="HEAD", **given), ["revisions"])
    (case,) = record["cases"]
    assert (case["net"], case["batch"], case["activation"]) == ("6-5-3", 4, "tanh")
    for side in ("then", "now"):
        assert list(case[side]) == ["sgd", "exact"]
        assert all(len(times) == 1 and times[0] > 0 for times in case[side].values())
    assert revisions._git("worktree", "list") == before


def test_the_exported_net_equals_the_case(tmp_path):
    case = Case("transformer_block", 2)
    revisions._save(case, tmp_path / "net.pt")
    held = torch.load(tmp_path / "net.pt", weights_only=False)
    x = torch.randn(held["shape"], generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(held["net"](x), case.model()(x))
    assert held["classes"] == case.classes
