# Two commands do all the set-up: `make demo` and `make test`.
# Needed beforehand: Python 3.11 or newer, make, and a package index that pip can reach.

PYTHON  ?= python3
RECIPE  ?= digits
WORKERS ?= 2
ARGS    ?=

VENV := .venv
BIN  := $(VENV)/bin
PIP  := $(BIN)/python -m pip --disable-pip-version-check install -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint format types docs wheel lowest py313 clean

help:
	@echo "make demo     set up .venv, then slim a small network on handwritten digits (under 2 minutes)"
	@echo "make test     the same environment plus the test tools, then the whole test suite"
	@echo "make lint     ruff: mistakes and formatting          make format   let ruff repair them"
	@echo "make types    mypy                                   make wheel    build dist/, and try it from outside"
	@echo "make docs     build the site of docs/ into docs/_build, run its notebook; warnings are errors"
	@echo "make lowest   the tests with the lowest versions that pyproject.toml allows (Python 3.11); make py313 with Python 3.13"
	@echo "make clean    remove .venv, caches and dist/ (never runs/)"
	@echo
	@echo "PYTHON=python3.12 chooses the interpreter; RECIPE=mnist-mlp another demo; ARGS='-k plots' a part of the tests."

demo: $(VENV)/.installed
	$(BIN)/netslim run $(strip $(RECIPE) $(ARGS))

# One thread a worker: two workers that each start a thread per core only get in each other's way. What is compiled is kept even where
# the environment says otherwise: half of what each worker takes to collect the tests is compiling them.
test: $(VENV)/.installed-dev
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m pytest -n $(strip $(WORKERS) $(ARGS))

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.installed-dev
	$(BIN)/mypy

docs: $(VENV)/.installed-docs
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m sphinx -q -W --keep-going -b dirhtml -d docs/_build/.doctrees docs docs/_build
	@echo "open docs/_build/index.html"

wheel: $(VENV)/.installed-dev
	rm -rf dist build/outside
	$(BIN)/python -m build --wheel
	$(PIP) --quiet --no-deps --target build/outside dist/*.whl
	cd build && PYTHONPATH=outside ../$(BIN)/python -c 'import netslim; assert "outside" in netslim.__file__, netslim.__file__'
	cd build && PYTHONPATH=outside ../$(BIN)/python -m netslim recipes digits >/dev/null
	cd build && PYTHONPATH=outside ../$(BIN)/python -m netslim models zoo: >/dev/null

# What pyproject.toml allows at the least; the optional packages, which most tests do without, are left out but timm. Old packages are
# deprecated by newer ones that they import, which is not ours to mend.
LOWEST := .venv-lowest
lowest:
	$(MAKE) VENV=$(LOWEST) PYTHON=$(firstword $(shell command -v python3.11) python3) $(LOWEST)/.installed-lowest
	OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest -n $(strip $(WORKERS) -W default::DeprecationWarning $(ARGS))

$(LOWEST)/.installed-lowest: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet uv
	$(LOWEST)/bin/python -m uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct -e .
	$(LOWEST)/bin/python -m uv pip install --python $(LOWEST)/bin/python pytest pytest-xdist hypothesis timm
	@touch $@

py313:
	$(MAKE) VENV=.venv-py313 PYTHON=python3.13 test

clean:
	rm -rf $(VENV) .venv-lowest .venv-py313 dist build docs/_build docs/jupyter_execute docs/project docs/reference .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# An environment that already works is used as it is; the stamps say that the install went through to the end.
$(VENV)/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || \
		{ echo "make: no '$(PYTHON)' found. Install Python 3.11 or newer, or name one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "make: netslim needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1)." \
		       "Name a newer one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || \
		{ echo "make: could not create $(VENV). On Debian and Ubuntu, install the package python3-venv first." >&2; exit 1; }
	@echo "Installing netslim into $(VENV). The first time this takes some minutes and about 6 GB, most of it PyTorch."
	$(PIP) -e .
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed
	@echo "Installing Sphinx and what runs notebooks ..."
	@$(PIP) --quiet -e '.[docs]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing the test tools ..."
	@$(PIP) --quiet -e '.[dev]'
	@touch $@
