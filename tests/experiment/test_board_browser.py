"""Three methods in a real TensorBoard, asked as its page asks it and looked at in a real browser."""

import importlib.util
import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from sibp.experiment.compose import compose
from sibp.experiment.runner import run
from sibp.runs.folder import RunFolder

pytestmark = pytest.mark.slow

PATH = Path(__file__).parents[2] / "scripts" / "screenshot_tensorboard.py"
SETTINGS = {
    "sgd": {"lr": 0.2, "momentum": 0.9},
    "proxbp": {"lr": 1.0, "prox_weight": 3.0},
    "sibp": {"lr": 1.0, "prox_weight": 0.3},
}
ROWS = 9  # 0, 5, 10, 15, 20, 25, then every tenth step to 50
STATUSES = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy between this machine and itself
# Every element of a page, those in shadow roots too.
ALL = "(function all(r) { return [...r.querySelectorAll('*')].flatMap((e) => e.shadowRoot ? all(e.shadowRoot) : [e]) })"


@pytest.fixture(scope="module")
def tools() -> ModuleType:
    spec = importlib.util.spec_from_file_location("screenshot_tensorboard", PATH)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, RunFolder]:
    """One finished run a method, 50 steps on the digits."""
    before = torch.get_num_threads()
    root = tmp_path_factory.mktemp("runs")
    words = ["experiment=digits_quick", "epochs=2", "threads=1", "device=cpu", "progress=false", f"run_root={root}"]
    folders = {}
    for method, settings in SETTINGS.items():
        own = [f"optimizer.{key}={value}" for key, value in settings.items()]
        outcome = run(compose([*words, f"optimizer={method}", *own]))
        assert outcome.status == "completed", outcome.message
        folders[method] = outcome.folder
    torch.set_num_threads(before)
    return folders


@pytest.fixture(scope="module")
def address(tools: ModuleType, runs: dict[str, RunFolder]) -> Iterator[str]:
    """A TensorBoard that has read all of the runs."""
    root = runs["sgd"].path.parent
    with tools.tensorboard(root, "--reload_interval", "1") as address:
        end = time.monotonic() + tools.PATIENCE
        while [session["status"] for _, session in sessions(address)] != ["STATUS_SUCCESS"] * len(runs):
            assert time.monotonic() < end, "TensorBoard does not find the runs"
            time.sleep(0.1)
        yield address


@pytest.fixture(scope="module")
def page(tools: ModuleType) -> Iterator[Any]:
    if tools.CHROMIUM is None:
        pytest.skip("no Chromium: apt-get install chromium")
    with tools.Page(1500, 2500) as page:
        yield page


def ask(address: str, question: Any = None) -> Any:
    data = None if question is None else json.dumps(question).encode()
    request = urllib.request.Request(address, data, {"Content-Type": "application/json"})
    with DIRECT.open(request, timeout=60) as answer:
        return json.load(answer)


def sessions(address: str) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The table of hyper-parameters: each line's settings, and its session."""
    question = {"allowedStatuses": STATUSES, "startIndex": 0, "sliceSize": 100, "colParams": []}
    groups = ask(f"{address}data/plugin/hparams/session_groups", question)["sessionGroups"]
    return [(group["hparams"], session) for group in groups for session in group["sessions"]]


def names(runs: dict[str, RunFolder]) -> set[str]:
    return {f"{folder.path.name}/tb" for folder in runs.values()}


def test_one_logdir_has_every_run_once_under_its_folders_name(address, runs):
    found = ask(f"{address}data/runs")
    assert sorted(found) == sorted(names(runs))
    for method, lr in (("sgd", "0.2"), ("proxbp", "1"), ("sibp", "1")):
        assert sum(name.startswith(f"digits-mlp64-{method}-") and f"-lr{lr}-" in name for name in found) == 1


def test_curves_are_the_metrics(address, runs):
    scalars = f"{address}data/plugin/scalars/scalars"
    for folder in runs.values():
        rows = folder.rows()
        assert len(rows) == ROWS
        for tag, key in (("loss/train", "train_loss"), ("loss/val", "val_loss"), ("accuracy/val", "val_acc")):
            found = ask(f"{scalars}?run={folder.path.name}/tb&tag={tag}")
            start = found[0][0]
            assert [point[1:] for point in found] == [[row["step"], pytest.approx(row[key])] for row in rows]
            assert [point[0] - start for point in found] == [pytest.approx(row["seconds"], abs=1e-5) for row in rows]


def test_the_table_shows_differing_settings_first(address, runs):
    columns = ask(f"{address}data/plugin/hparams/experiment", {})["hparamInfos"]
    assert [column["name"] for column in columns if column["differs"]] == [
        "optimizer",
        "optimizer.lr",
        "optimizer.prox_weight",
        "optimizer.solver",
    ]
    assert [column["differs"] for column in columns] == sorted((c["differs"] for c in columns), reverse=True)


def test_the_table_has_every_runs_settings_and_final_metrics(address, runs):
    lines = {line["optimizer"]: (line, session) for line, session in sessions(address)}
    assert lines.keys() == SETTINGS.keys()
    for method, settings in SETTINGS.items():
        line, session = lines[method]
        assert {key: line[f"optimizer.{key}"] for key in settings} == settings
        assert ("optimizer.prox_weight" in line) == (method != "sgd")
        values = {metric["name"]["tag"]: metric["value"] for metric in session["metricValues"]}
        summary = runs[method].summary() or {}
        assert values["final/test_acc"] == pytest.approx(summary["test_acc"])
        assert values["final/val_loss"] == pytest.approx(summary["final"]["val_loss"])


def test_time_series_page_draws_every_curve(address, runs, page, tools):
    drawn = f"[...{tools.CURVES}].filter((e) => e.getAttribute('d').split('L').length == {ROWS}).length == 12"
    page.open(address + tools.VIEW, drawn)  # 4 cards, 3 runs
    text = page.ask("document.body.innerText.replaceAll(/\\s/g, '')")
    tags = {"accuracy/val", "loss/val", "over_training_ms/accuracy/val", "over_training_ms/loss/val"}
    for shown in tags | names(runs):
        assert shown in text
    assert page.errors == []


def test_custom_scalars_page_draws_every_curve(address, page):
    lines = f"{ALL}(document).filter((e) => e.matches('path.line') && e.getTotalLength() > 50)"
    page.open(address + "?smoothing=0#custom_scalars", f"{lines}.length >= 24")  # 8 charts, 3 runs
    text = page.ask(f"{ALL}(document).map((e) => e.innerText ?? '').join(' ')")
    assert "Against steps" in text
    assert "Against training milliseconds" in text
    assert page.errors == []


def test_hparams_page_shows_the_methods_settings(address, page):
    cells = f"{ALL}(document).filter((e) => e.tagName == 'VAADIN-GRID-CELL-CONTENT').map((e) => e.innerText.trim())"
    page.open(address + "#hparams", f"{cells}.includes('sibp')")
    shown = [cell for cell in page.ask(cells) if cell]
    columns = shown[2:6]
    assert columns == ["optimizer", "optimizer.lr", "optimizer.prox_weight", "optimizer.solver"]
    for method, solver in (("proxbp", "exact"), ("sibp", "cg:5")):
        place = shown.index(method)
        assert float(shown[place + 1]) == SETTINGS[method]["lr"]
        assert float(shown[place + 2]) == SETTINGS[method]["prox_weight"]
        assert shown[place + 3] == solver
    assert page.errors == []
