# The one definition of what is done here; .ci/run calls these targets.
PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
EXPERIMENT ?= vae
# The tests are spread over two processes: many of them wait for processes of their own.
SPREAD := --numprocesses=2 --dist=worksteal

# `mlflow run` starts the first `python` on the path.
export PATH := $(BIN):$(PATH)
export MLFLOW_TRACKING_URI ?= sqlite:///$(CURDIR)/mlflow.db
export MLFLOW_DISABLE_TELEMETRY ?= true
export MLFLOW_DISABLE_AGENT_HINT ?= true
export MLFLOW_LOGGING_LEVEL ?= WARNING

.DEFAULT_GOAL := help
.PHONY: help setup run test test-fast test-serving lint types bench bench-serve soak serve ui clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/ready ## make .venv with the pinned dependencies

# conda.yaml pins every direct dependency; pip takes its lines as constraints.
$(VENV)/ready: conda.yaml pyproject.toml
	@echo "setting up $(VENV) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@sed -n 's/^      - //p' conda.yaml > $(VENV)/constraints.txt
	@$(BIN)/python -m pip install -qq --disable-pip-version-check \
		--constraint $(VENV)/constraints.txt --editable '.[train,dev,serving-test]'
	@touch $@

run: setup ## the main job: train, evaluate, export, check, register and promote on MNIST
	@$(BIN)/mlflow run . --env-manager=local --experiment-name $(EXPERIMENT)

test: test-serving setup ## the whole test suite, in two processes, with the slowest tests at the end
	@$(BIN)/python -m pytest -q $(SPREAD) --durations=20 -m "not serving or full_environment"

test-fast: setup ## the fast tests (no process, network or store), with branch coverage by package
	@$(BIN)/python -m pytest -q $(SPREAD) -m "not slow" --cov --cov-report=
	@$(BIN)/python -m tests.coverage_by_package

test-serving: $(VENV)-serving/ready ## the serving tests alone, where torch and mlflow are not installed
	@$(VENV)-serving/bin/python -m pytest -q $(SPREAD) --durations=20 -m "not full_environment" \
		tests/serving

$(VENV)-serving/ready: conda.yaml pyproject.toml
	@$(PYTHON) -m venv $(VENV)-serving
	@sed -n 's/^      - //p' conda.yaml > $(VENV)-serving/constraints.txt
	@$(VENV)-serving/bin/python -m pip install -qq --disable-pip-version-check \
		--constraint $(VENV)-serving/constraints.txt --editable '.[serving-test]'
	@touch $@

lint: setup ## style of the code
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

types: setup ## types of the code
	@$(BIN)/mypy

bench: setup ## speed and memory, each beside the thing to beat
	@$(BIN)/python -m tests.benchmarks

bench-serve: setup ## the server beside its peers, each in an environment of its own (minutes)
	@$(BIN)/python -m tests.benchmarks.serve
	@$(BIN)/python -m tests.benchmarks.serve.reload

soak: setup ## eight promotions at once, on sqlite and on a tracking server (minutes)
	@$(BIN)/python -m tests.benchmarks.races

serve: setup ## REST on port 8080 and gRPC on 8081, for the champion
	@$(BIN)/vae serve

ui: setup ## the MLflow UI on port 5000
	@$(BIN)/mlflow ui --backend-store-uri $(MLFLOW_TRACKING_URI)

clean: ## remove environments and caches; keeps the store and bundles
	rm -rf $(VENV) $(VENV)-serving .mypy_cache .pytest_cache .ruff_cache build *.egg-info
