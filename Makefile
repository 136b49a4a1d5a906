# Every target works from a clean checkout; .venv is built once per change of its pins.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
PY := .venv/bin/python
export OMP_NUM_THREADS ?= 1
WORKERS ?= 2
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt

.PHONY: .venv quickstart test test-all results benchmarks endurance mutants lint
.DEFAULT_GOAL := test

.venv: .venv/.installed
.venv/.installed: Makefile pyproject.toml constraints.txt startup/dllm_rl.pth startup/dllm_rl.start
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --editable '.[dev,deepspeed,eval]'
	touch $@

# Trains a tiny model with RL, about three minutes on two CPU cores, and prints what it learned.
quickstart: export OMP_NUM_THREADS := 2
quickstart: .venv/.installed
	.venv/bin/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no recipes/quickstart.yaml

test: .venv/.installed
	$(PY) -m pytest -n $(WORKERS) --dist worksteal

# Adds the slow tests: processes, learning, kills, DeepSpeed, packaging.
test-all: .venv/.installed
	$(PY) -m pytest -m "" -n $(WORKERS) --dist worksteal --durations=25 --cov --cov-report=term

lint: .venv/.installed
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy --strict

# Every number and figure of results/: the quickstart on three seeds, which the README quotes, the learning ledger of all
# methods with what is free beside it, and IGPO's table; about an hour on two CPU cores. The ledger keeps the runs it has:
# `$(PY) -m results.tiny --again` repeats them, `--search` finds their settings, `$(PY) -m results.starts` makes the
# starting weights again.
results: .venv/.installed
	$(PY) results/quickstart.py
	$(PY) -m results.tiny
	$(PY) -m results.tiny --free
	$(PY) results/igpo.py

# 30 kills at random moments, six of them through the command line, and the memory of 2,000 updates; about ten minutes on two
# CPU cores. docs/faults.md quotes both.
endurance: .venv/.installed
	$(PY) -m tests.tools.kills --out benchmarks/results/endurance.json
	$(PY) -m tests.tools.growth --out benchmarks/results/growth.json

# Speed and memory against plain transcriptions of published code, decoding and estimators: every number of docs/benchmarks.md and
# docs/estimators.md, about 40 minutes on two idle CPU cores with 8 GB free. `--quick` after one of the commands says in seconds whether it still runs.
BENCHMARKS := update layout rollout step scaling
benchmarks: .venv/.installed
	for name in $(BENCHMARKS); do $(PY) -m benchmarks.$$name || exit 1; done
	$(PY) benchmarks/vocabulary.py
	$(PY) benchmarks/decode.py
	$(PY) benchmarks/estimator.py

# Breaks lines of diffusion/ and objectives/ on purpose; a mutant that no test notices is a missing test.
mutants: .venv/.installed
	$(PY) tests/tools/mutants.py
