"""Claims as data: what holds, what does not, what is open, and the verdict."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_runs import PROXBP, SGD, SIBP, write_run

from sibp.analysis.clock import KEPT, OWN_CLOCK
from sibp.runs.collect import collect
from sibp.runs.packed import PACKED, pack
from sibp.runs.values import UsageError
from sibp.study.claims import Better, Every, judge, read_claims
from sibp.study.claims_page import Judged, by_the_clock, csv_text, judged, page, verdict_table
from sibp.study.criteria import Evidence, find
from sibp.study.experiments import Experiment

START = 2.0
EXPERIMENTS = {
    "one": Experiment("one", "Who is better?", 3, {".": "train x"}, note="Seconds mean nothing."),
    "deep": Experiment("deep", "And when deep?", 5, {"layers1": "tune x", "layers9": "tune x"}),
    "rest": Experiment("rest", "Where does it rest?", 1, {".": "script x.py"}),
}


def keep(results: Path, place: str, ends: Mapping[str, Sequence[float | None]], **settings: Any) -> None:
    """Keep runs with these final losses, one a seed, of methods by name; None diverged."""
    known = {"sgd": SGD, "proxbp exact": PROXBP, "sibp cg:5": SIBP}
    for name, losses in ends.items():
        for seed, end in enumerate(losses):
            optimizer = known[name] | settings.get("optimizer", {})
            folder = results.parent / "made" / place / f"{name}-{sorted(optimizer.items())}-{seed}".replace(" ", "")
            status = "completed" if end is not None else "diverged"
            seconds = settings.get("seconds", {}).get(name, 0.01)
            write_run(folder, optimizer, seed, (START, 1.0, end), status, seconds_per_step=seconds)
    (results / place).mkdir(parents=True, exist_ok=True)
    (results / place / PACKED).write_text(pack(collect([results.parent / "made" / place]).runs))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    (tmp_path / "results").mkdir()
    return tmp_path / "results"


def better(**changes: Any) -> Better:
    return Better(**{"method": "sibp cg:5", "other": "sgd", "quantity": "training loss", "place": "one"} | changes)


HIGH, LOW = [0.50, 0.51, 0.52, 0.53, 0.54], [0.40, 0.41, 0.42, 0.43, 0.44]
MIXED = [0.40, 0.61, 0.42, 0.63, 0.44]


@pytest.mark.parametrize(
    ("sgd", "sibp", "holds", "why"),
    [
        (HIGH, LOW, True, "better"),
        (LOW, HIGH, False, "worse"),
        (HIGH, HIGH, False, "no difference"),
        (HIGH, MIXED, False, "no difference"),
        (HIGH[:4], LOW[:4], None, "too few seeds"),
        ([None] * 5, LOW, True, "better"),
        (HIGH, [*LOW[:2], None, None, None], False, "no difference"),
        (HIGH, [None] * 5, False, "worse"),
        ([None] * 5, [None] * 5, False, "no difference"),
    ],
)
def test_better_is_the_reports_verdict_paired_by_seed(results, sgd, sibp, holds, why):
    keep(results, "one", {"sgd": sgd, "sibp cg:5": sibp})
    found = find(better(), Evidence(results))
    assert (found.holds, found.why) == (holds, why)


@pytest.mark.parametrize("quantity", ["training accuracy", "validation accuracy", "test accuracy"])
def test_larger_accuracies_are_better(results, quantity):
    keep(results, "one", {"sgd": HIGH, "sibp cg:5": LOW})  # the accuracy is exp(-loss)
    found = find(better(quantity=quantity), Evidence(results))
    assert found.holds is True
    assert found.mine.median == pytest.approx(math.exp(-0.42))
    assert (found.after_seconds is None) == (quantity == "test accuracy")


def test_a_win_by_steps_may_be_a_loss_by_seconds(results):
    keep(results, "one", {"sgd": HIGH, "sibp cg:5": LOW}, seconds={"sibp cg:5": 0.02})
    found = find(better(), Evidence(results))
    assert found.holds is True
    assert found.after_seconds.word == "worse"  # SGD has ended, SIBP is half-way
    assert found.holds_per_second is False
    # It gets below SGD's end only at its own last row, after as many steps, and its steps cost twice as much.
    assert by_the_clock(found.clock) == "worse: 1 [1, 1], 2 [2, 2]"


@pytest.mark.parametrize("changes", [{"quantity": "training accuracy"}, {"relative_to": "one"}])
def test_only_a_training_loss_is_judged_by_the_cost_of_a_step(results, changes):
    keep(results, "one", {"sgd": HIGH, "sibp cg:5": LOW})
    assert find(better(**changes), Evidence(results)).clock is None


def test_a_criterion_without_kept_runs_is_open(results):
    found = find(better(place="deep/layers9"), Evidence(results))
    assert found.holds is None
    assert found.why == "not run yet (`python scripts/reproduce.py deep`)"
    keep(results, "deep/layers9", {"sgd": HIGH, "sibp cg:5": LOW})
    assert find(better(place="deep/layers9"), Evidence(results)).holds is True


def test_a_method_that_was_not_run_is_open_and_named(results):
    keep(results, "one", {"sgd": HIGH, "sibp cg:5": LOW})
    found = find(better(other="proxbp exact"), Evidence(results))
    assert found.holds is None
    assert found.why == "proxbp exact is not among the methods of one: sgd, sibp cg:5"


def test_relative_to_another_place_by_the_same_seed(results):
    keep(results, "deep/layers1", {"sgd": [0.2] * 5, "sibp cg:5": [0.1] * 5})
    keep(results, "deep/layers9", {"sgd": HIGH, "sibp cg:5": LOW})  # SIBP is lower there, and has grown by more
    there = better(place="deep/layers9")
    assert find(there, Evidence(results)).holds is True
    found = find(better(place="deep/layers9", relative_to="deep/layers1"), Evidence(results))
    assert found.holds is False
    assert (found.mine.median, found.other.median) == (pytest.approx(4.2), pytest.approx(2.6))
    assert found.after_seconds is None


def keep_steps(results: Path) -> None:
    """SGD works from 0.1 to 1, momentum shifts it; SIBP from 0.1 to 10, or with a larger weight to 100."""
    sgd = {0.01: 0.9, 0.1: 0.20, 1.0: 0.21, 10.0: 1.5, 100.0: None}
    sibp = {0.01: 0.9, 0.1: 0.21, 1.0: 0.20, 10.0: 0.21, 100.0: None}
    for lr, end in sgd.items():
        keep(results, "one", {"sgd": [end] * 5}, optimizer={"lr": lr})
    for lr, end in sibp.items():
        keep(results, "one", {"sibp cg:5": [end] * 5}, optimizer={"lr": lr, "prox_weight": 1.0})
    keep(results, "one", {"sibp cg:5": [0.21] * 5}, optimizer={"lr": 100.0, "prox_weight": 10.0})
    keep(results, "one", {"sgd": [0.2] * 5}, optimizer={"lr": 0.01, "momentum": 0.9})


REACHES = 1.0, 1 + math.log(0.4 / 0.21) / math.log(1.5 / 0.21)  # SIBP's best is 1; at 100, after 10, it diverges
RANGES = 2 + math.log(0.4 / 0.21) / math.log(0.9 / 0.21), REACHES[1] + math.log(2) / math.log(4.5)


@pytest.mark.parametrize(
    ("quantity", "at", "mine", "other", "holds"),
    [
        ("width of step sizes", {"prox_weight": 1, "momentum": 0}, 2.0, 1.0, True),
        ("width of step sizes", {}, 3.0, 2.0, True),
        ("largest step size", {"prox_weight": 1, "momentum": 0}, 10.0, 1.0, True),
        ("largest step size", {}, 100.0, 1.0, True),
        # SGD's best is 0.1, and doubles its loss on the way from 1 (0.21) to 10 (1.5) and from 0.01 (0.9) to 0.1.
        ("reach above the best step size", {"prox_weight": 1, "momentum": 0}, *REACHES, False),
        ("range of step sizes", {"prox_weight": 1, "momentum": 0}, *RANGES, True),
        ("room before divergence", {"prox_weight": 1, "momentum": 0}, 2.0, 3.0, False),
    ],
)
def test_step_sizes_over_all_settings(results, quantity, at, mine, other, holds):
    keep_steps(results)
    found = find(better(quantity=quantity, at=at), Evidence(results))
    assert (found.mine.median, found.other.median) == (pytest.approx(mine), pytest.approx(other))
    assert found.holds is holds
    swapped = Better("sgd", "sibp cg:5", quantity, "one", None, at)
    assert find(swapped, Evidence(results)).why == ("worse" if holds else "better")


@pytest.mark.parametrize(
    ("values", "below", "holds", "why"),
    [
        ([1e-9, 1e-8], True, True, "2 of 2"),
        ([1e-9, 0.1], True, False, "1 of 2"),
        ([1e-9, None], True, False, "1 of 2"),
        ([3, 4], False, True, "2 of 2"),
        ([3, 0], False, False, "1 of 2"),
    ],
)
def test_every_row_of_a_kept_record(results, values, below, holds, why):
    criterion = Every("limits.gradient", "rest/limits.json", 1e-6, below)
    assert find(criterion, Evidence(results)).why == "not run yet (`python scripts/reproduce.py rest`)"
    (results / "rest").mkdir()
    record = {"limits": [{"gradient": value} for value in values]}
    (results / "rest" / "limits.json").write_text(json.dumps(record))
    found = find(criterion, Evidence(results))
    assert (found.holds, found.why) == (holds, why)


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"limits": []}, "results/rest/limits.json has no list of rows 'limits'."),
        ({}, "results/rest/limits.json has no list of rows 'limits'."),
        ({"limits": [{"gradient": 0}, {}]}, "results/rest/limits.json: a row of 'limits' has no 'gradient'."),
    ],
)
def test_a_record_without_the_field_is_refused(results, record, sentence):
    """Nothing holds for all rows of an empty list."""
    (results / "rest").mkdir()
    (results / "rest" / "limits.json").write_text(json.dumps(record))
    with pytest.raises(UsageError) as error:
        find(Every("limits.gradient", "rest/limits.json", 1.0, True), Evidence(results))
    assert str(error.value) == sentence


def test_a_folder_of_several_problems_is_refused(results):
    for folder, batch in (("layers1", 10), ("layers9", 20)):
        made = write_run(results.parent / "made" / folder / "run", SGD, 0, batch_size=batch)
        (results / "deep" / folder).mkdir(parents=True)
        (results / "deep" / folder / PACKED).write_text(pack(collect([made]).runs))
    with pytest.raises(UsageError, match="results/deep has 2 problems: name one of its folders"):
        find(better(place="deep"), Evidence(results))


@pytest.mark.parametrize(
    ("holds", "word"),
    [
        ([True, True], "reproduced"),
        ([False, False], "not reproduced"),
        ([True, False], "partly"),
        ([True, False, None], "partly"),
        ([True, None], "inconclusive"),
        ([False, None], "inconclusive"),
        ([None], "inconclusive"),
    ],
)
def test_a_verdict_is_given_once_no_open_criterion_can_change_it(holds, word):
    assert judge(holds) == word
    assert judge(holds[::-1]) == word


def claim(**changes: Any) -> dict[str, Any]:
    criteria = [{"better": "sibp cg:5", "than": ["sgd", "proxbp exact"], "in": "training loss", "of": "one"}]
    return {"claim": "It is faster.", "states": "It is better.", "criteria": criteria} | changes


def write(folder: Path, **claims: Any) -> Path:
    (folder / "claims.yaml").write_text(yaml.safe_dump(claims, sort_keys=False))
    return folder / "claims.yaml"


def verdict_of(each: Judged, *, per_second: bool = False) -> str:
    return each.tally(per_second).partition("**:")[0].strip("*")


def only(**changes: Any) -> list[dict[str, Any]]:
    (criterion,) = claim()["criteria"]
    return [{key: value for key, value in (criterion | changes).items() if value is not None}]


EVERY = {"every": "limits.gradient", "of": "rest/limits.json", "below": 1}


@pytest.mark.parametrize(
    ("node", "sentence"),
    [
        ([], "fast is not a mapping."),
        (claim(states=None), "fast: states is None, not text."),
        ({"claim": "?", "criteria": []}, "fast: states is missing."),
        (claim(criteria=[]), "fast: criteria is [], not a list with something in it."),
        (
            claim(verdict="yes"),
            "fast: there is no key verdict; choose from beside, claim, criteria, first, note, states.",
        ),
        (claim(criteria=only(**{"in": None})), "fast: criteria[0]: in is missing."),
        (claim(beside=only(of=None)), "fast: beside[0]: of is missing."),
        (claim(criteria=only(**{"in": "loss"})), "fast: criteria[0]: in is 'loss', not one of training loss, "),
        (claim(criteria=only(than="sgd")), "fast: criteria[0]: than is 'sgd', not a list with something in it."),
        (claim(criteria=only(by=2)), "fast: criteria[0]: there is no key by; choose from at, better, in, of, "),
        (claim(criteria=only(at={"lr": "big"})), "fast: criteria[0]: at: lr is 'big', not a number."),
        (claim(criteria=only(of="two")), "fast: criteria: there is no experiment 'two' in experiments.yaml."),
        (claim(criteria=only(of="deep/layers2")), "fast: criteria: deep has no folder 'layers2'; choose from layers1"),
        (claim(criteria=only(relative_to="two")), "fast: criteria: there is no experiment 'two' in experiments.yaml."),
        (claim(criteria=[EVERY | {"above": 0}]), "fast: criteria[0]: give one bound, below or above."),
        (claim(criteria=[EVERY | {"below": "1"}]), "fast: criteria[0]: below is '1', not a number."),
        (claim(criteria=[EVERY | {"every": "gradient"}]), "fast: criteria[0]: every is gradient, not LIST.FIELD."),
        (claim(criteria=[EVERY | {"of": "rest"}]), "fast: criteria: rest is not EXPERIMENT/FILE.json."),
    ],
)
def test_an_invalid_claim_is_named_in_one_sentence(tmp_path, node, sentence):
    with pytest.raises(UsageError) as error:
        read_claims(write(tmp_path, fast=node), EXPERIMENTS)
    assert str(error.value).startswith(f"claims.yaml: {sentence}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"), [("a: [", "claims.yaml is not valid YAML"), ("", "claims.yaml contains no claims")]
)
def test_a_file_without_claims_is_refused(tmp_path, text, sentence):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(UsageError, match=sentence):
        read_claims(tmp_path / "claims.yaml", EXPERIMENTS)


def test_the_page_has_verdicts_commands_metrics_and_uncounted_criteria(results):
    keep(results, "one", {"sgd": HIGH, "proxbp exact": LOW, "sibp cg:5": LOW})
    path = write(results, fast=claim(beside=only(of="deep/layers9")), deep=claim(criteria=only(of="deep/layers9")))
    found = judged(read_claims(path, EXPERIMENTS), Evidence(results))
    assert [verdict_of(each) for each in found] == ["partly", "inconclusive"]
    assert [verdict_of(each, per_second=True) for each in found] == ["partly", "inconclusive"]
    text = page(found, EXPERIMENTS, results, ["one"])
    assert "| 1. It is faster. | **partly**: 1 of 2 hold | **partly**: 1 of 2 hold |" in text
    assert "| 2. It is faster. | **inconclusive**: 0 of 2 hold, 2 open |" in text
    assert "| **yes** | sibp cg:5 | sgd | training loss | one | 0.42 [0.4, 0.44] | 0.52 [0.5, 0.54] | -0.1" in text
    assert "| no | sibp cg:5 | proxbp exact | training loss | one | 0.42 [0.4, 0.44] | 0.42 [0.4, 0.44] | 0 " in text
    assert "- one: Who is better? `python scripts/reproduce.py one`, about 3 minutes. Seconds mean nothing." in text
    assert "`python scripts/reproduce.py deep`, about 5 minutes. **Not run yet.**" in text
    opened = (
        "- open, not run yet (`python scripts/reproduce.py deep`): sibp cg:5 better than sgd in training loss of deep/"
    )
    assert opened in text
    assert "![Who is better?](one/one.svg)" in text
    assert "| rest | Where does it rest? | 1 | no: `python scripts/reproduce.py rest` |" in text
    assert verdict_table(found) in text
    rows = csv_text(found).splitlines()
    assert len(rows) == 1 + 2 + 2 + 2
    assert rows[1].startswith("fast,yes,yes,sibp cg:5 better than sgd in training loss,one,better,0.42,0.4,0.44,0.52,")
    assert sum(row.startswith("fast,no,open,") for row in rows) == 2


FIRST = {"written": "2026-01-01", "changed": "2026-01-02", "why": "it was too strict.", "criteria": only(than=["sgd"])}


def test_a_first_wording_is_shown_but_does_not_count(results):
    keep(results, "one", {"sgd": HIGH, "proxbp exact": HIGH, "sibp cg:5": LOW})
    node = claim(
        criteria=only(than=["proxbp exact"]), first=FIRST | {"criteria": only(better="sgd", than=["sibp cg:5"])}
    )
    (found,) = judged(read_claims(write(results, fast=node), EXPERIMENTS), Evidence(results))
    assert verdict_of(found) == "reproduced"
    text = page([found], EXPERIMENTS, results, [])
    said = "**As first written** on 2026-01-01, changed on 2026-01-02: it was too strict. By the first wording: "
    assert f"{said}**not reproduced**: 0 of 1 hold." in text
    assert sum(row.startswith("fast,first wording,no,sgd better") for row in csv_text([found]).splitlines()) == 1


def test_a_first_wording_needs_dates_and_a_reason(tmp_path):
    node = claim(first={key: value for key, value in FIRST.items() if key != "why"})
    with pytest.raises(UsageError, match=r"claims.yaml: fast: first: why is missing"):
        read_claims(write(tmp_path, fast=node), EXPERIMENTS)


def test_comparisons_of_a_claim_are_corrected_for_their_number(results):
    """Ten seeds of ten: 2 / 2^10 each, and Holm doubles the least of two. Five of five: 2 / 2^5, too much."""
    keep(results, "one", {"sgd": [*HIGH, *HIGH], "proxbp exact": [*HIGH, *HIGH], "sibp cg:5": [*LOW, *LOW]})
    (found,) = judged(read_claims(write(results, fast=claim()), EXPERIMENTS), Evidence(results))
    text = page([found], EXPERIMENTS, results, [])
    assert text.count(f"| {4 / 2**10:.3g} |") == 2
    assert "Significant at 0.05: 2 (sign test, Holm-corrected for 2 comparisons)." in text
    keep(results, "deep/layers1", {"sgd": HIGH, "sibp cg:5": LOW})
    node = claim(criteria=only(than=["sgd"], of="deep/layers1"))
    (found,) = judged(read_claims(write(results, fast=node), EXPERIMENTS), Evidence(results))
    assert "Significant at 0.05: 0 (sign test, Holm-corrected for 1 comparisons)." in page(
        [found], EXPERIMENTS, results, []
    )


def test_rows_of_several_lists_are_joined(results):
    (results / "rest").mkdir()
    record = {"smooth": [{"gradient": 1e-9}], "kinked": [{"gradient": 0.1}]}
    (results / "rest" / "limits.json").write_text(json.dumps(record))
    found = find(Every("smooth+kinked.gradient", "rest/limits.json", 1e-6, True), Evidence(results))
    assert (found.holds, found.why, found.mine) == (False, "1 of 2", 0.1)


def test_no_verdict_per_second_without_seconds(results):
    (results / "rest").mkdir()
    (results / "rest" / "limits.json").write_text(json.dumps({"limits": [{"gradient": 0}]}))
    found = judged(read_claims(write(results, still=claim(criteria=[EVERY])), EXPERIMENTS), Evidence(results))
    assert (verdict_of(found[0]), verdict_of(found[0], per_second=True)) == ("reproduced", "–")
    assert "| 1. It is faster. | **reproduced**: 1 of 1 hold | – |" in verdict_table(found)


def test_step_by_step_and_second_by_second_may_differ(results):
    keep(results, "one", {"sgd": HIGH, "sibp cg:5": LOW}, seconds={"sibp cg:5": 0.02})
    path = write(results, fast=claim(criteria=only(than=["sgd"])))
    (found,) = judged(read_claims(path, EXPERIMENTS), Evidence(results))
    assert (verdict_of(found), verdict_of(found, per_second=True)) == ("reproduced", "not reproduced")
    text = page([found], EXPERIMENTS, results, [])
    assert "Verdict **reproduced**: 1 of 1 hold; for equal seconds **not reproduced**: 0 of 1 hold." in text
    assert "| better, 5 of 5 seeds | worse, 0 of 5 seeds |" in text


def test_measured_steps_time_kept_runs(results):
    """Of several nets, that of the runs; theirs took twice as long as SGD's by their own seconds."""
    keep(results, "deep/layers1", {"sgd": HIGH, "sibp cg:5": LOW}, seconds={"sibp cg:5": 0.02})
    assert find(better(place="deep/layers1"), Evidence(results)).clock.measured.median == pytest.approx(2.0)
    nets = {"64-64-64-10": 9.0, "64-64-10": 1.5}
    cases = [
        {"net": net, "batch": 50, "seconds_per_step": {"sgd": [1.0, 2.0], "sibp cg:5": [cost, 2 * cost]}}
        for net, cost in nets.items()
    ]
    (results / KEPT).parent.mkdir()
    (results / KEPT).write_text(json.dumps({"machine": {}, "cases": cases}))
    assert find(better(place="deep/layers1"), Evidence(results)).clock.measured.median == pytest.approx(1.5)
    cases[1]["seconds_per_step"]["sibp cg:5"] = [2.5, 5.0]
    (results / "deep" / OWN_CLOCK).write_text(json.dumps({"machine": {}, "cases": cases}))
    assert find(better(place="deep/layers1"), Evidence(results)).clock.measured.median == pytest.approx(2.5)
