# Every target sets up what it needs; nothing prompts; a second run takes seconds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STATE := $(CURDIR)/.edged
JOBS ?= 3
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: setup setup-test demo test check lint types bench clean help explore

help:
	@echo "make demo        set up, ingest the sample documents, answer three questions"
	@echo "make demo KEEP=1 the same, and leave the daemon running"
	@echo "make test        set up everything (compiles llama-cpp-python once) and run all tests"
	@echo "make test JOBS=1 the same, one test file at a time"
	@echo "make check       lint, types, import contracts, tests"
	@echo "make explore     the property tests with new examples (those of make test are always the same)"
	@echo "make bench       measure the rows of the benchmark table in full"
	@echo "make clean       remove what these targets made"

setup: $(VENV)/.installed

$(VENV)/bin/python:
	@$(PYTHON) examples/preflight.py python
	@echo "==> creating $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "==> installing edged and its runtimes (prebuilt wheels)"
	@$(PIP) install --progress-bar on --prefer-binary --editable . || { $(PYTHON) examples/preflight.py network; exit 1; }
	@touch $@

setup-test: $(VENV)/.installed-test

$(VENV)/.installed-test: pyproject.toml $(VENV)/.installed
	@$(PYTHON) examples/preflight.py compiler
	@echo "==> installing test tools and torch, and compiling llama-cpp-python for this CPU (several minutes, once)"
	@$(PIP) install --progress-bar on --prefer-binary --editable '.[dev,derive,llama,pipeline]' || { $(PYTHON) examples/preflight.py network; exit 1; }
	@touch $@

demo: setup
	@EDGED_DEMO_STATE="$(STATE)" KEEP="$(KEEP)" $(BIN)/python examples/demo.py

test: setup-test
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

explore: setup-test
	@$(BIN)/python -m pytest --numprocesses $(JOBS) --hypothesis-profile default --hypothesis-show-statistics tests/unit

lint: setup-test
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/lint-imports

types: setup-test
	@$(BIN)/mypy
	@$(BIN)/basedpyright --level error

check: lint types test

bench: setup-test
	@$(BIN)/python -m benchmarks.report $(ROWS)

clean:
	rm -rf $(VENV) "$(STATE)" .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
