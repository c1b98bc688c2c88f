# skillserve: `make` lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help install demo test lint format bench clean

help: ## List the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

install: $(VENV)/.dev ## Install everything, tools for development included, into .venv

demo: $(VENV)/.demo ## Train, export, serve and search the sample catalogue
	@$(BIN)/skillserve demo

test: $(VENV)/.dev lint ## Lint, then run every test, those against the real server included
	@$(BIN)/python -m pytest

lint: $(VENV)/.dev ## Check style, types and the boundaries between rooms
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/ruff check --quiet .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.dev ## Format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix --quiet .

bench: $(VENV)/.dev ## Say how the figures in docs/benchmarks are measured
	@$(BIN)/skillserve bench --help

clean: ## Remove what demo and tests wrote; keep the environment
	@rm -rf .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(VENV)/bin/python:
	@$(PYTHON) -m venv $(VENV)

# torch first and by its exact version: left to the resolver, a plain `torch` brings gigabytes of CUDA.
$(VENV)/.torch: $(VENV)/bin/python constraints.txt
	@echo "Installing torch (once) ..."
	@$(PIP) torch==2.13.0
	@touch $@

$(VENV)/.demo: $(VENV)/.torch pyproject.toml
	@echo "Installing skillserve and what the demo needs (once) ..."
	@$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/.torch pyproject.toml
	@echo "Installing skillserve and what development needs (once) ..."
	@$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.demo
