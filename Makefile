# Each command first builds .venv from this project's own files: `make demo`, `make test`, `make test-all`, `make check`.
# Needed beforehand: make and Python 3.11 or newer. `PYTHON=/path/to/python make test` chooses another interpreter.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then echo $$python; break; fi; done)
BIN := .venv/bin
INSTALLED := .venv/.installed
SCHEMA := recipes/recipe.schema.json

.PHONY: demo test test-all check format clean

demo: $(INSTALLED)
	$(BIN)/reparam demo

# A process for each core, with one thread: on models this small a second one only waits for the first.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadscope

# Without what compiles, exports or starts processes for long: `make test-all` runs that too.
test: $(INSTALLED)
	$(PYTEST) -m "not slow"

test-all: $(INSTALLED)
	$(PYTEST)

check: $(INSTALLED)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	@$(BIN)/reparam recipes schema | diff -u $(SCHEMA) - || \
		{ echo "$(SCHEMA) is stale. Run: $(BIN)/reparam recipes schema > $(SCHEMA)" >&2; exit 1; }

format: $(INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(INSTALLED): pyproject.toml
	@if [ -z "$(PYTHON)" ]; then \
		echo "reparam needs Python 3.11 or newer, and none was found; install one or run: PYTHON=/path/to/python make" >&2; exit 1; fi
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "reparam needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1)" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev,demo]'
	@touch $@
