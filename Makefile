# setup: .venv with the CPU engine profile and the model; the others need it, and a second run of it does nothing.
.DELETE_ON_ERROR:
.PHONY: setup demo test test-nodes check lint unit fmt bench soak

# Where it is set, each of a deployment's processes compiles all of disagg anew, and pytest all tests.
export PYTHONDONTWRITEBYTECODE =

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PROFILE := disagg/cpu_profile/requirements.txt
STAMP := $(VENV)/.disagg-setup

setup: $(STAMP)
	@$(BIN)/disagg model get smollm2

# The engine profile comes first, so that pip finds its pins installed and resolves only what is missing.
$(STAMP): pyproject.toml $(PROFILE)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	PYTHONPATH=. $(BIN)/python -m disagg.cpu_profile.profile
	$(BIN)/python -m pip install --quiet --constraint $(PROFILE) --editable '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python -m disagg.cli.demo

# Two files at a time but for what has the machine to itself. Engines wait more than they compute.
test: setup unit
	$(BIN)/python -m pytest tests -q -n 2 --dist loadfile -m "(slow or engine) and not alone and not clients and not nodes"
	$(BIN)/python -m pytest tests -q -m "(alone or clients) and not nodes"

# Several nodes on this machine, as network namespaces and SLURM's: needs root, and brings Debian's SLURM.
test-nodes: setup
	@.ci/tools
	$(BIN)/python -m pytest tests -q -m nodes

check: lint unit

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# What needs no engine, two files at a time.
unit: $(STAMP)
	$(BIN)/python -m pytest tests -q -n 2 --dist loadfile -m "not engine and not slow and not clients and not nodes"

fmt: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# A million requests, some 40 minutes on 2 cores. `make soak REQUESTS=20000 SEED=7` for less, or for another one.
REQUESTS ?= 1000000
SEED ?= 1
soak: $(STAMP)
	$(BIN)/python -m disagg.simulation.soak --requests $(REQUESTS) --seed $(SEED) --processes 2 --whole-table --shrink

bench: setup
	$(BIN)/python -m benchmarks
