# xenspec.  `make run` fuzzes for half a minute, `make run-xen` does so on the real Xen, `make test` checks everything; all set up
# what they need in .venv.
PYTHON          ?= python3
SECONDS_TO_FUZZ ?= 30
DOMAINS         ?= 2
SEED            ?=
XEN             ?=
PYTEST_FLAGS    ?=

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready

# Whatever environment the caller is in, only .venv counts.
unexport PYTHONPATH PYTHONHOME PYTHONSAFEPATH VIRTUAL_ENV PIP_USER PIP_TARGET PIP_PREFIX

.PHONY: run run-xen test bench prove mutants real-xen lint clean
.DELETE_ON_ERROR:

run: $(READY)
	$(BIN)/xenspec fuzz --seconds $(SECONDS_TO_FUZZ)
	$(BIN)/xenspec selftest --quick

# The same on the real Xen: domain 0 and, with DOMAINS=2, an unprivileged one.
run-xen: real-xen
	$(BIN)/xenspec fuzz --profile xen-4.17 --target xen --seconds $(SECONDS_TO_FUZZ) --domains $(DOMAINS) --workers 1 \
	    $(if $(SEED),--seed $(SEED)) $(if $(XEN),--xen $(XEN))

test: lint
	$(BIN)/python -m pytest -n 2 $(PYTEST_FLAGS)

bench: $(READY)
	$(BIN)/xenspec bench

prove: $(READY)
	$(BIN)/xenspec prove --jobs 2

mutants: $(READY)
	$(BIN)/xenspec mutants --jobs 2

real-xen: $(READY)
	@$(BIN)/python -m emulator.xen.fetch $(if $(XEN),--xen $(XEN))

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy --strict
	$(BIN)/python -m tools.lint

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "xenspec needs Python 3.11 or newer, and '$(PYTHON)' is not: try make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
	    { echo "'$(PYTHON)' cannot make virtual environments: install its venv module (Debian: python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --editable '.[test,proofs]'
	@touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
