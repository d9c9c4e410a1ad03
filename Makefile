# Two commands on a fresh machine: `make demo` and `make test`. Everything lives in .venv and runs/.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUN    := runs/digits

.PHONY: demo test test-slow test-all lint install clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -e ".[dev]"
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/flowmatch train -c configs/digits.yaml -e $(RUN) --overwrite
	$(BIN)/flowmatch sample $(RUN) --n_samples 100 --save_dir $(RUN)/generated
	$(BIN)/flowmatch look $(RUN)
	$(BIN)/flowmatch evaluate $(RUN) --num-samples 1000 --repeats 2 --solvers euler:10 heun:5,20
	$(BIN)/flowmatch report $(RUN)

test: install
	$(BIN)/python -m pytest -n 2 -m "not slow and not gpu"

test-slow: install
	$(BIN)/python -m pytest -n 2 -m "slow and not gpu"

test-all: test test-slow

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs/digits
