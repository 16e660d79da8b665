"""The last lines of ``make run``."""

import runpy
import sys
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "scripts" / "quickstart.py"


@pytest.mark.slow
def test_the_quick_start_names_the_winner_and_can_be_repeated(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(QUICKSTART), "--run-root", "runs/q", "epochs=1", "tensorboard=false"])
    for _ in range(2):
        with pytest.raises(SystemExit) as ending:
            runpy.run_path(str(QUICKSTART), run_name="__main__")
        assert ending.value.code == 0
        text = capsys.readouterr().out
        for part in ("seed 4, ", "\nFinal train loss: ", "\nFinal val acc: ", "By the clock (", "--logdir runs/q"):
            assert part in text
        assert "oo few" not in text  # every verdict has the seeds that it needs
    assert (tmp_path / "runs/q/comparison.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "runs/q").glob("*/summary.json"))) == 15
