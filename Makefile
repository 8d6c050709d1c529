# make install | demo | test | test-next | test-slow | faults | lint | docs: each works on a bare checkout and is cheap when repeated.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file as old as the last complete installation: nothing is installed again until pyproject.toml changes.
DONE := $(VENV)/.installed

.PHONY: install demo test test-next test-slow faults lint docs

install: $(DONE)

$(DONE): pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable ".[dev]"
	# Without their other dependencies, which are not needed: the Llama-3 tokenizer with its real ids, for tests; the
	# encoder of voices, for `higgs-audio evaluate`.
	$(BIN)/pip install --quiet --no-deps llama-models==0.3.0 resemblyzer==0.1.4
	touch $@

# Without its own compiled kernels, which want a GPU; it is built against the installed torch.
$(VENV)/.deepspeed: $(DONE)
	$(BIN)/pip install --quiet "setuptools>=77" wheel ninja
	DS_BUILD_OPS=0 $(BIN)/pip install --quiet --no-build-isolation deepspeed || echo "no DeepSpeed to be had: its tests are skipped"
	touch $@

demo: install
	$(BIN)/python -m demo

test: install
	# Two files at a time, as below.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile

# The newest transformers that the code supports (plugins/files/installation.py). MS-SWIFT's metadata holds pip below it.
NEXT := .venv-next
NEWEST := transformers==5.24.0
$(NEXT)/.installed: $(DONE) Makefile
	rm -rf $(NEXT)
	# Hard links: seconds, and no room. Neither sed nor pip writes into a file, both put a new one in its place.
	cp -al $(VENV) $(NEXT)
	grep -rlI --exclude-dir=__pycache__ "$(CURDIR)/$(VENV)/" $(NEXT)/bin | xargs sed -i "s#$(CURDIR)/$(VENV)/#$(CURDIR)/$(NEXT)/#"
	$(NEXT)/bin/python -m pip install --quiet --no-deps $(NEWEST)
	touch $@

# What a version of transformers can break first, each file's fast tests; of the slow ones a save and resume of two ranks.
CORE := tests/model tests/speaking tests/data tests/test_collator.py tests/upstream
TWO_RANKS := tests/training/test_signals.py::test_the_printed_command_goes_on_as_if_nothing_had_happened

test-next: $(NEXT)/.installed
	OMP_NUM_THREADS=1 $(NEXT)/bin/python -m pytest -m "not slow" -n 2 --dist loadfile $(CORE)
	OMP_NUM_THREADS=1 $(NEXT)/bin/python -m pytest $(TWO_RANKS) -k x2

# What equals the original, transformers and one step split in other ways: with index-once layers in `make test`, here
# with transformers' own.
PARITY := tests/model/test_modeling.py tests/model/test_audio_tower_model.py tests/speaking/test_decoding.py tests/speaking/test_step.py tests/training/test_training.py

test-slow: install $(VENV)/.deepspeed
	# Two files of tests at a time: most of them wait for processes that import.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not exhaustive" -n 2 --dist loadfile --no-loadscope-reorder
	NATIVE_LAYERS=1 $(BIN)/python -m pytest -m "not slow" $(PARITY)

faults: install
	$(BIN)/python -m pytest -s tests/faults

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy plugins

# Strict: a link, an image or a name of the API that is not there fails.
docs: install
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
