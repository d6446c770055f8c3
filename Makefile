# `make lab` and `make test` are all that a learner needs; both set up .venv first, and only when something changed.
PYTHON ?= python3
VENV ?= .venv
ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
ARGS ?=

.PHONY: help setup lab test doctor run notebooks lint bench figures clean
help:
	@echo "make lab        open the course in JupyterLab (ARGS=\"--no-browser\" passes options on)"
	@echo "make test       run every test, the notebooks included (ARGS=\"-n 2\" passes options on)"
	@echo "make doctor     is this machine ready?"
	@echo "make run        run copies of all notebooks and print a table"
	@echo "make notebooks  execute and clean the notebooks in place (after editing them; ARGS=\"week1\")"
	@echo "make lint       style, types, layers"
	@echo "make bench      measured ratios to torch and transformers"
	@echo "make figures    draw images/ again"
	@echo "make clean      remove .venv"

setup: $(VENV)/ready

# The stamp is written last: an interrupted set-up starts again. No network is needed once it is there.
$(VENV)/ready: constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed, $(PYTHON) is older or missing: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || \
	  { echo "python -m venv failed; on Debian and Ubuntu: sudo apt install python3-venv"; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@$(BIN)/python -c "import pathlib; pathlib.Path('$(VENV)/ready').touch()"

lab: setup
	@$(BIN)/course doctor || echo "JupyterLab opens all the same; mend the lines marked [FAIL] first if a notebook stumbles."
	$(BIN)/course lab $(ARGS)

test: setup
	$(BIN)/course test $(ARGS)

doctor: setup
	$(BIN)/course doctor

run: setup
	$(BIN)/course run $(ARGS)

notebooks: setup
	$(BIN)/course notebooks $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup
	$(BIN)/python -m tests.benchmarks.bench $(ARGS)

figures: setup
	$(BIN)/course figures

clean:
	rm -rf $(VENV)
