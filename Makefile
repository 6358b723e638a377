# make install               the environment alone, in .venv
# make quickstart            the whole method on the embedded world, on this machine's CPU
# make quickstart-full       the same with longer trainings
# make test                  linters and the test suite; make lint, make format
# make test-all              the same with every case of the tests' grids
# make playground            a page to talk to a policy: POLICY=RUN REWARD=RUN
# make real-reward-model     a reward model on your ratings: DATA=DIR RUN=DIR
# make real-policy           a policy on your prompts: DATA=DIR RUN=DIR
# make gpu-checks            what needs a GPU (docs/gpu.md)
# make clean                 removes the environments; runs/ stays
# All but gpu-checks and clean make .venv first (Python 3.11) and keep it while its inputs are unchanged.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
RUN ?= runs/real-reward-model
GPU_PYTHON ?= python3
TEST_WORKERS ?= 2
GPU_OUTPUT ?= runs/gpu-checks
SHELL_FILES := .ci/run $(wildcard examples/slurm/*.sh examples/slurm/*.sub) $(addprefix tests/slurm/stand_in/,scancel scontrol squeue)

.PHONY: help install quickstart quickstart-full playground test test-all lint format real-reward-model real-policy gpu-checks clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -11

install: $(READY)

$(READY): pyproject.toml setup.py constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) not found; install Python 3.11 or give PYTHON=…" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[test]"
	$(BIN)/python -m pip check
	@touch $(READY)

quickstart: $(READY)
	$(BIN)/python examples/quickstart.py

quickstart-full: $(READY)
	$(BIN)/python examples/quickstart.py +length=full

# make playground POLICY=RUN REWARD=RUN   a page to talk to a policy; Gradio has an environment of its own, since NeMo's
# dependencies exclude it (docs/decisions.md)
playground: $(READY) .venv-playground/.ready
	@test -n "$(POLICY)" -a -n "$(REWARD)" || { echo "error: give POLICY=RUN and REWARD=RUN" >&2; exit 2; }
	$(BIN)/python examples/playground.py policy="$(POLICY)" reward="$(REWARD)"

.venv-playground/.ready: requirements-playground.txt
	$(PYTHON) -m venv .venv-playground
	.venv-playground/bin/python -m pip install --quiet --disable-pip-version-check -r requirements-playground.txt
	@touch $@

# tests/conftest.py has the order of the files: xdist's own leaves long files of few tests to the end
PYTEST := $(BIN)/python -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder

test: lint
	$(PYTEST) -m "not exhaustive"

test-all: lint
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/shellcheck --external-sources $(SHELL_FILES)
	$(BIN)/hadolint Dockerfile

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make real-reward-model DATA=DIR RUN=DIR   DIR holds train.parquet and valid.parquet (docs/results.md)
real-reward-model: $(READY)
	@test -n "$(DATA)" || { echo "error: DATA is not set: give DATA=DIR with train.parquet and valid.parquet" >&2; exit 2; }
	$(BIN)/python examples/real_reward_model.py data="$(DATA)" output="$(RUN)"

# make real-policy DATA=DIR RUN=DIR   DIR holds the files that conf/real_policy.yaml names; for others give their names to
# examples/real_policy.py: data=DIR output=RUN 'sft_files=[sft/mine.jsonl]' train_prompts=FILE test_prompts=FILE
real-policy: $(READY)
	@test -n "$(DATA)" || { echo "error: DATA is not set: give DATA=DIR with ratings/, prompts/ and sft/" >&2; exit 2; }
	$(BIN)/python examples/real_policy.py data="$(DATA)" output="$(RUN)"

# make gpu-checks   on a machine with a GPU, in an environment that has NeMo and Transformer Engine (docs/gpu.md)
gpu-checks:
	PYTHONPATH=$(CURDIR):$$PYTHONPATH $(GPU_PYTHON) examples/gpu_checks.py output="$(GPU_OUTPUT)"

clean:
	rm -rf $(VENV) .venv-playground build *.egg-info
