"""A small language model: its text, model, loss, `loss_average` and run folder."""

import hashlib
import math

import pytest
import torch
import torch.nn.functional as F
from test_board import curves, read

from sibp import Preconditioned
from sibp.experiment import characters
from sibp.experiment.compose import compose
from sibp.experiment.data import load_data
from sibp.experiment.loop import Trainer
from sibp.experiment.models import build_model
from sibp.experiment.objectives import NEXT_CHARACTER
from sibp.experiment.optimizers import build_optimizer
from sibp.experiment.runner import run
from sibp.experiment.settings import Settings
from sibp.runs.folder import RunFolder
from sibp.runs.identity import run_name

TINY = ["experiment=char_lm", "model.layers=1", "model.width=8", "model.heads=2", "threads=1", "device=cpu"]
SHORT = ["batch_size=4", "max_steps=6", "log_every=2", "log_early=null", "eval_train_limit=8", "progress=false"]
ALPHABET = "\nabc"
TEXT_SHA256 = "94e2778ee65800415cf087a530f13705fe2cd52305575aef16b053574b6b7bcf"


def config_of(tmp_path, *words, **changes):
    config = compose([*TINY, *SHORT, *words])
    return config | {"run_root": str(tmp_path / "runs"), "evaluate_test": False} | changes


@pytest.fixture(scope="module")
def text_data():
    return load_data({"name": "python_docs"}, "", False)


def test_the_text_matches_its_license():
    text = characters.read_text()
    assert (len(text), len(set(text))) == (510_060, 95)
    assert 'The "assert" statement\n**********' in text[:200]
    license = (characters.TEXT.parent / "LICENSE").read_text()
    assert "PYTHON SOFTWARE FOUNDATION LICENSE" in license
    assert "Copyright (c) 2001-2024 Python Software Foundation" in license
    assert hashlib.sha256(text.encode()).hexdigest() == TEXT_SHA256


def test_windows_cover_the_text_once_and_their_labels_are_the_next_characters():
    codes = torch.arange(3 * characters.WINDOW + 5)
    seen, following = characters.windows(codes)
    assert torch.equal(seen.flatten(), codes[: 3 * characters.WINDOW])
    assert torch.equal(following, seen + 1)


def test_no_window_is_in_two_splits(text_data):
    masks = torch.stack(characters.parts(7969))
    assert masks.sum(0).eq(1).all()
    assert [len(part) for part in (text_data.train, text_data.val, text_data.test)] == [7173, 398, 398]
    first = "".join(text_data.letters[code] for code in text_data.train.inputs[0].tolist())
    assert first == characters.read_text()[:64]


def test_a_prediction_does_not_depend_on_later_characters(text_data):
    model = build_model(compose(TINY)["model"], text_data.shape, text_data.classes, 0)
    one = text_data.train.inputs[:1].clone()
    other = one.clone()
    other[0, 40] = (other[0, 40] + 1) % text_data.classes
    before, after = model(one), model(other)
    assert torch.allclose(before[:, :40], after[:, :40], atol=1e-6)
    assert not torch.allclose(before[:, 40], after[:, 40], atol=1e-6)
    assert model(one[:, :5]).shape == (1, 5, text_data.classes)


def test_the_loss_is_a_mean_over_characters():
    logits, words = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    each = -F.log_softmax(logits, -1).gather(-1, words[..., None])
    assert NEXT_CHARACTER.loss(logits, words, words, "mean").item() == pytest.approx(each.mean().item(), rel=1e-5)
    # Evaluation divides by the number of windows and must give the same mean.
    assert NEXT_CHARACTER.loss(logits, words, words, "sum").item() / 3 == pytest.approx(each.mean().item(), rel=1e-5)


@pytest.mark.parametrize("optimizer", ["sibp", "sibp_auto", "proxbp_adam"])
def test_a_proximal_step_is_that_of_the_loss_summed_over_characters(tmp_path, text_data, optimizer):
    """The displacements of a batch's token-mean loss against those of the sum, which needs no number of terms."""
    config = config_of(tmp_path, f"optimizer={optimizer}")
    own = {"solver": "exact"} if optimizer == "sibp" else {}
    model = build_model(config["model"], text_data.shape, text_data.classes, 0)
    method = build_optimizer(config["optimizer"] | own, model)
    trainer = Trainer(Settings.from_config(config), RunFolder(config), text_data, model, method)
    x, y = text_data.train.inputs[:4], text_data.train.labels[:4]
    trainer.objective.loss(model(x), x, y, "mean").backward()
    told = model.head.weight.grad.clone()  # pyright: ignore
    inner = method.direction if isinstance(method, Preconditioned) else method
    method.zero_grad()
    inner.loss_average = False
    F.cross_entropy(model(x).flatten(0, 1), y.flatten(), reduction="sum").backward()
    torch.testing.assert_close(told, model.head.weight.grad, rtol=2e-4, atol=1e-7)


def test_a_run_keeps_losses_over_tokens_and_samples(tmp_path):
    config = config_of(tmp_path, "optimizer=adamw", "optimizer.lr=0.01")
    outcome = run(config)
    assert outcome.status == "completed", outcome.message
    rows = outcome.folder.rows()
    assert [row["tokens"] for row in rows] == [0, 512, 1024, 1536]  # 2 steps of 4 windows of 64
    assert rows[0]["val_loss"] == pytest.approx(math.log(95), rel=0.1)
    assert rows[-1]["val_loss"] < rows[0]["val_loss"]
    assert rows[0]["val_acc"] is None
    over_tokens = curves(outcome.folder.board)["over_tokens/loss/val"]
    assert [step for step, _ in over_tokens] == [0, 512, 1024, 1536]
    samples = read(outcome.folder.board).Tensors("sample/text_summary")
    assert [event.step for event in samples] == [0, 2, 4, 6]
    assert all(len(event.tensor_proto.string_val[0]) > 300 for event in samples)


def test_samples_remain_after_a_run_is_resumed(tmp_path):
    config = config_of(tmp_path, "optimizer=adamw", "checkpoint_every=2")
    folder = run(config).folder
    (folder.path / "summary.json").unlink()
    run(config)
    assert [event.step for event in read(folder.board).Tensors("sample/text_summary")] == [0, 2, 4, 6]


class Next(torch.nn.Module):
    """Predicts b, c, a after a, b, c, and a after a line break, with certainty; records the longest input."""

    def __init__(self):
        super().__init__()
        self.none, self.longest = torch.nn.Parameter(torch.zeros(())), 0

    def forward(self, codes):
        self.longest = max(self.longest, codes.shape[1])
        return 100.0 * F.one_hot(codes % 3 + 1, 4).float() + self.none


def test_a_sample_follows_the_predictions_and_keeps_the_random_state():
    model = Next()
    state = torch.get_rng_state()
    assert characters.sample(model, ALPHABET, 100, seed=0) == ("abc" * 34)[:100]
    assert torch.equal(state, torch.get_rng_state())
    assert model.longest == characters.WINDOW
    assert model.training


REFUSED = {
    "images for a transformer": (["dataset=digits"], "model=transformer is for text, not for images"),
    "text for an mlp": (["model=mlp"], "model=mlp is for images with a label each, not for dataset=python_docs"),
    "heads": (["model.heads=3"], "model.heads=3 cannot share model.width=8"),
    "layers": (["model.layers=0"], "model.layers=0 is not possible"),
    "memory": (
        ["model.layers=99999999999"],
        "model=transformer with model.layers=99999999999, model.width=8 has 7.68e+13",
    ),
    "noise": (["label_noise=0.1"], "label_noise=0.1 is for labels of images"),
    "target": (["target_val_acc=0.5"], "model=transformer has no accuracy"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_combinations_are_one_sentence(case, tmp_path):
    words, sentence = REFUSED[case]
    words = ["experiment=char_lm", *words] if case == "text for an mlp" else [*TINY, *words]
    outcome = run(compose([*words, *SHORT]) | {"run_root": str(tmp_path / "runs")})
    assert outcome.wrong_input
    assert sentence in outcome.message


@pytest.mark.parametrize("optimizer", ["sibp", "proxbp", "sibp_auto"])
def test_embeddings_and_norms_have_a_separate_learning_rate(optimizer, tmp_path, text_data):
    config = config_of(tmp_path, f"optimizer={optimizer}", "optimizer.fallback_lr=0.02")
    model = build_model(config["model"], text_data.shape, text_data.classes, 0)
    groups = build_optimizer(config["optimizer"], model).param_groups
    explicit = [group for group in groups if group["update"] == "explicit"]
    assert {group["lr"] for group in explicit} == {0.02}
    held = {id(p) for group in explicit for p in group["params"]}
    assert id(model.letters.weight) in held  # pyright: ignore
    named = compose([f"optimizer={optimizer}"]), compose([f"optimizer={optimizer}", "optimizer.fallback_lr=0.001"])
    assert run_name(named[0]) == run_name(named[1])
    del named[1]["optimizer"]["fallback_lr"]  # as in runs older than this setting
    assert run_name(named[0]) == run_name(named[1])
