# The commands of this repository; 'make help' lists them.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= .venv/bin/python
ARGS ?=
NODES ?= 1
# Test processes side by side: tests wait a good deal, so more than there are processors. Each that
# runs tests on a cluster has a cluster of its own.
WORKERS ?= $(if $(filter test-cluster,$@),2,4)
BIN := .venv/bin
# Keeps what Python compiles, also where it is told not to: each of the many processes that tests
# start would compile its modules anew.
KEEPING_BYTECODE := env -u PYTHONDONTWRITEBYTECODE PYTHONPYCACHEPREFIX=$(CURDIR)/.pytest_cache/bytecode
PYTEST = $(KEEPING_BYTECODE) $(PYTHON) -m pytest -n $(WORKERS) --dist loadgroup

.PHONY: help setup venv demo test test-host check format gpu-test bench-overhead bench-jobs bench-wrapper bench-gpu lock protos clean \
	cluster-programs cluster-up cluster-down test-cluster

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## Make .venv and fetch containerd, runc and CRIU (done already: a moment)
	@scripts/setup.sh

venv:  ## Make .venv only
	@scripts/setup.sh venv

demo: setup  ## Checkpoint a counting container, end it, resume it: the count goes on (root)
	@$(BIN)/kybernate demo $(ARGS)

test:  ## Run test-host, then test-cluster; ARGS names some: ARGS="tests/unit -k plan" (root)
ifeq ($(strip $(ARGS)),)
	@$(MAKE) --no-print-directory test-host
	@$(MAKE) --no-print-directory test-cluster
else
	@$(MAKE) --no-print-directory $(if $(findstring tests/cluster,$(ARGS)),test-cluster,test-host)
endif

test-host: setup  ## Run the tests that need no cluster; ARGS goes to pytest (root)
	@$(PYTEST) $(ARGS)

test-cluster: cluster-programs  ## Run the tests on a Kubernetes cluster; ARGS goes to pytest (root)
	@$(PYTEST) $(if $(findstring tests/,$(ARGS)),,tests/cluster) $(ARGS)

cluster-up: cluster-programs  ## Bring a Kubernetes cluster up in .cluster, with NODES nodes (root)
	@$(PYTHON) -m kybernate.embedded.kubernetes up --nodes $(NODES)

cluster-down:  ## End the cluster in .cluster and remove everything of it
	@$(PYTHON) -m kybernate.embedded.kubernetes down

cluster-programs: setup
	@command -v ip >/dev/null || scripts/apt-install.sh iproute2
	@scripts/kubernetes.sh

check: venv  ## Formatting, lint, types, import contracts, exported schemas
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache --no-logo
	$(BIN)/python -m schemas.export --check

format: venv  ## Format, and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

gpu-test:  ## Run the tests that need a GPU with PYTHON (root)
	@[[ "$(PYTHON)" != .venv/bin/python ]] || scripts/setup.sh
	@$(PYTHON) -m pytest -m gpu tests/gpu tests/contract/test_gpu.py $(ARGS)

bench-overhead: setup  ## What Kybernate adds to containerd's own checkpoint and restore
	@$(PYTHON) -m bench.overhead $(ARGS)

bench-jobs: setup  ## Jobs per second and latency over NATS, beside FastStream
	@$(PYTHON) -m bench.jobs $(ARGS)

bench-wrapper: setup  ## What the OCI runtime of pods adds to runc's own calls
	@$(PYTHON) -m bench.wrapper $(ARGS)

bench-gpu:  ## Checkpoint and resume of GPU memory, by size, with PYTHON (root)
	@[[ "$(PYTHON)" != .venv/bin/python ]] || scripts/setup.sh
	@$(PYTHON) -m bench.gpu $(ARGS)

lock: venv  ## Write requirements.lock anew (UPGRADE=1: newest versions)
	@scripts/lock.sh

protos: venv  ## Generate the protobuf code of containerd's API
	@scripts/protos.sh

clean:  ## Remove .venv and what tools left in the checkout (the stack stays in the cache)
	rm -rf .venv .setup.lock .pytest_cache .mypy_cache .ruff_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
