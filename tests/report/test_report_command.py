"""The command and the files it writes."""

import csv
import errno
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import pytest
from fake_runs import PROXBP, SGD, SIBP, write_run

from sibp.report.__main__ import main
from sibp.report.markdown import lines_of_table

PACKAGE = Path(__file__).parents[2] / "sibp" / "report"
RUNS = PACKAGE.parent / "runs"


def report(*words: object) -> None:
    assert main([str(word) for word in words]) == 0


@pytest.fixture(scope="module")
def written(study, tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    report(study, "--out", folder / "report.html", "--format", "html,md,csv,png", "--target-loss", "0.02")
    return folder


def outside_scripts(html: str) -> str:
    return re.sub(r"<script.*?</script>", "", html, flags=re.DOTALL)


def plots(html: str) -> list[dict]:
    return [json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', html, re.DOTALL)]


def table(folder: Path, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / f"report-{name}.csv").read_text().splitlines()))


def test_every_format_is_written(written):
    html, text = (written / "report.html").read_text(), (written / "report.md").read_text()
    titles = ("Loss and accuracy", "Learning-rate robustness", "Is the comparison fair?", "layer by layer")
    assert all(title in html for title in titles)
    assert [title for title in titles if title not in text] == ["layer by layer"]  # folded on the page
    names = {path.name for path in written.glob("*.csv")}
    assert names >= {
        f"report-{n}.csv" for n in ("verdicts", "summary", "settings", "budget", "runs", "broken", "versions")
    }
    pictures = sorted(path.name for path in written.glob("*.png"))
    assert len(pictures) == len(plots(html)) == 9  # three dots with intervals, three curves, lr, two of the solver
    left_out = [name for name in pictures if f"]({name})" not in text]
    assert left_out == ["report-01-solver-00.png", "report-01-solver-01.png"]  # likewise
    assert all((written / name).read_bytes().startswith(b"\x89PNG") for name in pictures)


def test_the_page_is_self_contained(written):
    html = (written / "report.html").read_text()
    assert html.count("plotly.js (basic - minified)") == 1
    assert len(html) < 2_000_000
    markup = outside_scripts(html)
    assert not re.findall(r"""(?:src|href|action|data)\s*=\s*["']?\s*(?:https?:|//)""", markup, re.IGNORECASE)
    assert "url(" not in markup
    assert "@import" not in markup
    assert "default-src 'none'" in html


def test_links_lead_to_the_run_folders(study, written):
    html = outside_scripts((written / "report.html").read_text())
    links = re.findall(r'<td><a href="([^"]*)"', html)
    assert all(link.startswith("../") for link in links)
    folders = {(written / unquote(link)).resolve() for link in links}
    assert folders == {path.resolve() for path in study.iterdir()}


def test_verdicts_say_who_is_better(written):
    rows = {(row["in"], row["method"], row["against"]): row for row in table(written, "verdicts")}
    row = rows["final train loss", "sibp cg:5", "sgd"]
    assert (row["verdict"], row["seeds"], row["won / tied / lost"]) == ("better", "5", "5 / 0 / 0")
    assert float(row["median difference"]) == pytest.approx(-0.0255)
    text = (written / "report.md").read_text()
    won = "Final train loss: sibp cg:5 won (0.0255 \\[0.025, 0.026\\]), better than proxbp exact and sgd; "
    assert won + "the nearest, proxbp exact, is behind by 0.0051 " in text
    assert "on 5 of 5 seeds (sign test p = 0.0625)" in text
    assert "Final val acc: sibp cg:5 won" in text
    assert "A step of sibp cg:5 costs 4 \\[4, 4\\] times one of sgd; sibp cg:5 is ahead only below 1 " in text
    # Of three comparisons with p = 1/16 each, all are multiplied by 3.
    family = [row for row in rows.values() if row["in"] == "final val acc"]
    assert {(row["sign test p"], row["p by Holm"]) for row in family} == {("0.0625", "0.1875")}


def test_summary_has_medians_intervals_cost_and_infinite_targets(written):
    rows = {row["method"]: row for row in table(written, "summary")}
    sgd = rows["sgd"]
    assert float(sgd["final train loss"]) == pytest.approx(0.05 * 1.02)
    assert float(sgd["final train loss (95 % low)"]) == pytest.approx(0.05)
    assert float(sgd["final train loss (95 % high)"]) == pytest.approx(0.05 * 1.04)
    assert (sgd["steps to train loss ≤ 0.02"], sgd["seconds to train loss ≤ 0.02"]) == ("inf", "inf")
    assert (sgd["steps to val acc ≥ 0.9"], sgd["step cost against SGD"]) == ("30.0", "1.0")
    assert float(sgd["ms per step"]) == pytest.approx(1)
    assert float(rows["sibp cg:5"]["step cost against SGD"]) == pytest.approx(4)
    assert (sgd["completed"], sgd["diverged"]) == ("5", "0")
    assert "| ∞ \\[∞, ∞\\] |" in (written / "report.md").read_text()


def test_failed_runs_are_rows(written):
    status = {row["folder"].rpartition("/")[2]: row for row in table(written, "runs")}
    assert status["sgd-lr3.0-s100"]["status"] == "diverged"
    assert status["sgd-lr3.0-s100"]["reason"] == "the training loss became nan at step 21"
    assert status["sibp-failed"]["status"] == "failed"
    assert status["sgd-unfinished"]["status"] == "unfinished"
    (broken,) = table(written, "broken")
    assert broken["folder"].endswith("sibp-broken")
    assert broken["reason"] == "summary.json is not text (byte 0)"
    markdown = (written / "report.md").read_text()
    assert "42 runs: 37 completed, 2 diverged, 1 failed, 1 unfinished, 1 broken." in markdown


def test_test_metrics_are_shown_for_chosen_settings_only(written):
    assert not any("test" in column for column in table(written, "settings")[0])
    assert {row["setting"] for row in table(written, "runs") if row["test acc"]} == {
        "lr=0.3",
        "lr=0.3 prox_weight=1",
        "lr=0.3 prox_weight=3",
    }


def test_weak_points_are_warnings(written):
    html = (written / "report.html").read_text()
    warnings = re.findall(r'<p class="warning">(.*?)</p>', html)
    expected = ("prox_weight = 1 is the smallest tried", "Unequal budgets", "sgd: 1 unfinished run", "Unequal start")
    assert all(any(words in warning for warning in warnings) for words in expected)
    assert any("sgd-lr0.1-s100 and sgd-unfinished" in warning for warning in warnings)
    assert sum("edge of the grid" in warning for warning in warnings) == 1  # all edges in one


def test_the_page_of_a_single_method_is_named_after_it(tmp_path):
    for seed in range(3):
        write_run(tmp_path / "runs" / str(seed), SGD, seed)
    assert main([str(tmp_path / "runs"), "--out", str(tmp_path / "report.html")]) == 0
    (title,) = re.findall(r"<h1>(.*?)</h1>", (tmp_path / "report.html").read_text())
    assert title == "sgd: digits · mlp 64 · batch 50 · 1 epoch"


def test_the_page_names_its_problem_and_states_the_rules(written):
    html, text = (written / "report.html").read_text(), (written / "report.md").read_text()
    (title,) = re.findall(r"<h1>(.*?)</h1>", html)
    assert title == "Who won? digits · mlp 64 · batch 50 · 1 epoch"
    for rule in ("The chosen setting of a method", "A verdict", "The break-even ratio"):
        assert f"<b>{rule}</b>" in html
        assert rule not in text
    assert "With fewer than 5 shared seeds" in html
    assert "Performance profiles" not in html  # the arena's


@pytest.mark.parametrize(
    ("kernels", "told"),
    [
        ((None, None), None),
        (("none", "none"), None),
        (("native (AVX2)", "none"), "native (AVX2), none"),
        ((None, "none"), "none, unknown"),
    ],
)
def test_different_kernels_are_a_warning(tmp_path, kernels, told):
    for name, optimizer, found in zip("ab", (SGD, SIBP), kernels, strict=True):
        about = {"host": "box", "device": "cpu", "threads": 1} | ({"kernels": found} if found else {})
        write_run(tmp_path / name, optimizer, summary={"environment": about})
    report(tmp_path, "--out", tmp_path / "report.html", "--format", "html")
    warnings = re.findall(r'<p class="warning">(.*?)</p>', (tmp_path / "report.html").read_text())
    expected = [f"⚠ Runs differ in their compiled kernels ({told}): compare steps, not seconds."] if told else []
    assert [warning for warning in warnings if "kernels" in warning] == expected


@pytest.mark.parametrize(("loads", "told"), [((1.0, 1.9), False), ((1.0, 2.5), True), ((None, 9.0), False)])
def test_unequal_load_is_a_warning(tmp_path, loads, told):
    for name, optimizer, load in zip("ab", (SGD, SIBP), loads, strict=True):
        about = {"host": "box", "device": "cpu", "threads": 1, "load": load}
        write_run(tmp_path / name, optimizer, summary={"environment": about})
    report(tmp_path, "--out", tmp_path / "report.html", "--format", "html")
    page = (tmp_path / "report.html").read_text()
    assert ("Machine load varied from 1 to 2.5 processes between runs" in page) == told


@pytest.mark.parametrize(("timed", "told"), [(("sgd", "cg:5"), False), (("sgd",), True)])
def test_unequal_load_is_no_warning_where_a_clock_times_all_methods(tmp_path, timed, told):
    for name, optimizer, load in (("a", SGD, 1.0), ("b", SIBP, 9.0)):
        write_run(tmp_path / "runs" / name, optimizer, summary={"environment": {"host": "box", "load": load}})
    case = {"net": "64-64-10", "batch": 50, "seconds_per_step": {name: [0.1] for name in timed}}
    (tmp_path / "clock.json").write_text(json.dumps({"cases": [case]}))
    words = ["--clock", tmp_path / "clock.json", "--out", tmp_path / "report.html", "--format", "html"]
    report(tmp_path / "runs", *words)
    assert ("Machine load varied" in (tmp_path / "report.html").read_text()) == told


def test_divergences_are_crosses_on_the_robustness_plot(written):
    figures = plots((written / "report.html").read_text())
    (figure,) = [f for f in figures if f["x_title"] == "lr"]
    crosses = [line for line in figure["lines"] if line["kind"] == "cross"]
    assert [(line["group"], line["x"]["lr"]) for line in crosses] == [("sgd", [3.0]), ("sibp cg:5", [0.3])]
    assert crosses[0]["texts"] == ["sgd, lr=3: 2 diverged of 2"]
    medians = [line for line in figure["lines"] if line["kind"] == "median"]
    lines = {line["group"]: dict(zip(line["x"]["lr"], line["y"], strict=True)) for line in medians}
    assert lines["sgd"][0.3] == pytest.approx(0.051)
    assert lines["sgd"][3.0] == max(lines["sgd"].values())


def test_curves_have_a_median_a_band_and_every_seed(written):
    figures = plots((written / "report.html").read_text())
    (figure,) = [f for f in figures if f["curves"] and f["y_title"] == "train loss"]
    lines = [line for line in figure["lines"] if line["group"] == "sgd"]
    assert figure["y_log"]
    assert [line["detail"] for line in lines if line["kind"] == "seed"] == [f"lr=0.3, seed {i}" for i in range(5)]
    (median,) = [line for line in lines if line["kind"] == "median"]
    assert [median[key][-1] for key in ("low", "y", "high")] == pytest.approx([0.05, 0.051, 0.052])
    assert median["x"]["training steps"] == [0, 10, 20, 30]
    assert median["x"]["training seconds"] == pytest.approx([0, 0.01, 0.02, 0.03])
    assert median["x"]["epochs"] == pytest.approx([0, 0.1, 0.2, 0.3])  # ten steps are a tenth of an epoch
    assert median["detail"] == "lr=0.3"


def test_equal_start_is_stated_or_unknown(tmp_path):
    for i, optimizer in enumerate((SGD, PROXBP)):
        write_run(tmp_path / "equal" / str(i), optimizer, losses=(2.0, 1.0))
        without = {"initial_weights_sha256": None, "data_sha256": None, "batches_sha256": None}
        folder = write_run(tmp_path / "unknown" / str(i), optimizer, losses=(2.0, 1.0), summary=without)
        (folder / "metrics.jsonl").write_text((folder / "metrics.jsonl").read_text().splitlines()[1] + "\n")
        (folder / "summary.json").write_text((folder / "summary.json").read_text().replace("initial_train_loss", "x"))
    for name in ("equal", "unknown"):
        report(tmp_path / name, "--out", tmp_path / f"{name}.html", "--format", "md")
    equal = "for each seed, all runs had the same initial training loss, initial weights, data, batches"
    assert equal in (tmp_path / "equal.md").read_text()
    assert (
        "Not recorded and not checked: initial training loss, initial weights, data, batches"
        in (tmp_path / "unknown.md").read_text()
    )


def test_unequal_weights_are_a_warning(tmp_path):
    write_run(tmp_path / "a", SGD)
    write_run(tmp_path / "b", SIBP, summary={"initial_weights_sha256": "other"})
    report(tmp_path, "--out", tmp_path / "report.html", "--format", "md")
    assert "**Warning:** Unequal start: initial weights" in (tmp_path / "report.md").read_text()


EVIL = "<script>alert(1)</script>"


def test_any_content_of_a_run_folder_is_shown_as_text(tmp_path):
    evil = {**SIBP, "name": EVIL, "solver": "</script><img src=x onerror=alert(2)>", "lr": [EVIL]}
    odd = {"dataset": {"name": EVIL}, "model": {"name": '"><b>', "hidden": [EVIL]}, "batch_size": "`|`"}
    about = {"versions": {EVIL: EVIL}, "git_commit": EVIL, "host": "%{x}", "device": EVIL}
    for seed in (0, 1):
        changes = {"reason": EVIL, "environment": about}
        write_run(tmp_path / "runs" / f"<script>{seed}", evil, seed, layers=(EVIL,), summary=changes, **odd)
    write_run(tmp_path / "runs" / "javascript:alert(3)", evil, 3, **odd)
    write_run(tmp_path / "runs" / "formula", {**SGD, "name": "=1+1"}, **odd)
    (tmp_path / "runs" / "half").mkdir()
    (tmp_path / "runs" / "half" / "summary.json").write_text('{"status": "<script>"}')
    report(tmp_path / "runs", "--out", tmp_path / "report.html", "--format", "html,md,csv,png")
    html = (tmp_path / "report.html").read_text()
    ours = 1 + 1 + 1 + len(plots(html))  # plotly, page.js, the styles and the figures
    assert len(re.findall(r"<script", outside_plotly(html))) == ours - 1
    assert len(re.findall(r"</script", outside_plotly(html))) == ours - 1
    assert "<img" not in outside_plotly(html)
    assert "&lt;script&gt;alert(1)" in html
    assert 'href="javascript' not in html
    assert "javascript%3Aalert" in html
    markdown = (tmp_path / "report.md").read_text()
    assert "<script" not in markdown
    assert "\\`\\|\\`" in markdown
    methods = [row["method"] for row in table(tmp_path, "budget")]
    assert "'=1+1" in methods  # quoted, so that a spreadsheet reads it as text
    assert all("<" not in text for text in re.findall(r'"application/json">(.*?)</script>', html, re.DOTALL))
    assert any(line["group"].startswith(EVIL) for figure in plots(html) for line in figure["lines"])


def outside_plotly(html: str) -> str:
    scripts = re.findall(r"<script>.*?</script>", html, re.DOTALL)
    return html.replace(max(scripts, key=len), "")


def test_undecodable_names_are_shown_safely(tmp_path):
    runs = tmp_path / "runs"
    write_run(runs / os.fsdecode(b"bad\xff\nname"))
    write_run(runs / "$\\frac{1}", {**SGD, "name": "$\\frac{1$", "lr": 0.5}, reason="\ud800")
    report(runs, "--out", tmp_path / "report.html", "--format", "html,md,csv,png")
    html = (tmp_path / "report.html").read_text()
    assert "runs/bad%FF%0Aname" in html


def test_same_input_gives_the_same_bytes(study, written, tmp_path, monkeypatch):
    copies = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        report(study, "--format", "csv,html,md")
        copies.append({path.name: path.read_bytes() for path in Path.cwd().iterdir()})
    assert copies[0] == copies[1]
    assert len(copies[0]) > 7


def test_only_broken_runs_still_make_a_report(tmp_path):
    folder = write_run(tmp_path / "run")
    (folder / "config.yaml").unlink()
    report(tmp_path, "--out", tmp_path / "report.html")
    html = (tmp_path / "report.html").read_text()
    assert "config.yaml is missing" in html
    assert "plotly.js" not in html


def test_runs_without_result_make_a_report(tmp_path):
    write_run(tmp_path / "a", losses=(2.0,), status=None)
    write_run(tmp_path / "b", SIBP, losses=(None,), status="diverged")
    write_run(tmp_path / "c", {**SIBP, "lr": 9}, losses=(0.0, 0.0))
    report(tmp_path, "--out", tmp_path / "report.html", "--format", "html,md,csv,png")


WRONG = {
    "no file for the page": (["{}", "--out", "/"], "'/' is not a file name: give one such as report.html"),
    "a folder's name that is too long": (["x" * 5000], "does not exist"),
    "no such folder": (["{}/nowhere"], "nowhere does not exist: give folders that hold runs."),
    "no runs": (["{}"], "There are no runs in"),
    "unknown format": (["{}", "--format", "pdf"], "there is no format 'pdf'; choose from html, md, csv, png"),
    "no folder": ([], "the following arguments are required: DIR"),
    "accuracy in percent": (["{}", "--target-acc", "95"], "95 is not an accuracy"),
    "accuracy is a word": (["{}", "--target-acc", "high"], "high is not an accuracy"),
    "loss below zero": (["{}", "--target-loss", "-1"], "-1 is not a target loss"),
    "one file for two formats": (
        ["{}", "--out", "{}/x.md", "--format", "md,html"],
        "x.md would be both the page and the Markdown: give one in .html.",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_input_is_one_sentence_and_exit_code_2(tmp_path, capsys, case):
    words, sentence = WRONG[case]
    try:
        code = main([word.format(tmp_path) for word in words])
    except SystemExit as stop:
        code = stop.code
    said = capsys.readouterr()
    assert code == 2
    assert sentence in said.err.splitlines()[-1]
    assert "Traceback" not in said.err
    assert not said.out


def test_an_unwritable_page_is_one_sentence(study, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert main([str(study), "--out", str(tmp_path / "file" / "report.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_unwritable_file_is_named(study, tmp_path, capsys):
    (tmp_path / "x.md").mkdir()
    assert main([str(study), "--out", str(tmp_path / "x.html"), "--format", "md"]) == 2
    assert f"cannot be written to {tmp_path / 'x.md'} (Is a directory)" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["pipe", "link to a device", "folder"])
def test_a_page_replaces_nothing_but_a_file(study, tmp_path, capsys, kind):
    out = tmp_path / "report.html"
    {"pipe": os.mkfifo, "link to a device": lambda path: path.symlink_to("/dev/null"), "folder": os.mkdir}[kind](out)
    before = out.lstat()
    assert main([str(study), "--out", str(out)]) == 2
    assert f"cannot be written to {out} (it is no ordinary file): give another --out." in capsys.readouterr().err
    assert (out.lstat().st_mode, out.lstat().st_ino) == (before.st_mode, before.st_ino)


def test_ctrl_c_is_one_sentence(study, tmp_path, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("sibp.report.__main__.compare", interrupted)
    assert main([str(study), "--out", str(tmp_path / "report.html")]) == 130
    assert capsys.readouterr().err == "Interrupted before the report was complete.\n"


def test_help_explains_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("DIR", "--out", "--format", "--target-acc", "--target-loss", "metrics.jsonl"))


BLOCKED = """
import sys, types
package = types.ModuleType("sibp")
package.__path__ = [{root!r}]
sys.modules["sibp"] = package
for name in ("torch", "sibp.experiment", "sibp.optim", "hydra", "omegaconf", "matplotlib", "pickle5"):
    sys.modules[name] = None
from sibp.report.__main__ import main
sys.exit(main({words!r}))
"""


def test_report_does_not_import_training_code(study, tmp_path):
    words = [str(study), "--out", str(tmp_path / "report.html"), "--format", "html,md,csv"]
    code = BLOCKED.format(root=str(PACKAGE.parent), words=words)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "report.html").exists()


def test_package_reads_no_pickle_and_yaml_only_safely():
    source = "\n".join(path.read_text() for folder in (PACKAGE, RUNS) for path in folder.glob("*.py"))
    assert not re.search(r"\b(import|from) (pickle|torch|sibp\.(experiment|optim|prox|capture))", source)
    assert re.findall(r"yaml\.(\w*[lL]oad\w*)", source) == ["load", "SafeLoader", "SafeLoader"]
    assert not re.search(r"\b(eval|exec)\(", source)


def test_markdown_omits_folded_parts(study, written, tmp_path):
    html, text = (written / "report.html").read_text(), (written / "report.md").read_text()
    for title in ("Pairwise verdicts", "Every setting tried", "with their folders"):
        assert title in html
        assert title not in text
    assert "<details>" not in text
    assert "### The chosen setting of every method" in text
    assert len(text.splitlines()) < 120
    report(study, "--out", tmp_path / "report.html", "--format", "md")
    assert "### Loss and accuracy" not in (tmp_path / "report.md").read_text()  # it would be empty


def test_medians_are_runs_for_tensorboard(study, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for _ in range(2):  # a second report replaces the first one's files
        report(study, "--out", tmp_path / "report.html", "--format", "tensorboard")
    files = list((tmp_path / "report-tensorboard").rglob("events.out.tfevents.*"))
    by_name = {file.parent.name: file for file in files}
    assert sorted(by_name) == [
        "proxbp_exact_lr=0.3_prox_weight=3,_median",
        "sgd_lr=0.3,_median",
        "sibp_cg:5_lr=0.3_prox_weight=1,_median",
    ]
    assert len(files) == 3
    events = EventAccumulator(str(by_name["sgd_lr=0.3,_median"].parent)).Reload()
    steps = [(event.step, event.value) for event in events.Scalars("loss/train")]
    loss = [2.3 + 0.02, 1.0, 0.3, 0.05 * 1.02]  # of seed 2, which is the median's
    assert steps == [(step, pytest.approx(value)) for step, value in zip((0, 10, 20, 30), loss, strict=True)]
    slower = EventAccumulator(str(by_name["sibp_cg:5_lr=0.3_prox_weight=1,_median"].parent)).Reload()
    times = [event.step for event in slower.Scalars("over_training_ms/loss/train")]
    assert times == [0, 40, 80, 120]  # a step takes 4 ms
    assert {"loss/val", "accuracy/val"} <= set(events.Tags()["scalars"])


def test_event_files_stay_in_their_folder_whatever_runs_are_called(tmp_path):
    """Names that leave the folder, are too long for a file, or differ only in characters that are replaced."""
    names = ["../../../up", "n" * 190, "ü", "ö"]
    for name in names:
        optimizer = {**SGD, "name": name, **{f"setting{i}": 1.0 for i in range(9)}}
        write_run(tmp_path / "runs" / str(names.index(name)), optimizer, dataset={"name": f"{tmp_path}/x"})
    report(tmp_path / "runs", "--out", tmp_path / "out" / "report.html", "--format", "tensorboard")
    files = list(tmp_path.rglob("events.out.tfevents.*"))
    assert all(file.is_relative_to(tmp_path / "out" / "report-tensorboard") for file in files)
    assert len({file.parent for file in files}) == len(names)


def test_a_full_disk_keeps_the_earlier_medians(study, tmp_path, monkeypatch, capsys):
    words = [str(study), "--out", str(tmp_path / "report.html"), "--format", "tensorboard"]
    report(*words)
    before = sorted(tmp_path.rglob("events.out.tfevents.*"))

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sibp.report.exports.write_atomic", full)
    assert main(words) == 2
    assert "(No space left on device): give another --out." in capsys.readouterr().err
    assert sorted(tmp_path.rglob("events.out.tfevents.*")) == before


def test_columns_of_numbers_are_right_aligned(written):
    lines = (written / "report.md").read_text().splitlines()
    (head,) = (i for i, line in enumerate(lines) if line.startswith("| method | setting | seeds |"))
    columns = dict(zip(lines[head].split(" | "), lines[head + 1].split(" | "), strict=True))
    assert columns["final train loss"] == columns["ms per step"] == "---:"
    assert columns["setting"] == "---"


@pytest.mark.parametrize(
    ("cell", "rule"),
    [
        ("1.395e-07 [2e-08, 3e-07]", "---:"),
        ("**0.5**", "---:"),
        ("∞ [1, ∞]", "---:"),
        ("3 seeds", "---"),
        ("e-07", "---"),
    ],
)
def test_a_number_may_have_an_exponent_an_interval_and_a_mark(cell: str, rule: str):
    assert lines_of_table(["a"], [[cell], ["0.25"]]).splitlines()[1] == f"| {rule} |"
