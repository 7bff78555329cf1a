# Works with GNU make on Linux and macOS. On Windows, README.md gives the three plain commands instead.

.DEFAULT_GOAL := help
.PHONY: help run test check audit bench clean tools python
.DELETE_ON_ERROR:
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin/python
PYTEST_ARGS ?= -q -n 2
BENCH_ARGS ?=
PIP_AUDIT := 2.10.1

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: python  ## Set up what is missing and serve on http://127.0.0.1:8000
	@$(MAKE) -s --no-print-directory $(VENV)/run.stamp
	@exec $(BIN) -m dicomcloud serve

test: tools  ## Set up what is missing and run all tests (PYTEST_ARGS overrides "-q -n 2")
	@$(BIN) -m pytest $(PYTEST_ARGS)

check: tools  ## Lint, formatting, types, import order, licences, documentation against code
	@$(BIN) -m ruff check .
	@$(BIN) -m ruff format --check .
	@$(BIN) -m mypy
	@$(BIN) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"
	@$(BIN) -m tools.licences
	@$(BIN) -m pytest -q tests/test_docs.py

audit: tools  ## Ask for known vulnerabilities of the pinned dependencies (pip-audit, in an environment of its own)
	@[ -x build/audit/bin/pip-audit ] || { $(BIN) -m venv build/audit && build/audit/bin/python -m pip install --quiet --disable-pip-version-check pip-audit==$(PIP_AUDIT); }
	@$(BIN) -m tools.vulnerabilities build/audit/bin/pip-audit

bench: tools  ## Measure this server, next to a peer where one is installed (BENCH_ARGS="--help")
	@$(BIN) -m benchmarks $(BENCH_ARGS)

clean:  ## Remove the virtual environment and caches; the data directory stays
	rm -rf $(VENV) .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

tools: python
	@$(MAKE) -s --no-print-directory $(VENV)/dev.stamp

$(VENV)/run.stamp: requirements.txt
	@echo "Installing what the server needs into $(VENV) (once; a minute or two) ..."
	@touch $(VENV)/unfinished
	@$(BIN) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	@rm -f $(VENV)/unfinished && touch $@

$(VENV)/dev.stamp: requirements-dev.txt requirements-objectstore.txt $(VENV)/run.stamp
	@echo "Installing what tests and checks need into $(VENV) (once) ..."
	@touch $(VENV)/unfinished
	@$(BIN) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@rm -f $(VENV)/unfinished && touch $@

# Makes a virtual environment that works, or says why it cannot. PYTHON=/path/to/python chooses the Python (`make clean` before).
# One that an interrupted installation left behind, or whose Python is gone or too old, is made anew.
NEW_ENOUGH := import sys, venv; sys.exit(sys.version_info < (3, 11))
python:
	@if [ ! -e $(VENV)/unfinished ] && $(BIN) -c '$(NEW_ENOUGH)' >/dev/null 2>&1 \
	  && $(BIN) -c 'import pip' >/dev/null 2>&1; then exit 0; fi; \
	found=; \
	for candidate in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	  if "$$candidate" -c '$(NEW_ENOUGH)' >/dev/null 2>&1; then found=$$candidate; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
	  old=$$("$(or $(PYTHON),python3)" --version 2>&1 | grep -i '^python ' || true); \
	  echo "DICOMcloud needs Python 3.11 or newer; found: $${old:-none}." >&2; \
	  echo "Install it (Debian, Ubuntu: apt install python3 python3-venv; others: https://www.python.org/downloads/)" >&2; \
	  echo "or name it: make run PYTHON=/path/to/python3.11" >&2; \
	  exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip' >/dev/null 2>&1; then \
	  echo "$$("$$found" --version) cannot make virtual environments. Debian, Ubuntu: apt install python3-venv" >&2; \
	  exit 1; \
	fi; \
	echo "Making a virtual environment in $(VENV) with $$("$$found" --version) ..."; \
	"$$found" -m venv --clear $(VENV)
