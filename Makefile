# Needs Python >= 3.11, git and make. `make` alone lists the targets.
SHELL := /bin/sh
.DEFAULT_GOAL := help

# the first Python on this machine that is new enough
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
UV := $(BIN)/uv pip install --quiet --python $(BIN)/python
COMPILE := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
	--custom-compile-command "make lock"

# uv takes seconds where pip takes a minute or more, and checks the same hashes. It reads none of pip's settings, so
# whoever named an index or a proxy there is served by pip; and so is who can't have uv, or reaches no index with it.
OWN_INDEX := $(PIP) config list | grep -Eq '\.(index-url|no-index|proxy)='
define install
	@echo "installing $<"
	@! $(OWN_INDEX) && $(PIP) install -qq --only-binary :all: --require-hashes -r requirements-uv.lock \
	&& $(UV) --require-hashes -r $< && $(UV) --no-deps --no-build-isolation -e . \
	|| { echo "installing $< by pip: it takes longer"; \
	$(PIP) install -qq --require-hashes -r $< && $(PIP) install -qq --no-deps --no-build-isolation -e .; }
	@touch $@
endef

# a suite that starts hundreds of commands must not compile the package for each of them
unexport PYTHONDONTWRITEBYTECODE
# a test waits for its server half of the time
export PYTEST_XDIST_AUTO_NUM_WORKERS ?= $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

# what a stamp says: this lock is installed, and the package as it is declared now
DEMO := .venv/demo.stamp
DEV := .venv/dev.stamp

.PHONY: help demo test nightly durations quick lint aio schema shipped policies doctor rules docs readme options release release-check pictures tutorial bench lock clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## /  make \1\t/p' Makefile

demo: $(DEMO) ## protect 20,000 leads in an embedded PostgreSQL and tell the story (ARGS="--keep")
	@$(BIN)/leadprotect demo $(ARGS)

# the tests run commands by name, squawk for one
test: export PATH := $(CURDIR)/$(BIN):$(PATH)
test: $(DEV) ## run the whole suite; ends with the number of tests passed
	@.ci/packages chromium pgbouncer libtap-parser-sourcehandler-pgtap-perl prometheus prometheus-postgres-exporter tmux
	@$(BIN)/python -m pytest -n auto --dist loadgroup

nightly: ## run the whole suite, and all that by day waits for it: more servers, every pair of cases, more random worlds
	@NIGHTLY=1 $(MAKE) --no-print-directory test

durations: export PATH := $(CURDIR)/$(BIN):$(PATH)
durations: $(DEV) ## run the whole suite, and write tests/support/durations.json anew: which tests are slow
	@$(BIN)/python -m pytest -q -n auto --dist loadgroup --record

quick: export PATH := $(CURDIR)/$(BIN):$(PATH)
quick: $(DEV) ## PostgreSQL 18 alone, each test with its first case, none that is slow; at most 90 s on 2 cores
	@begin=$$(date +%s); $(BIN)/python -m pytest -q -n $$(getconf _NPROCESSORS_ONLN) --dist loadgroup --quick || exit; \
	echo "quick: $$(($$(date +%s) - begin)) s"

lint: $(DEV) ## ruff, mypy, the floors of the house, and leadprotect/aio.py
	@$(BIN)/ruff check --quiet
	@$(BIN)/ruff format --check --quiet
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/python -m tests.support.twin --check
	@said=$$($(BIN)/lint-imports --no-cache 2>&1) || { echo "$$said"; exit 1; }
	@echo "lint: clean"

aio: $(DEV) ## write leadprotect/aio.py anew, from the synchronous functions
	@$(BIN)/python -m tests.support.twin

shipped: $(DEV) ## write leadprotect/doctor/shipped.json anew, from databases at head
	@$(BIN)/python -m tests.support.shipped

policies: export PATH := $(CURDIR)/$(BIN):$(PATH)
policies: $(DEV) ## write tests/support/policies.json anew, from a database at head
	@$(BIN)/python -m tests.support.policies

doctor: $(DEV) ## write docs/reference/doctor.md anew, from the checks
	@$(BIN)/python -m tests.support.doctor_page

rules: $(DEV) ## write leadprotect/gates/rules and the dashboard anew, from their templates
	@$(BIN)/python -m tests.support.rules

schema: $(DEV) pictures ## write docs/reference/schema.sql anew, and the pictures, from a database at head
	@$(BIN)/python -m tests.support.schema_page

docs: $(DEV) ## build the documentation into docs/_build/html
	@$(BIN)/sphinx-build -W --keep-going --quiet -b html docs docs/_build/html

readme: $(DEV) ## write docs/package.md anew: the README as a package index shows it
	@$(BIN)/python -m tests.support.readme

release-check: export PATH := $(CURDIR)/$(BIN):$(PATH)
release-check: $(DEV) ## build, compare and install what would be published, and run the demo and the how-tos from it
	@$(BIN)/python -m tests.support.release

release: $(DEV) ## make the checkout a version: number, changelog, frozen revisions (VERSION=0.1.0)
	@test -n "$(VERSION)" || { echo "release: which version? make release VERSION=0.1.0" >&2; exit 1; }
	@$(BIN)/python -m tests.support.release $(VERSION)

options: $(DEV) ## write docs/reference/options.md anew, from the commands
	@$(BIN)/python -m tests.support.cli_page

pictures: $(DEV) ## draw docs/images/*.svg and write docs/reference/objects.md anew, from a database at head
	@$(BIN)/python -m tests.support.pictures

tutorial: export PATH := $(CURDIR)/$(BIN):$(PATH)
tutorial: $(DEV) ## play the tutorial in a kept demo, and write its answers into the page and docs/images/terminal.svg
	@$(BIN)/python -m tests.support.tutorial

bench: $(DEV) ## measure access checks and backfill with a million leads, and compare (ARGS="--leads 100000", or --publish)
	@$(BIN)/leadprotect bench all $(ARGS)

lock: $(DEV) ## write the lock files anew from the ranges in pyproject.toml
	@$(COMPILE) pyproject.toml --extra demo --extra django --extra fastapi --extra flask --extra gates --extra report --extra testing --group dev --upgrade -o requirements.lock
	@$(COMPILE) pyproject.toml --extra demo --group build --constraint requirements.lock -o requirements-demo.lock
	@$(COMPILE) --group install --constraint requirements.lock -o requirements-uv.lock

clean: ## remove .venv and everything that was built
	@rm -rf .venv dist docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv:
	@test -n "$(PYTHON)" || { echo "leadprotect needs Python 3.11 or later (apt-get install python3 python3-venv)" >&2; exit 1; }
	@echo "creating .venv"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; exit 1; }

# the demo needs no test tools: it installs in a fraction of the time
$(DEMO): requirements-demo.lock requirements-uv.lock pyproject.toml | .venv
	$(install)

$(DEV): requirements.lock requirements-uv.lock pyproject.toml | .venv
	$(install)
