# Every target makes its own virtual environment in .venv when there is none. PYTHON chooses the interpreter (3.10+):
#   make test PYTHON=python3.12
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
DEV_READY := $(VENV)/.installed-dev
BENCH_READY := $(VENV)/.installed-bench
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest
CAN_MAKE_VENV := $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null

.DEFAULT_GOAL := help
.PHONY: help demo test test-long lint format coverage bench clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | while IFS="$$(printf '\t')" read -r name what; \
	do printf '  make %-10s %s\n' "$$name" "$$what"; done

demo: ## a process in a throw-away copy of this machine, step by step, in under a minute
	@$(CAN_MAKE_VENV) && $(MAKE) --silent $(READY); \
	if test -e $(READY); then exec $(BIN)/python examples/demo.py; fi; \
	PYTHONPATH=. exec $(PYTHON) examples/demo.py # the demonstration needs no package but this one

test: $(DEV_READY) ## run the tests (ARGS='-k copyup' chooses some)
	$(PYTEST) $(ARGS)

test-long: $(DEV_READY) ## run the long stateful and crash suites as well
	$(PYTEST) -m 'long or not long' $(ARGS)

lint: $(DEV_READY) ## ruff and mypy --strict
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV_READY) ## put imports and layout in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

coverage: $(DEV_READY) ## run the tests and report the lines and branches that none of them reached
	$(PYTEST) --cov --cov-report=term-missing:skip-covered $(ARGS)

bench: $(BENCH_READY) ## compare with other union file systems (W=untar: one workload; QUICK=1: a short run)
	$(BIN)/python -m benchmarks $(if $(W),--only $(W)) $(if $(QUICK),--quick) $(ARGS)

clean: ## remove the virtual environment and everything that was built
	rm -rf $(VENV) .build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is older than pyproject.toml after each change of that: then what it names is installed anew.
$(READY): pyproject.toml setup.cfg
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	|| { echo "$(PYTHON): Python 3.10 or later is needed; choose one with 'make PYTHON=python3.12 ...'" >&2; exit 1; }
	@$(CAN_MAKE_VENV) \
	|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
	     && apt-get update -qq && apt-get install -qq --yes python3-venv; } \
	|| { echo "$(PYTHON) cannot make virtual environments; install what lacks (Debian: apt-get install python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@$(INSTALL) --editable .
	@$(BIN)/python -m compileall -q unionfs # or each start does, where Python may not keep what it compiled
	@touch $@

$(DEV_READY): $(READY)
	@$(INSTALL) --editable '.[dev]'
	@touch $@

$(BENCH_READY): $(READY)
	@$(INSTALL) --editable '.[bench]'
	@touch $@
