# Everything is installed into .venv/; nothing outside the project is changed.
PYTHON ?= $(firstword $(foreach name,python3.11 python3.12 python3.13 python3 python,$(if $(shell $(name) -c \
    "import sys; print(0) if (3, 11) <= sys.version_info[:2] < (3, 14) else None" 2>/dev/null),$(name))))
BIN := .venv/bin

.PHONY: help run test test-slow test-oldest check-wheel sanitize docs reproduce results tensorboard clean
help:
	@echo "make run          train SGD, ProxBP and SIBP on the digits and compare them (a minute)"
	@echo "make test         format, lint, types and most tests"
	@echo "make test-slow    tests that build the site, run the pages' code, kill runs, compile, or regenerate all results"
	@echo "make test-oldest  the tests with the oldest supported versions of all packages, in .venv-oldest/ (7 GB)"
	@echo "make check-wheel  build the wheel, install it outside the project and train with it"
	@echo "make sanitize     the tests of the kernels in C under the address and undefined-behaviour sanitizers"
	@echo "make docs         build the documentation: site/index.html, which opens without a server"
	@echo "make reproduce    run the experiments of results/experiments.yaml that are not kept yet (hours; resumable)"
	@echo "make results      regenerate the reports in results/, and their tables in README.md and docs/"
	@echo "make tensorboard  show all runs under runs/ in TensorBoard"
	@echo "make clean        remove .venv*/ and caches; runs/ stays"

run: .venv/.stamp
	@$(BIN)/python scripts/quickstart.py

test: .venv/.stamp .venv/.examples
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/pytest -n 2 -m "not slow"

test-slow: .venv/.stamp .venv/.examples
	$(BIN)/pytest -n 2 -m slow

test-oldest: .venv-oldest/.stamp
	.venv-oldest/bin/pytest -n 2 $(TESTS)

check-wheel: .venv/.stamp
	@scripts/check_wheel.sh

sanitize: .venv/.stamp
	@scripts/sanitize.sh $(BIN)/python

docs: .venv/.stamp
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

reproduce: .venv/.stamp
	@$(BIN)/python scripts/reproduce.py

results: .venv/.stamp
	@$(BIN)/python scripts/results.py
	@$(BIN)/python scripts/shown_results.py

tensorboard: .venv/.stamp
	$(BIN)/tensorboard --logdir runs

clean:
	rm -rf .venv .venv-oldest build site *.egg-info .pytest_cache .ruff_cache .hypothesis
	find sibp scripts tests -name __pycache__ -prune -exec rm -rf {} +

.venv/.stamp: pyproject.toml setup.py constraints.txt $(wildcard sibp/prox/kernels/*.[ch])
	@test -n "$(PYTHON)" || { echo "sibp needs Python 3.11, 3.12 or 3.13: install one, or use make PYTHON=/path/to/it."; exit 1; }
	@$(PYTHON) -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" || \
	    { echo "$(PYTHON) is not Python 3.11, 3.12 or 3.13: use make PYTHON=/path/to/one."; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

.venv/.examples: .venv/.stamp
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[examples]"
	@touch $@

.venv-oldest/.stamp: pyproject.toml setup.py constraints-oldest.txt $(wildcard sibp/prox/kernels/*.[ch])
	@python3.11 -c "" || { echo "The oldest versions need Python 3.11: install it as python3.11."; exit 1; }
	python3.11 -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-oldest.txt -e ".[dev]"
	@touch $@
