# The environment is always .venv at the root; its stamp is made anew when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: quickstart test test-fast coverage lint bench schemas clean

quickstart: $(READY)  ## train a small zoo, extract, compare, calibrate, report
	$(BIN)/consilience run workflows/quickstart.yaml

PYTEST := $(BIN)/python -m pytest -n 2 --dist worksteal

test: $(READY)  ## the whole suite
	$(PYTEST)

test-fast: $(READY)  ## some of every room in a minute and a half, for each edit
	$(PYTEST) -m "not slow"

coverage: $(READY)  ## the whole suite, with the lines that it does not reach
	$(PYTEST) --cov --cov-report=term-missing:skip-covered --cov-fail-under=95

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)  ## ratios measured side by side on this machine
	$(BIN)/python benchmarks/similarity.py
	$(BIN)/python benchmarks/similarity.py --large

schemas: $(READY)  ## JSON Schemas of the YAML files, for editors
	$(BIN)/python docs/schemas.py

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[test]'
	touch $@

clean:  ## remove what was made, but not the environment
	rm -rf store/*.zarr store/*.report store/reference .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage
