# `make run`: the main job on this machine. `make test`: all tests. Both set up what they need.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup run test test-fast lint lint-style lint-types lock
.DELETE_ON_ERROR:

setup: $(VENV)/.done

run: setup
	$(BIN)/snakemake --profile profiles/local
	@echo "Report: $(CURDIR)/results/report.html"

test: setup
	@$(MAKE) --no-print-directory --jobs=2 lint
	$(BIN)/pytest --numprocesses=3 --dist=loadscope --no-loadscope-reorder

test-fast: setup
	$(BIN)/pytest --numprocesses=auto --dist=loadscope -m unit

lint: lint-types lint-style

lint-style: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/mypy --strict --cache-dir=.mypy_cache/strict workflow/jaxway workflow/scripts/jaxway_shared
	$(BIN)/snakefmt --check Snakefile workflow/Snakefile rules
	$(BIN)/snakemake --lint

lint-types: setup
	$(BIN)/mypy

config/README.md: $(wildcard workflow/schemas/* workflow/jaxway/*.py workflow/jaxway/*/*.py workflow/scripts/*.py workflow/scripts/*/*.py)
	$(BIN)/jaxway describe-config > $@

# requirements.txt from pyproject.toml; and JAX's CUDA plugin of the same version, which compiles for
# GPUs where there is none. It is a folder of its own, where only plan-memory and the tests look for it.
COMPILE := $(BIN)/uv pip compile --universal --generate-hashes --no-header --quiet
lock:
	$(COMPILE) --all-extras pyproject.toml -o requirements.txt
	echo 'jax[cuda12-local]' | $(COMPILE) --constraint requirements.txt --no-annotate - -o requirements-cuda.txt \
		$(addprefix --no-emit-package ,jax jaxlib ml-dtypes numpy opt-einsum scipy)

# uv needs a third of the time that pip needs, and leaves nothing in the home folder. It knows nothing of
# pip's settings, but is told of an index there.
INDEX = $(or $(PIP_INDEX_URL),$(shell $(BIN)/pip config get global.index-url 2>/dev/null))
UV = $(if $(INDEX),UV_DEFAULT_INDEX=$(INDEX)) $(BIN)/uv pip install --quiet --no-cache --link-mode=copy --python $(BIN)/python
$(VENV)/.done: requirements.txt requirements-cuda.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("jaxway needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "jaxway needs Python'\''s venv module; try: apt-get install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv --clear $(VENV)
	sed -n '/^uv==/,/[^\\]$$/p' requirements.txt > $(VENV)/uv.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --require-hashes --requirement $(VENV)/uv.txt
	$(UV) --require-hashes --compile-bytecode --requirement requirements.txt
	$(UV) --require-hashes --no-deps --target $(VENV)/cuda --requirement requirements-cuda.txt
	$(UV) --no-deps --no-build-isolation --editable .
	@touch $@
