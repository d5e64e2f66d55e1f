# Every target sets up what it needs; a second time that takes a moment and no network.
VENV := .venv
BIN := $(VENV)/bin
export VENV

.DEFAULT_GOAL := help
.PHONY: help setup demo test crash soak crash-huge model fuzz check format bench bench-smoke up down lock

help: ## Lists these targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "%-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: ## Installs what is missing: servers, Python packages, Kafka's jars; says what and why
	@cdc/embedded/setup.sh

demo: setup ## Shows the pipeline at work on real servers, in under a minute
	@$(BIN)/cdc demo

test: setup ## Proves it: every test, against real servers that it starts itself
	$(BIN)/pytest

crash: setup ## Kills processes at every failpoint and compares everything: TRIALS=300 SEED=random KINDS=all JSON=file
	$(BIN)/python -m tests.crash --trials $(TRIALS) $(CRASH)

soak: setup ## All faults at random for MINUTES=30, with the same invariants
	$(BIN)/python -m tests.crash --soak $(MINUTES) $(CRASH)

crash-huge: setup ## A million rows in one transaction, rows of 50 and 600 MB; takes a quarter of an hour and 8 GB
	CDC_HUGE=1 $(BIN)/pytest -rP tests/crash/test_huge.py

model: setup ## A million steps of the I/O-free model of order, versions and deliveries
	CDC_SEED=$(or $(SEED),random) CDC_MODEL_STEPS=1000000 $(BIN)/pytest -rP tests/property/test_delivery_model.py

fuzz: setup ## Three million broken frames and records
	CDC_SEED=$(or $(SEED),random) CDC_FUZZ_INPUTS=3000000 $(BIN)/pytest -rP tests/unit/test_fuzz_frames.py tests/unit/test_fuzz_records.py

TRIALS ?= 300
MINUTES ?= 30
CRASH = $(if $(SEED),--seed $(SEED)) $(if $(KINDS),--kinds $(KINDS)) $(if $(JSON),--json $(JSON))

check: setup ## Lint, format, types and import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict
	$(BIN)/lint-imports

format: setup ## Formats the code and mends what ruff can mend
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup ## Measures everything against this machine's bounds and against Debezium; half an hour; JSON=file MARKDOWN=file
	$(BIN)/python -m benchmarks $(if $(JSON),--json $(JSON)) $(if $(MARKDOWN),--markdown $(MARKDOWN))

bench-smoke: setup ## The same with few rows: shows that the benchmarks run
	$(BIN)/python -m benchmarks --quick

up: setup ## Starts PostgreSQL, Kafka, Redis and the pipeline; Ctrl-C or `make down` stops them
	@$(BIN)/cdc up

down: setup ## Stops what `make up` started
	@$(BIN)/cdc down

COMPILE = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url
EXTRA = import sys, tomllib; print("\n".join(tomllib.load(sys.stdin.buffer)["project"]["optional-dependencies"]["wheels"]))

lock: setup ## Pins the newest versions pyproject.toml allows (UPGRADE= keeps those that are pinned)
	@test -x $(BIN)/uv || $(BIN)/pip install --quiet uv
	$(COMPILE) $(UPGRADE) --extra dev pyproject.toml --output-file requirements.txt
	$(BIN)/python -c '$(EXTRA)' < pyproject.toml | \
		$(COMPILE) $(UPGRADE) --constraint requirements.txt - --output-file requirements-wheels.txt

lock: UPGRADE ?= --upgrade
