"""Tables of the ablation and of the runs' provenance, on made-up runs."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parents[1] / "report"))

from fake_runs import PROXBP, SGD, SIBP, write_run

from sibp.runs.collect import collect
from sibp.runs.packed import PACKED, pack
from sibp.study.credit import tables
from sibp.study.criteria import Evidence, OpenError
from sibp.study.experiments import provenance

EXACT, CG = SIBP | {"solver": "exact"}, SIBP | {"solver": "cg:3"}
HALVES = {"proxbp": PROXBP, "exact": EXACT, "old": CG | {"backward_weights": "old"}, "new": CG}


def fed(outer: str, direction: str) -> dict[str, object]:
    solver = {"proxbp": "exact", "sibp": "cg:3"}[direction]
    return {"name": f"{direction}_fed", "outer": outer, "lr": 0.1, "neuron_step": 1.0, "solver": solver}


DIRECTED = {
    "sgd": SGD, "proxbp": PROXBP, "new": CG,
    "nesterov": SGD | {"name": "nesterov"}, "np": fed("sgd", "proxbp"), "ns": fed("sgd", "sibp"),
    "adam": {"name": "adam", "lr": 0.1}, "ap": fed("adam", "proxbp"), "as": fed("adam", "sibp"),
}  # fmt: skip


def keep(tmp_path: Path, ends: dict[str, float], methods: dict[str, dict], name: str = "one") -> Evidence:
    """Five seeds a method, of which the last ends at 0.9 whatever the method."""
    made = tmp_path / f"made_{name}"
    for key, optimizer in methods.items():
        for seed in range(5):
            end = 0.9 if seed == 4 else ends[key] + seed / 1000
            write_run(made / f"{key}{seed}", optimizer, seed, (2.0, 1.0, end), role="final")
    place = tmp_path / "results" / name
    place.mkdir(parents=True)
    (place / PACKED).write_text(pack(collect([made]).runs))
    return Evidence(tmp_path / "results")


def test_each_half_is_judged_with_and_without_the_other(tmp_path):
    """The activation inside lowers the loss through old weights only; with it, new weights raise the loss."""
    ends = {"proxbp": 0.4, "exact": 0.3, "old": 0.2, "new": 0.5}
    made = tables(keep(tmp_path, ends, HALVES))["2 x 2 by training loss"]("one").splitlines()
    assert made[0].count("|") == 5
    # four of five seeds differ: of the median of five differences, one of them 0, the interval reaches 0
    assert made[2] == "| linear | 0.402 [0.4, 0.9] | 0.302 [0.3, 0.9] | no difference, 4 of 5 seeds |"
    assert made[3].endswith("| 0.202 [0.2, 0.9] | 0.502 [0.5, 0.9] | no difference, 0 of 5 seeds |")
    assert made[4] == "| inside, against linear | no difference, 4 of 5 seeds | no difference, 0 of 5 seeds |  |"


def test_a_larger_accuracy_is_better(tmp_path):
    """The made-up accuracy is exp(-loss): the order of losses turns around."""
    ends = {"proxbp": 0.4, "exact": 0.3, "old": 0.2, "new": 0.5}
    made = tables(keep(tmp_path, ends, HALVES))["2 x 2 by validation accuracy"]("one").splitlines()
    assert "4 of 5 seeds" in made[2]
    assert "0 of 5 seeds" in made[3]


def test_directions_are_compared_with_the_gradient_and_each_other(tmp_path):
    ends = dict(zip(DIRECTED, (0.5, 0.4, 0.3, 0.5, 0.6, 0.7, 0.2, 0.3, 0.1), strict=True))
    evidence = keep(tmp_path, ends, DIRECTED)
    title = "directions by training loss"
    none, nesterov, adam, muon = tables(evidence)[title]("one").splitlines()[2:]
    assert "4 of 5 seeds; against ProxBP's no difference, 4 of 5" in none
    assert "0 of 5 seeds; against ProxBP's no difference, 0 of 5" in nesterov
    assert "0.302 [0.3, 0.9]: no difference, 0 of 5 seeds" in adam
    assert "4 of 5 seeds; against ProxBP's no difference, 4 of 5" in adam
    assert muon == "| Muon | not run | not run | not run |"
    of_muon = {"muon": {"name": "muon", "lr": 0.1}, "mp": fed("muon", "proxbp"), "ms": fed("muon", "sibp")}
    evidence = keep(tmp_path, {"muon": 0.1, "mp": 0.2, "ms": 0.3}, of_muon, "one_muon")
    muon = tables(evidence)[title]("one").splitlines()[-1]
    assert muon.startswith("| Muon | 0.102 [0.1, 0.9] | 0.202 [0.2, 0.9]: no difference, 0 of 5 seeds |")


def test_a_table_waits_for_all_its_methods(tmp_path):
    evidence = keep(tmp_path, {"proxbp": 0.4, "exact": 0.3}, {key: HALVES[key] for key in ("proxbp", "exact")})
    with pytest.raises(OpenError):
        tables(evidence)["2 x 2 by training loss"]("one")
    with pytest.raises(OpenError):
        tables(evidence)["directions by training loss"]("one")


def test_runs_of_changed_code_are_counted(tmp_path):
    """Shared by all runs of a file or said by each, and an experiment of the arena has a row of its own."""
    keep(tmp_path, {"sgd": 0.4, "cg": 0.3}, {"sgd": SGD, "cg": CG})
    kept = tmp_path / "results" / "one" / PACKED
    shared, *runs = map(json.loads, kept.read_text().splitlines())
    dirty = shared["summary"]["environment"] | {"git_dirty": True}
    place = tmp_path / "results" / "arena" / "deep"
    place.mkdir(parents=True)
    all_dirty = [shared | {"summary": shared["summary"] | {"environment": dirty}}, *runs]
    (place / PACKED).write_text("".join(json.dumps(line) + "\n" for line in all_dirty))
    del shared["summary"]["environment"]["git_dirty"]
    for number, run in enumerate(runs):
        run["summary"]["environment"] = {"git_dirty": number < 3}
    kept.write_text("".join(json.dumps(line) + "\n" for line in (shared, *runs)))
    rows = provenance(tmp_path / "results").splitlines()[2:]
    assert rows == ["| `arena/deep` | 10 | 10 |", "| `one` | 10 | 3 |", "| all | 20 | 13 |"]
