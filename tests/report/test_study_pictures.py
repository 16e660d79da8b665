"""Pictures of experiments: drawn from kept runs only, with the same bytes every time."""

import json
from pathlib import Path
from typing import Any

import pytest
from fake_runs import SGD, SIBP, write_run

from sibp.runs.collect import collect
from sibp.runs.packed import PACKED, pack
from sibp.study.criteria import Evidence
from sibp.study.experiments import Experiment
from sibp.study.pictures import DRAWN, outline, pictures


def keep(results: Path, place: str, optimizers: list[dict[str, Any]], **changes: Any) -> None:
    made = results.parent / "made" / place
    for i, optimizer in enumerate(optimizers):
        for seed in range(3):
            dies = optimizer["lr"] >= 30
            losses = (2.3, 1.0, None if dies else 0.1 * (i + 1) + 0.01 * seed)
            ended = "diverged" if dies else "completed"
            write_run(made / f"{i}-{seed}", optimizer, seed, losses, ended, 0.01 * (i + 1), **changes)
    (results / place).mkdir(parents=True)
    (results / place / PACKED).write_text(pack(collect([made]).runs))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    steps = [optimizer | {"lr": lr} for optimizer in (SGD, SIBP) for lr in (0.1, 1.0, 30.0)]
    solvers = [SIBP | {"solver": solver} for solver in ("cg:1", "cg:5", "cg:20", "exact")]
    keep(tmp_path / "results", "step_sizes", steps)
    keep(tmp_path / "results", "rounds", solvers)
    keep(tmp_path / "results", "rounds_tuned", [SGD, *solvers])
    for folder, hidden in (("layers01", [9]), ("layers10", [9] * 10)):
        model = {"name": "mlp", "hidden": hidden}
        keep(tmp_path / "results", f"depth/{folder}", [SGD, SIBP], model=model)
    for folder, init in (("torch", "default"), ("he", "normal")):
        keep(
            tmp_path / "results", f"auto_safe/{folder}", steps, model={"name": "mlp", "hidden": [9] * 10, "init": init}
        )
    rows = [{"method": "sibp exact", "path": [[0, 1, 1], [9, 0.1, 0.2], [20, 0, 0.001]]}]
    (tmp_path / "results" / "stationary").mkdir()
    (tmp_path / "results" / "stationary" / "limits.json").write_text(json.dumps({"tanh": rows, "relu": rows}))
    return tmp_path / "results"


def experiments(**folders: list[str]) -> dict[str, Experiment]:
    names = {name: folders.get(name, ["."]) for name in DRAWN}
    return {name: Experiment(name, "?", 1, dict.fromkeys(found, "train x")) for name, found in names.items()}


@pytest.mark.filterwarnings("error")
@pytest.mark.slow
def test_pictures_are_the_same_bytes_every_time(results):
    listed = experiments(depth=["layers01", "layers10"], auto_safe=["torch", "he"])
    found = pictures(Evidence(results), listed)
    assert list(found) == list(DRAWN)
    assert all(b"<svg" in picture for picture in found.values())
    assert pictures(Evidence(results), listed) == found
    assert len(set(found.values())) == len(found)


def test_experiments_that_are_not_kept_are_not_drawn(results):
    listed = experiments(depth=["layers01", "layers10", "layers20"], auto_safe=["torch", "he"])  # parts are missing
    (results / "rounds" / PACKED).unlink()
    (results / "stationary" / "limits.json").unlink()
    assert list(pictures(Evidence(results), listed)) == ["step_sizes", "auto_safe", "rounds_tuned"]


def test_one_problem_is_outlined_by_curves_and_ends_and_several_by_their_losses(results):
    parts = [Evidence(results).problem(f"depth/{folder}") for folder in ("layers01", "layers10")]
    alone, together = outline(parts[:1]), outline(parts)
    assert alone is not None
    assert together is not None
    assert b"<!-- final train loss" in alone
    assert b"<!-- final train loss" not in together
    assert [each.count(b"<!-- training steps -->") for each in (alone, together)] == [1, 2]
    assert outline([]) is None
