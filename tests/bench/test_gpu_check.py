"""The GPU script, as far as it can be tested without a GPU."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sibp.bench.__main__ import _parser
from sibp.bench.nets import choose_cases
from sibp.bench.workers import check_methods

SCRIPT = Path(__file__).parents[2] / "scripts" / "gpu_check.sh"
TEXT = SCRIPT.read_text().replace("\\\n", " ")
STEPS = [shlex.split(line)[1:] for line in TEXT.splitlines() if re.match(r" *step [a-z0-9]+ \d", line)]
FULL = TEXT.partition('exit "$failed"')[2]  # the part after the `--tiny` trial


def test_the_script_has_valid_syntax():
    subprocess.run(["sh", "-n", str(SCRIPT)], check=True)


@pytest.mark.parametrize("words", STEPS, ids=lambda words: words[0])
def test_every_measurement_is_a_valid_command(words):
    args = _parser().parse_args(["step", *words[2:]])
    for case in choose_cases(args.net, args.batch, args.activation):
        if "resnet18" not in case.net and "8192" not in case.net and case.net != "transformer_6":
            check_methods(args.methods, case, "cuda")  # builds the network for some peers, so skip the GPU-sized ones


def test_all_limits_together_are_at_most_eight_minutes():
    limits = [int(words[1]) for words in STEPS if f"step {words[0]} {words[1]}" in FULL]
    others = re.findall(r"^ *run \S+ (\d+)", FULL, re.MULTILINE)
    methods = len(re.search(r"for method in (.*); do", FULL).group(1).split())
    mnist = int(re.search(r'run "mnist-\$method" (\d+)', FULL).group(1))
    tests = int(re.search(r"run tests (\d+)", FULL).group(1))
    assert len(limits) == 6
    assert len(others) == 2  # the tests, and one for each method on MNIST
    assert sum(limits) + tests + methods * mnist <= 480


def test_without_a_gpu_it_is_refused(tmp_path):

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    environment = {"OUT": str(tmp_path / "out"), "PYTHON": sys.executable, "PATH": "/usr/bin:/bin"}
    ended = subprocess.run(["sh", str(SCRIPT)], env=environment, capture_output=True, text=True, cwd=SCRIPT.parents[1])
    assert ended.returncode != 0
    assert "no CUDA device" in ended.stderr
    assert not list((tmp_path / "out").glob("*.log"))  # nothing was started
