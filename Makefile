# The one definition of what is done here; .ci/run calls these targets.
SHELL := /bin/bash
.SHELLFLAGS := -o pipefail -c
comma := ,
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
.PHONY: help setup setup-dev run test test-fast test-serving lint types graph bench bench-tables bench-serve bench-tools soak serve ui clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

setup: $(VENV)/ready ## make .venv with the pinned packages that `make run` needs

setup-dev: $(VENV)/dev-ready ## add what tests, lint and benchmarks need (Spark with its Java among it)

# conda.yaml pins every direct dependency; pip takes its lines as constraints.
# $(call install,ENVIRONMENT,EXTRAS): says which packages it fetches; pip's errors come through.
define install
	@sed -n 's/^      - //p' conda.yaml > $(1)/constraints.txt
	@$(1)/bin/python -m pip install --no-compile --no-color --progress-bar off \
		--disable-pip-version-check --constraint $(1)/constraints.txt --editable '.[$(2)]' \
		| awk '/^Collecting /{ n++; print "  " n ": " $$2; fflush() } \
			/^Installing /{ print "  installing " n " packages"; fflush() }'
endef

# Triton's perf_analyzer is in the wheels of its client, up to this one in a form that glibc 2.35
# can run. It gets a folder of its own, since the tests use a later client.
define perf_analyzer
	@$(1)/bin/python -m pip install --quiet --no-deps --upgrade --disable-pip-version-check \
		--target $(1)/perf_analyzer tritonclient==2.51.0
endef

# The oldest onnxruntime that bundles are made for, with a numpy of its time.
define oldest_onnxruntime
	@$(1)/bin/python -m pip install --quiet --no-deps --upgrade --disable-pip-version-check \
		--target $(1)/oldest onnxruntime==1.15.0 numpy==1.26.4
endef

# Runtimes that lack float64, which tests use bundles in: OpenVINO in an onnxruntime of its own, 84
# MB to fetch, and the plugin for WebGPU, each in a folder of its own.
define other_runtimes
	@$(1)/bin/python -m pip install --quiet --no-deps --upgrade --disable-pip-version-check \
		--target $(1)/openvino onnxruntime-openvino==1.24.1
	@$(1)/bin/python -m pip install --quiet --no-deps --upgrade --disable-pip-version-check \
		--target $(1)/webgpu onnxruntime-ep-webgpu==0.4.0
endef

# MLServer's codecs, with which a test sends a data frame as its clients do; they need no more of it.
define mlserver
	@$(1)/bin/python -m pip install --quiet --no-deps --upgrade --disable-pip-version-check \
		--target $(1)/mlserver mlserver==1.7.1
endef

# onnxruntime for JavaScript, with which a test uses bundles as a web page would.
define onnxruntime_web
	@$(1)/bin/npm install --silent --no-audit --no-fund --prefix $(1)/web onnxruntime-web@1.30.0
endef

$(VENV)/ready: conda.yaml pyproject.toml
	@echo "setting up $(VENV): fetching 56 packages, 1.8 GB on disk (a minute or more)"
	@$(PYTHON) -m venv $(VENV)
	$(call install,$(VENV),train)
	@touch $@

# Bytecode of everything is compiled at once: the tests start hundreds of processes.
$(VENV)/dev-ready: $(VENV)/ready
	@echo "adding the packages of development to $(VENV) (1.3 GB on disk)"
	$(call install,$(VENV),train$(comma)dev$(comma)serving-test)
	$(call perf_analyzer,$(VENV))
	$(call onnxruntime_web,$(VENV))
	$(call oldest_onnxruntime,$(VENV))
	$(call other_runtimes,$(VENV))
	$(call mlserver,$(VENV))
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib > /dev/null || true
	@touch $@

run: setup ## the main job: train, evaluate, export, check, register and promote on MNIST
	@$(BIN)/mlflow run . --env-manager=local --experiment-name $(EXPERIMENT)

test: test-serving setup-dev ## the whole test suite, in two processes, with the slowest tests at the end
	@$(BIN)/python -m pytest -q $(SPREAD) --durations=20 -m "not serving or full_environment"

test-fast: setup-dev ## the fast tests (no process, network or store), with branch coverage by package
	@$(BIN)/python -m pytest -q $(SPREAD) -m "not slow" --cov --cov-report=
	@$(BIN)/python -m tests.coverage_by_package

test-serving: $(VENV)-serving/ready ## the serving tests alone, where torch and mlflow are not installed
	@$(VENV)-serving/bin/python -m pytest -q $(SPREAD) --durations=20 -m "not full_environment" \
		tests/serving

$(VENV)-serving/ready: conda.yaml pyproject.toml
	@echo "setting up $(VENV)-serving, without torch and mlflow: about 120 packages"
	@$(PYTHON) -m venv $(VENV)-serving
	$(call install,$(VENV)-serving,serving-test)
	$(call perf_analyzer,$(VENV)-serving)
	@$(VENV)-serving/bin/python -m compileall -qq -j 0 $(VENV)-serving/lib > /dev/null || true
	@touch $@

lint: setup-dev ## style of the code, and who imports whom
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports --no-logo

graph: setup-dev ## the graph of imports: which floor each module stands on
	@$(BIN)/python -m tests.module_graph

types: setup-dev ## types of the code
	@$(BIN)/mypy

bench: setup-dev ## speed, memory, and parity in other runtimes, each beside the thing to beat
	@$(BIN)/python -m tests.benchmarks

bench-tables: setup-dev ## tables of text, counts and gaps beside PyOD, scikit-learn and SDV (most of an hour)
	@$(BIN)/python -m tests.benchmarks tables

bench-serve: bench-tools setup-dev ## the server beside its peers, each in an environment of its own (minutes)
	@$(BIN)/python -m tests.benchmarks.serve
	@$(BIN)/python -m tests.benchmarks.serve.reload

bench-tools: ## the programs that bench-serve needs: names those that are missing
	@$(PYTHON) -m tests.benchmarks.serve.tools

soak: setup-dev ## eight promotions at once, on sqlite and on a tracking server (minutes)
	@$(BIN)/python -m tests.benchmarks.races

serve: setup ## REST on port 8080 and gRPC on 8081, for the champion
	@$(BIN)/vae serve

# Without workflowType, MLflow 3.17 opens its view for language models, which lacks training runs.
ui: setup ## the MLflow UI on port 5000
	@echo "training runs: http://127.0.0.1:5000/#/experiments?workflowType=machine_learning"
	@$(BIN)/mlflow ui --backend-store-uri "$$MLFLOW_TRACKING_URI"

clean: ## remove environments and caches; keeps the store and bundles
	rm -rf $(VENV) $(VENV)-serving .import_linter_cache .mypy_cache .pytest_cache .ruff_cache build *.egg-info
