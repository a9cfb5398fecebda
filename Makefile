# Every target does its own set-up: a clean checkout, Python >= 3.11 and pip are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?= smollm2-135m-instruct

.DEFAULT_GOAL := help
.PHONY: help up test test-slow lint types imports format clean

help:  ## Show the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check pip==26.3
	$(BIN)/pip install --quiet --disable-pip-version-check -e .
	$(BIN)/python -m kernels.build
	@touch $@

$(VENV)/.installed-dev: pyproject.toml $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

up: $(VENV)/.installed  ## Install, pull the model, start the server, print how to call it
	$(BIN)/gridserve up --model $(MODEL) --host $(HOST) --port $(PORT)

test: $(VENV)/.installed-dev lint types imports  ## Set up and run the whole suite
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m 'not slow and not gpu and not hardware'

test-slow: $(VENV)/.installed-dev  ## Run the tests marked slow
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m 'slow and not gpu and not hardware' --timeout 1800

lint: $(VENV)/.installed-dev  ## ruff: lint and format check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy --strict
	$(BIN)/mypy

imports: $(VENV)/.installed-dev  ## import-linter: who may import whom
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## Rewrite files as ruff formats them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove caches and the virtual environment
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
