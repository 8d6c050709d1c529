# make install | demo | test | lint: each works on a bare checkout and is cheap when repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file as old as the last complete installation: nothing is installed again until pyproject.toml changes.
DONE := $(VENV)/.installed

.PHONY: install demo test lint

install: $(DONE)

$(DONE): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet torch==2.14.1 torchaudio==2.11.0
	$(BIN)/pip install --quiet --editable ".[dev]"
	# The Llama-3 tokenizer with its real ids, for tests; its other dependencies are not needed.
	$(BIN)/pip install --quiet --no-deps llama-models==0.3.0
	touch $@

demo: install
	$(BIN)/python -m plugins.demo

test: install
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy plugins
