# Each target does all its set-up: a virtual environment in the checkout, the pinned dependencies, then the work.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: demo test test-cluster lint install

demo: $(READY)
	$(BIN)/distuda demo

# three files at a time on two cores: many tests wait for Ray's processes
PYTEST := $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: $(READY)
	$(PYTEST) -m "not cluster"

test-cluster: $(READY)
	$(PYTEST) -m cluster

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

install: $(READY)

# torch is pinned first and by itself so that no other package's wish decides which build of it is taken.
$(READY): pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $$(grep '^torch==' constraints.txt)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $(READY)
