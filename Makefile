# What a fresh clone can do. The first target that needs the environment builds it in .venv, in one to three minutes.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# The first interpreter that starts and is new enough, 3.11 before the others because it is the one that is measured.
PYTHON ?= $(shell for python in python3.11 python3 python3.12 python3.13; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

# +cpu names the build, so that no other can be taken. See requirements/cpu.txt.
TORCH ?= torch==2.13.0+cpu
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

# TorchX starts torchrun from PATH.
export PATH := $(CURDIR)/$(BIN):$(PATH)

ARGS ?=

.PHONY: help setup demo test test-nightly test-mutants test-slurm lint format bench bench-peers bench-check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1: /p' $(MAKEFILE_LIST) | awk -F': ' '{ printf "  make %-13s %s\n", $$1, $$2 }'

setup: $(INSTALLED) ## install everything into .venv, once

$(INSTALLED): requirements/cpu.txt pyproject.toml
	@[ -n "$(PYTHON)" ] || { echo "mtlrec needs Python 3.11 or newer on PATH; name one with make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "mtlrec needs Python 3.11 or newer; $(PYTHON) is not" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing torch and the packages of requirements/cpu.txt into $(VENV)"
	@# Few retries and a short timeout: where the index cannot be reached but a wheel lies elsewhere, pip should go on to it.
	$(PIP) install --quiet --no-deps --retries 1 --timeout 20 --extra-index-url $(TORCH_INDEX) "$(TORCH)" \
		|| { echo "no CPU build of $(TORCH) to be had: is $(TORCH_INDEX) within reach?" >&2; exit 1; }
	$(PIP) install --quiet --no-deps -r requirements/cpu.txt
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	@$(BIN)/python -c 'import torch, sys; sys.exit(torch.version.cuda is not None)' \
		|| { echo "the torch in $(VENV) is not a working CPU build; remove $(VENV) and run make setup again" >&2; exit 1; }
	@touch $@

demo: .demo/feed ## synthetic data, a job on two ranks through TorchX, its evaluation
	rm -rf .demo/run
	$(BIN)/torchx run -s local_cwd launch/components.py:train --config feed --output .demo/run \
		--procs_per_node 2 --set data.root=.demo/feed
	$(BIN)/mtlrec evaluate .demo/run

# Written under another name first: what an interrupted run leaves must not pass for the data.
.demo/feed: | $(INSTALLED)
	rm -rf $@.part
	$(BIN)/mtlrec synth feed --output $@.part --rows 300000
	mv $@.part $@

# Two workers: tests/conftest.py says which tests each gets.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder

test: $(INSTALLED) ## run the tests on two cores; ARGS=tests/unit and the like reach pytest
	$(PYTEST) -m "not nightly" $(ARGS)

test-nightly: $(INSTALLED) ## the tests that are too long for every run
	$(PYTEST) -m nightly $(ARGS)

test-mutants: $(INSTALLED) ## plant faults one at a time and see whether the tests catch them; half an hour; ARGS="NAME" for some
	$(BIN)/python tests/mutants/run.py $(ARGS)

test-slurm: $(INSTALLED) ## start two Slurm nodes on this machine (Debian, root), run the tests that want them
	tests/slurm/cluster.sh up && $(BIN)/python -m pytest -v tests/integration/launches/test_slurm.py $(ARGS); \
		status=$$?; tests/slurm/cluster.sh down; exit $$status

lint: $(INSTALLED) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(INSTALLED) ## let ruff lay out and mend the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(INSTALLED) ## where a step's time goes, per fusion kind, with 26 tables; minutes
	$(BIN)/python benchmarks/train.py fusions $(ARGS)

bench-peers: $(INSTALLED) ## the same models in torch-rechub and in plain PyTorch: samples per second, AUC
	$(PIP) install --quiet --no-deps torch-rechub==0.9.0
	$(BIN)/python benchmarks/peers.py $(ARGS)

bench-check: $(INSTALLED) ## have operators of a step risen, or ratios of speeds fallen?
	$(BIN)/python benchmarks/guard.py $(ARGS)

clean: ## remove the demo and the caches, not .venv
	rm -rf .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +
