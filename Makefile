# Penstock on one machine. `make help` is the manual.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

VENV := .venv
VLLM_VENV := .venv-vllm
STATE ?= .penstock
BIN := $(VENV)/bin
PENSTOCK := $(BIN)/penstock
# `make test ARGS='-k ledger'` hands pytest more.
ARGS ?=

HISTORIES ?= 10000
KILLS ?= 50
ROUNDS ?= 10

export PAID ENGINE
export PENSTOCK_STATE = $(STATE)

.PHONY: help
help: ## This manual
	@echo 'Penstock: own quantized models first, a paid API where they cannot, budgets that hold.'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-14s %s\n", $$1, $$2 } /^## / { printf "\n%s\n", substr($$0, 4) }' $(MAKEFILE_LIST)
	@echo
	@echo 'Variables of `make up`:'
	@echo '  PAID=stand-in          llama.cpp plays the paid API: spill, budgets and savings without a key'
	@echo '  OPENAI_API_KEY=…       the paid side is on (OPENAI_BASE_URL: any compatible API); else it is off'
	@echo '  ENGINE=vllm            the local models run on vLLM (needs `make env-vllm`)'
	@echo '  PENSTOCK_GRPC_PORT=7070  PENSTOCK_HTTP_PORT=7080'
	@echo '  PENSTOCK_CONFIG=…      the catalogue; default ./penstock.yaml, else the one in the package'
	@echo '  STATE=.penstock        where everything is kept'
	@echo '  PYTHON=python3.11      what the environment is made with (3.11 to 3.13)'
	@echo
	@echo 'While it runs: $(BIN)/penstock --help (status, chat, keys, budget, usage, trace, explain, …)'

## Run

.PHONY: up
up: env $(if $(filter vllm,$(ENGINE)),env-vllm) ## Start everything, print the endpoints and a key; Ctrl-C stops it
	@exec $(PENSTOCK) up

.PHONY: down
down: ## Stop it, from another terminal; also what a killed one left behind
	@if [ -x $(PENSTOCK) ]; then exec $(PENSTOCK) down; fi; \
	  scripts/at_rest.sh "$$PENSTOCK_STATE"; echo 'Nothing of Penstock runs here.'

.PHONY: status
status: ## Is each part healthy?
	@if [ -x $(PENSTOCK) ]; then exec $(PENSTOCK) status; fi; \
	  scripts/at_rest.sh "$$PENSTOCK_STATE"; echo 'Nothing of Penstock runs here: `make up` starts it.'; exit 1

.PHONY: clean
clean: ## Remove all state: ledger, cache, keys, traces, converted models (refuses while it runs)
	@if [ ! -x $(PENSTOCK) ]; then scripts/at_rest.sh "$$PENSTOCK_STATE"; \
	    [ -e "$$PENSTOCK_STATE" ] || { echo 'There is no state to remove.'; exit 0; }; \
	    echo 'What removes the state is not here, and is made first:'; make env; fi; \
	  exec $(PENSTOCK) clean

.PHONY: clean-env
clean-env: ## Remove the virtual environments and tools' caches (refuses while it runs)
	@scripts/at_rest.sh "$$PENSTOCK_STATE"
	@rm -rf $(VENV) $(VLLM_VENV) $(VENV).lock $(VLLM_VENV).lock .mypy_cache .ruff_cache .hypothesis services/penstock.egg-info

## Environments, from requirements/*.lock (pinned, hashed)

.PHONY: env
env: ## .venv: what `make up` needs
	@scripts/environment.sh $(VENV) runtime requirements/penstock.lock requirements/model.lock

.PHONY: env-dev
env-dev: env ## … and what tests and checks need
	@scripts/environment.sh $(VENV) dev requirements/dev.lock

.PHONY: env-vllm
env-vllm: ## .venv-vllm: what ENGINE=vllm needs (CPython 3.11, x86-64; see the README)
	@PYTHON="$${PYTHON:-python3.11 python3}" scripts/environment.sh $(VLLM_VENV) vllm requirements/vllm.lock requirements/model.lock

## Test and check

.PHONY: test
test: env-dev ## All tests save vLLM's, real components included (under 20 minutes on 2 cores)
	@$(BIN)/pytest tests -m 'not vllm' $(ARGS)

.PHONY: test-unit
test-unit: env-dev ## Unit and property tests, and the tidiness of the tree
	@$(BIN)/pytest tests/unit tests/property tests/test_tidy.py -m 'not vllm' $(ARGS)

.PHONY: test-vllm
test-vllm: env-vllm ## The vLLM engine, on this CPU (about 6 minutes)
	@PENSTOCK_MODEL_CACHE="$$(realpath -m "$$PENSTOCK_STATE")/models" $(VLLM_VENV)/bin/python -m pytest -W default -m vllm tests/contract/engine tests/vllm $(ARGS)

.PHONY: prove
prove: env-dev ## All proofs of the ledger, one table (HISTORIES=10000 KILLS=50 ROUNDS=10 SEED=… ARGS='--write')
	@PYTHONPATH=tests $(BIN)/python -m proofs --histories $(HISTORIES) --kills $(KILLS) --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED)) $(ARGS)

.PHONY: prove-mutants
prove-mutants: env-dev ## Each rule of the ledger broken in a copy: which proof notices? (ARGS='--write')
	@PYTHONPATH=tests $(BIN)/python -m proofs.mutants $(ARGS)

.PHONY: bench-ledger
bench-ledger: env-dev ## Pairs of reserve and settle a second, latency, hot keys, a filled ledger (ARGS='--entries 10000000 --write')
	@$(BIN)/python -m benchmarks.ledger $(ARGS)

.PHONY: measure-cancel
measure-cancel: env ## How long the local model goes on after a client has hung up, in decode and in prefill
	@$(BIN)/python -m tests.load.cancel_bound $(ARGS)

.PHONY: check
check: env-dev lint types protos-check tidy ## Format, lint, types, protos, tidiness, unit tests (under 5 minutes)
	@$(BIN)/pytest tests/unit -m 'not vllm' $(ARGS)

.PHONY: format
format: env-dev ## Format, and mend what ruff can
	@$(BIN)/ruff check --fix --quiet . || true
	@$(BIN)/ruff format .

.PHONY: lint
lint: env-dev
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

.PHONY: types
types: env-dev
	@$(BIN)/mypy

.PHONY: tidy
tidy: env-dev
	@$(BIN)/pytest tests/test_tidy.py

## Contracts and locks

.PHONY: protos
protos: env-dev ## Generate services/penstock/*/v1 from protos/
	@$(BIN)/python protos/generate.py

.PHONY: protos-check
protos-check: env-dev ## Generated code is fresh, protos are linted and break nothing
	@BUF=$(BIN)/buf PYTHON=$(BIN)/python scripts/check_protos.sh

.PHONY: lock
lock: env-dev ## Remake requirements/{penstock,dev,model}.lock
	@cd requirements && for name in penstock dev; do \
	  ../$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
	    --custom-compile-command 'make lock' $$name.in -o $$name.lock; done
	@cd requirements && ../$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	    --python-version 3.11 --no-deps --custom-compile-command 'make lock' model.in -o model.lock

.PHONY: lock-vllm
lock-vllm: ## Remake requirements/vllm.lock (pip, CPython 3.11 on x86-64 Linux)
	@$${PYTHON:-python3.11} requirements/lock_vllm.py
