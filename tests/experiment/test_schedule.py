"""Step sizes at every step of a schedule, for any optimizer and any number of interruptions."""

import math

import pytest
import torch
from disturbed import assert_same_end, crash, fail_at

from sibp.experiment.compose import compose
from sibp.experiment.loop import Trainer
from sibp.experiment.runner import run
from sibp.experiment.schedule import factor
from sibp.runs.identity import method_name, problem_of


@pytest.mark.filterwarnings("ignore:The epoch parameter in")  # torch's own SequentialLR gave it until 2.6
@pytest.mark.parametrize("shape", ["constant", "linear", "cosine"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_factor_equals_torchs_schedulers(shape, warmup):
    total, lr = 20, 0.7
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers = torch.optim.lr_scheduler
    main = {
        "constant": lambda: schedulers.ConstantLR(optimizer, factor=1.0),
        "linear": lambda: schedulers.LinearLR(optimizer, 1.0, 0.0, total_iters=total - warmup),
        "cosine": lambda: schedulers.CosineAnnealingLR(optimizer, T_max=total - warmup),
    }[shape]
    if warmup:
        rise = schedulers.LinearLR(optimizer, 1 / warmup, 1.0, total_iters=warmup - 1)
        scheduler = schedulers.SequentialLR(optimizer, [rise, main()], milestones=[warmup])
    else:
        scheduler = main()
    for step in range(total):
        assert factor(shape, step, total, warmup) == pytest.approx(optimizer.param_groups[0]["lr"] / lr, rel=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.fixture
def settings_seen(monkeypatch):
    """The optimizer's first group at every step."""
    seen = []
    original = Trainer._train_step

    def train_step(self, indices):
        seen.append(dict(self.optimizer.param_groups[0]))
        return original(self, indices)

    monkeypatch.setattr(Trainer, "_train_step", train_step)
    return seen


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sibp", "proxbp"])
def test_every_optimizer_trains_with_the_scheduled_step(make_config, settings_seen, optimizer):
    config = make_config(optimizer, schedule="cosine", warmup_steps=4)
    assert run(config).status == "completed"
    lr = config["optimizer"]["lr"]
    assert settings_seen[0]["lr"] == pytest.approx(lr / 4)
    assert settings_seen[4]["lr"] == pytest.approx(lr)
    assert settings_seen[12]["lr"] == pytest.approx(lr / 2)
    assert settings_seen[19]["lr"] == pytest.approx(lr * (1 + math.cos(math.pi * 15 / 16)) / 2)


def test_an_optimizers_own_schedule_replaces_the_runs(make_config, settings_seen):
    """Rises over a quarter of the 20 steps, then follows a cosine; the run's own schedule is linear."""
    config = make_config("adam", schedule="linear")
    config["optimizer"] |= {"schedule": "cosine", "warmup": 0.25}
    assert run(config).status == "completed"
    expected = [0.01 * factor("cosine", step, 20, 5) for step in range(20)]
    assert [group["lr"] for group in settings_seen] == pytest.approx(expected)


def test_an_optimizers_own_schedule_needs_no_warm_up(make_config, settings_seen):
    config = make_config("adam")
    config["optimizer"] |= {"schedule": "linear", "warmup": None}
    assert run(config).status == "completed"
    assert settings_seen[10]["lr"] == pytest.approx(0.01 / 2)


def test_adam_with_warm_up_and_cosine_is_a_separate_method_on_the_same_problem():
    plain, own = (compose(["schedule=linear", f"optimizer={name}"]) for name in ("adam", "adam_cosine"))
    assert (method_name(plain["optimizer"]), method_name(own["optimizer"])) == ("adam", "adam cosine")
    assert problem_of(plain) == problem_of(own)
    assert (own["optimizer"]["schedule"], own["optimizer"]["warmup"]) == ("cosine", 0.05)


@pytest.mark.parametrize(
    ("own", "sentence"),
    [
        ({"schedule": "wave"}, "optimizer.schedule=wave is not known; choose one of: constant, linear, cosine, null"),
        ({"schedule": "cosine", "warmup": 1.0}, "optimizer.warmup=1.0 is not a share of the run"),
        ({"warmup": 0.1}, "optimizer.warmup=0.1 has no effect without optimizer.schedule"),
        ({"schedule": 3}, "optimizer.schedule=3 is not possible"),
    ],
)
def test_an_invalid_own_schedule_is_one_sentence(make_config, own, sentence):
    config = make_config("adam")
    config["optimizer"] |= own
    outcome = run(config)
    assert outcome.wrong_input
    assert sentence in outcome.message


@pytest.mark.parametrize("optimizer", ["sibp", "proxbp"])
def test_the_proximal_weight_grows_instead_of_a_decaying_step_size(make_config, settings_seen, optimizer):
    config = make_config(optimizer, schedule="linear", decays="prox_weight")
    assert run(config).status == "completed"
    lr, weight = config["optimizer"]["lr"], config["optimizer"]["prox_weight"]
    assert {group["lr"] for group in settings_seen} == {lr}
    assert [group["prox_weight"] for group in settings_seen] == pytest.approx(
        [weight / (1 - step / 20) for step in range(20)]
    )


@pytest.mark.parametrize("decays", ["lr", "prox_weight"])
def test_an_interrupted_run_resumes_its_schedule(make_config, tmp_path, monkeypatch, decays):
    config = make_config("sibp", schedule="cosine", decays=decays, warmup_steps=7, label_noise=0.3)
    fail_at(monkeypatch, 13, crash)
    assert run(config).status == "failed"
    assert_same_end(run(config).folder, run({**config, "run_root": str(tmp_path / "whole")}).folder)
