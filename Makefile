# Each target makes .venv and installs what it needs first; a second run finds it there and starts at once.
# Needs Python 3.11 or newer with pip, and make: `make test PYTHON=/path/to/python3` picks another Python.

.DEFAULT_GOAL := help
.PHONY: help tour test test-all test-oldest lint bench docs test-docs dist clean
.DELETE_ON_ERROR:
.NOTPARALLEL:
MAKEFLAGS += --no-builtin-rules

# 3.11 first: it is what the project is tested with. (A name can be there and yet not start, as a pyenv shim does.)
suits := -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
PYTHON ?= $(shell for name in python3.11 python3.12 python3.13 python3 python; do \
    $$name $(suits) && echo $$name && break; done)
PYTEST_FLAGS ?=
BENCH_FLAGS ?=
BENCHMARKS := build darts_step enas_step front_gates gpu_training halving_gates input_pipeline kernels quantizers \
    ray_scaling search_gates tabular_trials tinynas_score trial_cost

venv_python := .venv/bin/python
run := @$(venv_python)

# `.unfinished` marks an installation that was cut off: pip may have left half a package behind, so all is made anew;
# so it is when the Python that .venv was made with is gone.
ifeq ($(shell [ ! -e .venv/.unfinished ] && $(venv_python) -c 'import pip' 2>/dev/null && echo sound),)
$(shell rm -f .venv/.has-*)
endif

help:  ## this text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

tour: .venv/.has-deploy  ## search, build, train, quantize: the whole product in ten minutes on embedded images
	$(run) -m recipes.tour

test: .venv/.has-test  ## the fast tests, under five minutes on two cores
	$(run) -m pytest -n 2 --dist loadfile -m "not slow" -q $(PYTEST_FLAGS)

test-all: .venv/.has-dev  ## every test; installs PyTorch too, which may be several GB
	$(run) -m pytest -n 2 --dist loadfile -q $(PYTEST_FLAGS)

# Old versions of what setup.py names meet new ones of what those need, and warn of it.
test-oldest:  ## the fast tests with the oldest versions that setup.py allows, in .venv-oldest
	@$(PYTHON) -m venv --clear .venv-oldest
	@.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv-oldest/bin/python -m uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct \
	    --editable ".[test]"
	@.venv-oldest/bin/python -m pytest -n 2 --dist loadfile -m "not slow" -q -W default::DeprecationWarning \
	    -W default::FutureWarning $(PYTEST_FLAGS)

lint: .venv/.has-test .venv/.has-lint  ## ruff, pyright and the import rules
	$(run) -m ruff check .
	$(run) -m ruff format --check .
	$(run) -m pyright
	$(run) -m pytest -q -m "not slow" tests/test_layering.py

bench: .venv/.has-test  ## every measurement of benchmarks/, one after the other; BENCH_FLAGS=--smoke: in minutes
	@for name in $(BENCHMARKS); do \
	    echo "== benchmarks.$$name"; $(venv_python) -m "benchmarks.$$name" $(BENCH_FLAGS) || exit 1; done

docs: .venv/.has-docs  ## the documentation, pages that open from a folder, in build/site
	$(run) -m mkdocs build --quiet --strict
	@echo "build/site/index.html"

test-docs: .venv/.has-test .venv/.has-docs  ## the tests of documents, site, notebooks, and of pages in a Chromium
	$(run) -m pytest -q tests/test_docs.py tests/test_site.py tests/test_notebooks.py tests/cards/test_web_page.py \
	    $(PYTEST_FLAGS)

dist: .venv/.has-test  ## wheel and source archive in dist/; the wheel is made from the archive
	@rm -rf build dist
	$(run) -c "from setuptools import build_meta; build_meta.build_sdist('dist')" > /dev/null
	$(run) -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist dist/*.tar.gz
	@ls dist

clean:  ## removes .venv, caches and built packages; keeps runs/
	@rm -rf .venv .venv-oldest build dist ./*.egg-info .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# One stamp for each extra of setup.py.
.venv/.has-%: setup.py
	@if [ -e .venv/.unfinished ] || ! $(venv_python) -c 'import pip' 2>/dev/null; then \
	    "$(PYTHON)" $(suits) || { echo "Python 3.11 or newer with its venv module is needed, and '$(PYTHON)' is none." \
	        "Install it (Debian: apt-get install python3.11 python3.11-venv) or name it: make PYTHON=/path/to/python3" >&2; \
	        exit 1; }; \
	    echo "Making .venv with $$($(PYTHON) --version)"; \
	    $(PYTHON) -m venv --clear .venv || exit 1; \
	fi
	@touch .venv/.unfinished
	@echo "Installing the project and its extra '$*' into .venv; the first time takes minutes (log: .venv/pip.log)"
	@start=$$(date +%s); \
	{ $(venv_python) -m pip install --disable-pip-version-check --progress-bar off --log .venv/pip.log \
	    --editable ".[$*]" && rm .venv/.unfinished; } 2>&1 | \
	    awk '/^ *ERROR/ { failed = 1 } \
	        failed || /(Downloading|Using cached).*[0-9] [MG]B\)/ || /^Installing/ { print "  " substr($$0, 1, 110); fflush() }'; \
	[ ! -e .venv/.unfinished ] || { echo "The installation failed; the lines above and .venv/pip.log say why" >&2; exit 1; }; \
	echo "Installed in $$(($$(date +%s) - start)) s"
	@touch $@
