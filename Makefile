# Everything from a fresh clone: each target sets up what it needs first. `make help` lists the targets.
#
#   make train ARGS="--max_steps 20"                                    options of `q-hawkeye train`
#   make train LAUNCH="--num_processes 2"                               its options that start several processes
#   make test  ARGS="-k uncertainty -x"                                 options of pytest
#   make test  PYTHON=python3.12 VENV=.venv-3.12                        another Python, beside the first

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
LAUNCH ?=
# Processes that test: both cores of a small machine; WORKERS=0 for a debugger.
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --no-input
PROJECT := setup.cfg pyproject.toml constraints.txt src/q_hawkeye_trl/__init__.py
CODE := src tests examples $(wildcard benchmarks/*.py)

.DEFAULT_GOAL := help
.PHONY: help install install-dev train test test-unit test-slow test-gpu lint format demo-policy clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

install: $(VENV)/.installed ## set up .venv for training
install-dev: $(VENV)/.installed-dev ## set up .venv for development

train: $(VENV)/.installed ## train the bundled policy on the synthetic set, or what ARGS say
	$(BIN)/q-hawkeye train $(LAUNCH) $(ARGS)

test: $(VENV)/.installed-dev ## the tests of a few minutes, no GPU
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu" $(ARGS)

test-unit: $(VENV)/.installed-dev ## formulas, readers and parsers in less than a minute, while you edit
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not gpu" @tests/unit.txt $(ARGS)

test-slow: $(VENV)/.installed-dev ## the long tests: whole trainings, the built wheel
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

test-gpu: $(VENV)/.installed-dev ## the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS) || test $$? -eq 5 # 5: there is no such test yet

lint: $(VENV)/.installed-dev ## ruff and mypy
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

format: $(VENV)/.installed-dev ## let ruff rewrite the code
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

demo-policy: $(VENV)/.installed ## rebuild the bundled policy
	$(BIN)/python examples/build_demo_policy.py $(ARGS)

clean: ## remove build outputs and caches; runs/ and .venv stay
	rm -rf build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
		echo "q-hawkeye-trl needs Python 3.11, 3.12 or 3.13, and $(PYTHON) is: $$($(PYTHON) --version 2>&1)." >&2; \
		echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@echo "[1/2] creating $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(PROJECT) | $(BIN)/python
	@echo "[2/2] installing the project with constraints.txt (the first time about 5 GB and some minutes)"
	@$(PIP) install -e . -c constraints.txt
	@touch $@

$(VENV)/.installed-dev: $(PROJECT) | $(BIN)/python
	@echo "[2/2] installing the project and its dev tools with constraints.txt (the first time about 5 GB and some minutes)"
	@$(PIP) install -e ".[dev]" -c constraints.txt
	@touch $(VENV)/.installed $@
