# Everything is installed in .venv, by the first target that needs it, and again when a pyproject.toml changes.
# PYTHON=/path/to/python3.12 chooses the interpreter; PYTEST_ARGS and BENCH_ARGS are handed on.
.DEFAULT_GOAL := help
.PHONY: bench clean coverage demo docs format help lint test test-long

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --quiet --disable-pip-version-check
PROJECTS := pyproject.toml $(wildcard adapters/*/pyproject.toml)
ADAPTERS := $(patsubst %/pyproject.toml,-e ./%,$(wildcard adapters/*/pyproject.toml))

demo: $(VENV)/.demo  ## watch an agent go on in another process, and on another device
	$(BIN)/charm-checkpoint demo
	@echo
	$(BIN)/python -m examples.two_devices

test: lint  ## lint, then run the tests (PYTEST_ARGS="-k name")
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

test-long: $(VENV)/.dev  ## the tests with their long forms
	$(BIN)/python -m pytest -m "" $(PYTEST_ARGS)

lint: $(VENV)/.dev  ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.dev  ## put the code in form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(VENV)/.dev  ## the tests, then what they did not reach
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest $(PYTEST_ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

bench: $(VENV)/.dev  ## side by side with the peers (BENCH_ARGS="--help")
	$(BIN)/python -m bench $(BENCH_ARGS)

docs: $(VENV)/.dev  ## write docs/cli.md from the commands themselves
	$(BIN)/python -m charm_checkpoint.cli.docs

clean:  ## remove .venv, caches and what was built
	rm -rf $(VENV) build dist .coverage .coverage.* .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# The demo needs the core, LangGraph and a Postgres; everything else needs the other adapters and the tools too.
$(VENV)/.demo: pyproject.toml adapters/postgres/pyproject.toml | $(BIN)/python
	@echo "Installing into $(VENV) …"
	@$(PIP) install --group postgres -e ".[demo]" -e ./adapters/postgres
	@touch $@

$(VENV)/.dev: $(PROJECTS) | $(BIN)/python
	@echo "Installing the core, the adapters and the tools into $(VENV); this happens once …"
	@$(PIP) install --group dev -e ".[demo,encryption,testing]" $(ADAPTERS)
	@touch $(VENV)/.demo $@

$(BIN)/python:
	@for python in $(PYTHON) $(if $(PYTHON),,python3 python3.13 python3.12 python3.11 python3.10 python); do \
	    "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || continue; \
	    "$$python" -m venv --clear $(VENV) && $(PIP) install --upgrade "pip>=25.1" && exit 0; \
	    rm -rf $(VENV); exit 1; \
	done; \
	echo "No Python 3.10 or newer with venv was found$(if $(PYTHON), at $(PYTHON))." >&2; \
	echo "Install one (Debian, Ubuntu: apt-get install python3 python3-venv), or name it: make PYTHON=/path/to/python3" >&2; \
	exit 1
