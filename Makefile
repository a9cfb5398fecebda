# Every target does its own set-up: a clean checkout, Python >= 3.11 and pip are enough.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
HOST   ?= 127.0.0.1
PORT   ?= 8000
MODEL  ?= smollm2-135m-instruct

.DEFAULT_GOAL := help
.PHONY: help up test test-slow check lint types imports dependencies lock install-locked system-packages format clean

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

test: system-packages $(VENV)/.installed-dev lint types imports  ## Set up and run the whole suite
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m 'not slow and not gpu and not hardware'

test-slow: $(VENV)/.installed-dev  ## Run the tests marked slow
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m 'slow and not gpu and not hardware' --timeout 1800

check: lint types imports dependencies  ## Everything but the tests: lint, types, imports, lock, audit, SBOM

dependencies: $(VENV)/.installed-dev  ## The lock is current, no version is known to be vulnerable, SBOM
	$(BIN)/python scripts/check_dependencies.py lock
	$(BIN)/python scripts/check_dependencies.py audit
	$(BIN)/python scripts/check_dependencies.py sbom build/gridserve.cdx.json

lock: $(VENV)/.installed-dev  ## Lock every dependency with its hashes
	$(BIN)/uv pip compile pyproject.toml --extra dev --universal --python-version 3.11 --generate-hashes \
	    --no-header --no-annotate --quiet --output-file requirements.lock

install-locked:  ## Install exactly what is locked; a download with another hash is refused
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	$(BIN)/python -m kernels.build

system-packages:  ## What some tests need from Debian: Chromium, PostgreSQL, promtool (as root; else told)
	@sh scripts/system_packages.sh

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
