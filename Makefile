# One entry for everything. Each target makes its own environment on a fresh machine with
# Python 3.11 or newer and pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# compat: type checkers do not follow the import hook of an ordinary editable install.
INSTALL := $(BIN)/pip install --quiet --config-settings editable_mode=compat -e

.PHONY: venv test test-gpu test-slow test-versions lint demo docs bench bench-long bench-quick clean

venv: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	# torch first: a plain request would pull the CUDA build.
	$(BIN)/pip install --quiet torch==2.13.0
	$(INSTALL) '.[chains,cli,cluster,demo,dev,docs,evidence]'
	touch $@

# One thread for each of the two workers, and for what they start: more would fight for two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

test: venv
	$(PYTEST) -m 'not slow and not gpu'

# On a machine with a GPU, with a torch build for it.
test-gpu: venv
	$(PYTEST) -m gpu

test-slow: venv
	$(PYTEST) -m slow

# Every Python from 3.11 to 3.13 that is here, from the built wheel; those that are not are named.
test-versions:
	.ci/versions

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

demo: venv
	$(BIN)/pyro-stad demo --out demo

# Two notebooks run at once here too: with two threads each they stood in each other's way for minutes.
docs: venv
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -W --keep-going -q -j auto -b html docs docs/_build/html
	$(BIN)/python -m pytest -q pyro_stad docs/start.md docs/extend.md
	@echo "open docs/_build/html/index.html"

bench: venv
	$(INSTALL) '.[bench,evidence]'
	$(BIN)/python benchmarks/run.py short

# The benchmarks that train or sample for long: five hours. benchmarks/price.py is not among them:
# it needs the checkout of another commit.
bench-long: venv
	$(INSTALL) '.[bench,evidence]'
	$(BIN)/python benchmarks/run.py long

bench-quick: venv
	$(INSTALL) '.[bench,evidence]'
	$(BIN)/python benchmarks/run.py quick

clean:
	rm -rf $(VENV) docs/_build docs/generated demo
