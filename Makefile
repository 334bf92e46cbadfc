# setup: .venv with the CPU engine profile and the model; the others need it, and a second run of it does nothing.
.DELETE_ON_ERROR:
.PHONY: setup demo test check fmt bench

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE := disagg/engine/cpu/requirements.txt
STAMP := $(VENV)/.disagg-setup

setup: $(STAMP)
	@$(BIN)/disagg model get smollm2

# The engine profile comes first, so that pip finds its pins installed and resolves only what is missing.
$(STAMP): pyproject.toml $(PROFILE)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PYTHONPATH=. $(BIN)/python -m disagg.engine.cpu.profile
	$(BIN)/python -m pip install --quiet --constraint $(PROFILE) --editable '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python -m disagg.cli.demo

test: setup
	$(BIN)/python -m pytest tests -q

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests -q -m "not engine"

fmt: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks
