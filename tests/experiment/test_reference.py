"""The reference of settings lists everything that the code accepts, with its defaults and choices."""

import inspect
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
import yaml

from sibp.experiment.compose import CONFIGS, compose
from sibp.experiment.models import ACTIVATIONS, MODELS, build_model
from sibp.experiment.optimizers import OPTIMIZERS, build_optimizer
from sibp.experiment.reference import GROUPS, Setting, of_option, of_run, options
from sibp.experiment.settings import DECAYS, SHAPES, Settings
from sibp.runs.errors import UserError
from sibp.runs.identity import ROLES
from sibp.train import main

ROOT = Path(__file__).parents[2]
OPTIONS = [(group, option) for group in GROUPS for option in options([CONFIGS], group)]
OF_RUN = {setting.key: setting for setting in of_run([CONFIGS])}


def typed(choice: str) -> object:
    return yaml.safe_load(choice.replace("cg:K", "cg:2"))


def test_every_setting_of_a_run_is_there_with_its_default():
    assert set(OF_RUN) == {field.name for field in fields(Settings)} - set(GROUPS)
    config = compose([])
    assert {key: yaml.safe_load(setting.default) for key, setting in OF_RUN.items()} == {
        key: value for key, value in config.items() if key not in GROUPS
    }


def arguments(group: str, config: dict[str, object]) -> set[str]:
    """The settings that a config's builder reads."""
    name = str(config["name"])
    if group == "dataset":
        return set()
    build = OPTIMIZERS[name] if group == "optimizer" else MODELS[name].build
    own = {p.name for p in inspect.signature(build).parameters.values() if p.kind is p.KEYWORD_ONLY}
    return own | ({"init", "init_std"} if group == "model" else set())


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_every_setting_of_an_option_is_there_with_its_default(group, option):
    config = compose([f"{group}={option}"])[group]
    found = {setting.key: yaml.safe_load(setting.default) for setting in of_option([CONFIGS], group, option)}
    assert found == {key: value for key, value in config.items() if key != "name"}
    required = {
        key
        for key in arguments(group, config)
        if group != "optimizer" or key in config  # an optimizer's config may omit arguments that have defaults
    }
    assert required <= set(found)


@pytest.mark.parametrize(
    "setting",
    [*OF_RUN.values(), *(setting for group, option in OPTIONS for setting in of_option([CONFIGS], group, option))],
    ids=lambda setting: setting.key,
)
def test_every_setting_has_a_unit_or_choices_and_a_description(setting: Setting):
    assert setting.unit
    assert setting.meaning or " to " in setting.unit
    if setting.choices and setting.default != "null":
        assert str(setting.default) in [choice.replace("cg:K", setting.default) for choice in setting.choices]


def test_the_choices_of_a_run_are_those_of_the_code():
    assert OF_RUN["schedule"].choices == list(SHAPES)
    assert OF_RUN["decays"].choices == list(DECAYS)
    assert OF_RUN["role"].choices == [*ROLES, "null"]
    for key in ("schedule", "decays", "role"):
        with pytest.raises(UserError):
            Settings.from_config({**compose([]), key: "nonsense"})


CHOICES = [
    (group, option, setting.key, choice)
    for group, option in OPTIONS
    for setting in of_option([CONFIGS], group, option)
    for choice in setting.choices
    if option != "soap"  # needs an optional package
]


@pytest.mark.parametrize(("group", "option", "key", "choice"), CHOICES)
def test_choices_are_exactly_those_accepted(group, option, key, choice):
    shape = (8,) if option == "transformer" else (3, 8, 8)

    def build(value: object) -> None:
        config = {**compose([f"{group}={option}"])[group], key: value}
        if key == "nesterov":
            config["momentum"] = 0.9
        if group == "model":
            if key == "init" and value == "normal":
                config["init_std"] = 0.1
            build_model(config, shape, 10, seed=0)
        else:
            layers = [torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)]
            build_optimizer(config, torch.nn.Sequential(*layers))

    build(typed(choice))
    with pytest.raises(UserError):
        build("nonsense")


def test_activations_are_those_of_the_code():
    (activation,) = (s for s in of_option([CONFIGS], "model", "mlp") if s.key == "activation")
    assert set(activation.choices) <= set(ACTIVATIONS)  # other tests may have registered theirs
    assert len(activation.choices) == 11


@pytest.mark.parametrize("option", options([CONFIGS], "optimizer"))
def test_help_equals_the_page(option, capsys):
    assert main([f"optimizer={option}", "--help"]) == 0
    shown = re.sub(r"\s+", " ", capsys.readouterr().out)
    page = (ROOT / "docs" / "settings.md").read_text()
    section = page.split(f"### optimizer={option}\n")[1].split("\n###")[0]
    found = of_option([CONFIGS], "optimizer", option)
    assert found
    for setting in found:
        assert f"optimizer.{setting.key}={setting.default}" in shown
        assert setting.meaning in shown
        assert f"| `optimizer.{setting.key}` | `{setting.default}` |" in section
    assert all(f" {key}=" in shown and f"| `{key}` |" in page for key in OF_RUN)


def test_help_refuses_an_unknown_option(capsys):
    assert main(["optimizer=nonsense", "--help"]) == 2
    assert "There is no optimizer 'nonsense'" in capsys.readouterr().err


def test_the_page_is_made_from_the_configs():
    done = subprocess.run([sys.executable, "scripts/settings_page.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run python scripts/settings_page.py"
