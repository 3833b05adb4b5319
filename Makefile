# make demo   a first answer with its trace      make test   the tests
# make check  lint, types, floor plan, tests     make docs   the documentation, as a site
# Each works in a fresh clone: the first call makes .venv and installs what it needs.

PYTHON ?= python3
VENV ?= .venv

BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
# A stamp stands for "installed with this pyproject.toml and these constraints".
CORE := $(VENV)/.core
DEV := $(VENV)/.dev
DOCS := $(VENV)/.docs

.DEFAULT_GOAL := help
.PHONY: help demo test lint types plan check docs clean

help:
	@sed -n 's/^# make/make/p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "conflictkit needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

$(CORE): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

$(DEV): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[dev]"
	@touch $(CORE) $@

$(DOCS): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e ".[docs]"
	@touch $(CORE) $@

demo: $(CORE)
	$(BIN)/conflictkit ask "What is the capital of Poland?" \
	    --context "The capital of Poland is London." --method adacad

test: $(DEV)
	$(BIN)/python -m pytest -n logical

lint: $(DEV)
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(DEV)
	$(BIN)/pyright

plan: $(DEV)
	$(BIN)/lint-imports

check: lint types plan test

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --config-file docs/config/mkdocs.yml

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
