# Two commands are enough for a newcomer: `make demo` and `make test`. Each makes .venv if it is missing.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
EXTRAS := torch,data,report,postgres,flower,test

.PHONY: demo test lint types check deep bench clean

demo: $(VENV)/.installed
	$(BIN)/secagg demo

test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n auto -m "not slow"

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(VENV)/.installed
	$(BIN)/mypy

check: lint types $(VENV)/.installed
	$(BIN)/python -m pytest -q -n auto -m "not slow" --cov --cov-report=term --cov-fail-under=95
	$(BIN)/python -m coverage report --fail-under=100 --include="protocols/wire.py,protocols/session.py,protocols/policy.py,dp/ledger*.py"

deep: $(VENV)/.installed
	HYPOTHESIS_PROFILE=deep $(BIN)/python -m pytest -q
	$(BIN)/python -m tests.deep.fuzz
	$(BIN)/python -m tests.deep.mutants

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks speed

clean:
	rm -rf $(VENV)

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[$(EXTRAS)]'
	touch $@
