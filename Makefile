# Everything a developer types. `make` alone prints this list.
#
# Outside the project's own machines, an unpinned torch brings gigabytes of CUDA. For the CPU build:
#   make demo TORCH_INDEX=https://download.pytorch.org/whl/cpu

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
TORCH_INDEX ?=
RUNS ?= 20
JOBS ?= 4
EVENTS ?= 1000000
ROUNDS ?= 5
RULES ?=

BIN := .venv/bin
INSTALLED := .venv/.installed
PEERS := .venv-peers/.installed
PIP := pip install --disable-pip-version-check -qq

# Most tests wait for group joins and time-outs, so more of them run at once than there are cores. Each worker has
# servers of its own. JOBS=0 runs one after the other.
PARALLEL = --numprocesses $(JOBS) --dist loadfile

.PHONY: help venv demo test lint types test-fast test-kafka test-slow chaos bench rules docs clean

help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/' | expand -t 14

venv: $(INSTALLED) ## Create .venv and install everything into it, pinned

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes the first time)"
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed: make PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/$(PIP) $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) torch==2.13.0
	$(BIN)/$(PIP) -e ".[dev]" -c constraints.txt
	touch $@

demo: $(INSTALLED) ## The whole story on this machine: all processes, two killed on the way (3-5 minutes)
	$(BIN)/python -m driftline.demo

test: lint types test-fast ## Lint, types and the tests that need nothing but this machine

lint: $(INSTALLED) ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(INSTALLED) ## mypy, strict
	$(BIN)/mypy

test-fast: $(INSTALLED) ## The tests of `make test` alone
	$(BIN)/pytest -m "not kafka and not slow" --durations=8 $(PARALLEL)

test-kafka: $(INSTALLED) ## Tests on a real Apache Kafka (../shared/kafka and Java 17, or DRIFTLINE_TEST_KAFKA)
	$(BIN)/pytest -m "kafka and not slow"

test-slow: $(INSTALLED) ## Long tests
	$(BIN)/pytest -m slow

chaos: $(INSTALLED) ## Kill every process, sessions of Postgres and the broker at random: make chaos RUNS=20
	$(BIN)/python -m tests.chaos --runs $(RUNS)

bench: $(INSTALLED) $(PEERS) ## Ingest beside its peers on a real Kafka, about half an hour: make bench EVENTS=1000000 ROUNDS=5
	$(BIN)/python -m benchmarks.ingest --events $(EVENTS) --users 20000 --runs $(ROUNDS) --json build/bench/ingest.json

$(PEERS): benchmarks/peers.txt
	test -x .venv-peers/bin/python || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/$(PIP) -r benchmarks/peers.txt
	touch $@

rules: $(INSTALLED) ## Switch each rule of the protocol off and see its test fail; writes docs/rules.md: make rules RULES="1 5"
	$(BIN)/python -m tests.rules $(RULES)

docs: $(INSTALLED) ## Write docs/metrics.md and docs/settings.md anew from the code
	$(BIN)/python docs/generate.py

clean: ## Remove build/ and the caches; .venv stays
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +
