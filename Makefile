# Two commands matter: `make demo` and `make test`. Each sets up its own virtual environment first.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs bench clean

demo: $(VENV)/.demo
	$(BIN)/scbig demo

test: $(VENV)/.dev
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/sphinx-build -W --keep-going -q -b html docs docs/_build/html

SHARED ?= ../shared
bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.modules --shared $(SHARED)
	$(BIN)/python -m benchmarks.judge --shared $(SHARED)
	$(BIN)/python -m benchmarks.cell_eval
	$(BIN)/python -m benchmarks.ceilings --shared $(SHARED)
	$(BIN)/python -m benchmarks.norman_effects --shared $(SHARED)
	$(BIN)/python -m benchmarks.replogle_effects --shared $(SHARED)
	$(BIN)/python -m benchmarks.simulated
	$(BIN)/python -m benchmarks.papalexi --shared $(SHARED)
	$(BIN)/python -m benchmarks.variants --grid coupling --run runs/bench_papalexi/0 --name papalexi
	$(BIN)/python -m benchmarks.variants --grid coupling --run runs/bench_simulated/0 --name simulated
	$(BIN)/python -m benchmarks.variants --grid step --run runs/bench_simulated/0 runs/bench_simulated/1 runs/bench_simulated/2 --name simulated
	$(BIN)/scbig bench
	$(BIN)/python -m benchmarks.stream --calls 4 --width 64 --depth 2
	$(BIN)/python -m benchmarks.startup
	$(BIN)/python -m benchmarks.sampling --run runs/bench_simulated/0
	$(BIN)/python -m benchmarks.precision
	$(BIN)/python -m benchmarks.peers.setup
	$(BIN)/python -m benchmarks.peers --run runs/bench_papalexi/0 --shared $(SHARED)
	$(BIN)/python -m benchmarks.scale --sizes

# A stamp per set of packages: installed once, and again when setup.cfg changes.
$(VENV)/.demo: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "scBIG needs Python 3.11 or newer; name one with PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs build docs/_build *.egg-info
