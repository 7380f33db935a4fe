# One entry for everything. Each target makes its own environment on a fresh machine with
# Python 3.11 or newer and pip.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# compat: type checkers do not follow the import hook of an ordinary editable install.
INSTALL := $(BIN)/pip install --quiet --config-settings editable_mode=compat -e

.PHONY: venv test test-slow test-versions lint demo docs bench bench-long bench-quick clean

venv: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	# torch first: a plain request would pull the CUDA build.
	$(BIN)/pip install --quiet torch==2.13.0
	$(INSTALL) '.[chains,cli,demo,dev,docs,evidence]'
	touch $@

# One thread for each of the two workers, and for what they start: more would fight for two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal

test: venv
	$(PYTEST) -m 'not slow and not gpu'

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
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/oracle.py
	$(BIN)/python benchmarks/identity.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/error_in_time.py
	$(BIN)/python benchmarks/fit_budget.py
	$(BIN)/python benchmarks/demo.py --figure docs/demo.png
	$(BIN)/python benchmarks/tails.py
	$(BIN)/python benchmarks/tables.py

# The benchmarks that train or sample for long: five hours. benchmarks/price.py is not among them:
# it needs the checkout of another commit.
bench-long: venv
	$(INSTALL) '.[bench,evidence]'
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/chain_split.py
	$(BIN)/python benchmarks/angles.py
	$(BIN)/python benchmarks/mass.py
	$(BIN)/python benchmarks/mass.py --ways --seeds 1 --dimensions 1 2 3 --name mass_ways
	$(BIN)/python benchmarks/walls.py
	$(BIN)/python benchmarks/coverage.py
	$(BIN)/python benchmarks/learning.py
	$(BIN)/python benchmarks/tension.py
	$(BIN)/python benchmarks/alone.py
	$(BIN)/python benchmarks/edges.py
	$(BIN)/python benchmarks/nuts.py
	$(BIN)/python benchmarks/evidence.py
	$(BIN)/python benchmarks/evidence.py --particles 4000 --problems 'shells, D = 10' \
		'shells, D = 20' --name evidence_more
	$(BIN)/python benchmarks/evidence.py --methods bridge --problems 'normal, D = 2' \
		'normal, D = 10' 'normal, D = 20' 'mean and precision' --name evidence_bridge
	$(BIN)/python benchmarks/evidence.py --methods nested --seeds 1 --particles 200 --problems \
		spike 'normal, D = 2' proportion 'shells, D = 2' --name evidence_nested
	$(BIN)/python benchmarks/evidence_cost.py
	$(BIN)/python benchmarks/sequential.py
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/distillation.py --teachers vp ot --features 16 32
	$(BIN)/python benchmarks/distillation.py --teachers vp ot --features 2 8 --name distillation_low
	$(BIN)/python benchmarks/distillation.py --teachers cnf --name distillation_cnf
	$(BIN)/python benchmarks/tables.py

bench-quick: venv
	$(INSTALL) '.[bench,evidence]'
	$(BIN)/python benchmarks/latency.py --features 4 --repeats 11 --name quick_latency
	$(BIN)/python benchmarks/oracle.py --features 2 --name quick_oracle
	$(BIN)/python benchmarks/identity.py --steps 300 --name quick_identity
	$(BIN)/python benchmarks/cost.py --features 2 8 --repeats 3 --name quick_cost
	$(BIN)/python benchmarks/scaling.py --features 2 16 64 --points 1 1000 --name quick_scaling
	$(BIN)/python benchmarks/accuracy.py --mixtures 2 --tables --budget tiny --name quick_accuracy

clean:
	rm -rf $(VENV) docs/_build docs/generated demo
