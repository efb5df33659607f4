# Everything a fresh machine needs comes from here: `make demo` and `make test` do their own set-up.
# Plain make and /bin/sh, so that the make of macOS (3.81) does as well as that of a bare Debian.

BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-color
# pip in one line a package, as it goes on: a slow network is seen to be one. (mawk and sed would wait for more input.)
# What goes wrong pip says itself; its exit code is kept although it is the first of a pipe.
INSTALL = { PYTHONUNBUFFERED=1 $(PIP) $(1); echo $$? >.venv/.pip-code; } | while read -r word name rest; do \
	case "$$word $$name $$rest" in \
	"Installing build dependencies: started") echo "  what builds it" ;; \
	"Collecting "*) echo "  $$name" ;; \
	"Installing collected "*) echo "  installing them" ;; \
	esac; done; exit $$(cat .venv/.pip-code)
PYTHON ?=
# `make test REAL=no` installs no packages of the system; tests that need them are skipped.
REAL ?= install
ARGS ?=
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' exporter/__init__.py)
IMAGE ?= automation-exporter:$(VERSION)
# The tool that builds the image; by default the first of docker, podman and buildah that works.
IMAGE_TOOL ?=
LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock" $(ARGS) --output-file

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help install install-dev real-components demo test test-slow test-n8n lint dashboards completions pictures \
	bench image image-test lock sbom clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

install: .venv/.installed ## create .venv and install automation-exporter into it

install-dev: .venv/.installed-dev ## the same, with the tools the tests and the linters need

# Prints the first Python that is new enough, can make virtual environments and really runs: a pyenv shim can be
# there and fail, Debian's python3 can lack ensurepip.
FIND_PYTHON = for python in $(PYTHON) python3.13 python3.12 python3.11 python3; do \
	if "$$python" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then echo "$$python"; break; fi; done

# A .venv whose Python is gone (an upgrade of the system can do that) is made anew.
ifneq ($(shell test -x $(BIN)/python && echo there),there)
.PHONY: .venv/pyvenv.cfg
endif

.venv/pyvenv.cfg:
	@python=$$($(FIND_PYTHON)); \
	if [ -z "$$python" ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "no Python 3.11 with venv found: installing the package python3-venv"; \
		(apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y python3-venv) >/dev/null; \
		python=$$($(FIND_PYTHON)); \
	fi; \
	if [ -z "$$python" ]; then \
		echo "Python 3.11 or newer with the modules venv and ensurepip is needed and was not found." >&2; \
		echo "On Debian or Ubuntu: apt-get install python3-venv. Or name one: make PYTHON=/path/to/python3" >&2; \
		exit 1; \
	fi; \
	echo "making .venv with $$python"; \
	"$$python" -m venv --clear .venv

# The stamps make a second call a matter of milliseconds.
.venv/.installed: pyproject.toml .venv/pyvenv.cfg
	@echo "installing automation-exporter and its libraries into .venv: once, about a minute"
	@$(call INSTALL,--editable .)
	@touch $@

.venv/.installed-dev: pyproject.toml .venv/pyvenv.cfg
	@echo "installing automation-exporter and the tools of its tests into .venv: once, one or two minutes"
	@$(call INSTALL,--editable '.[dev]')
	@touch .venv/.installed $@

# exec: the recipe's process is the exporter itself. SIGTERM to make is passed on to it, Ctrl-C reaches both, and make
# waits for it. Stopped cleanly by its own process id, make ends with 0; a make that was itself signalled says so.
demo: install ## simulators of all platforms plus the exporter, on loopback (ARGS="--port N --seed N")
	@echo "starting the simulators and the exporter"
	@exec $(BIN)/automation-exporter demo $(ARGS)

real-components:
	@if [ "$(REAL)" != no ]; then ./tests/setup-real-components; fi

# Four at once, on two cores too: most of their time they wait for servers.
test: install-dev real-components ## the tests (ARGS="-k name"), against real servers (REAL=no: installs none)
	@$(BIN)/pytest -m "not slow and not bench and not n8n and not image" -n 4 --dist worksteal $(ARGS)

test-slow: install-dev real-components ## the slow tests
	@$(BIN)/pytest -m "slow and not bench and not n8n and not image" -n 2 $(ARGS)

test-n8n: install-dev ## the tests against a real n8n, which is installed once (N8N_DIR, 2.3 GB, some minutes)
	@$(BIN)/python -m tests.n8n.testbed install
	@$(BIN)/pytest -m "n8n and not bench" -n 2 --dist worksteal $(ARGS)

lint: install-dev ## ruff check, ruff format --check, mypy --strict, import-linter
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

dashboards: install-dev ## write dashboards/*.json anew from dashboards/generator
	@$(BIN)/python -m dashboards.generator

completions: install-dev ## write the scripts of `automation-exporter completion` anew from the commands
	@$(BIN)/python -m tests.cli.completions

pictures: install-dev real-components ## make the pictures of the docs anew
	@$(PIP) --editable '.[dev,pictures]'
	@$(BIN)/python -m tests.pictures

bench: install-dev ## measurements, printed
	@$(BIN)/pytest -m bench -s tests/benchmarks $(ARGS)

# docker: the format that knows HEALTHCHECK; buildah and podman would write the OCI's, which does not.
image: ## build the image with docker, podman or buildah (IMAGE=name:tag ARGS="--build-arg BASE=…")
	@tool=$$(IMAGE_TOOL="$(IMAGE_TOOL)" ./image/tool) || exit 1; \
	case $$tool in docker) format= ;; *) format="--format docker" ;; esac; \
	echo "building $(IMAGE) with $$tool"; \
	exec $$tool build $$format --tag $(IMAGE) --build-arg VERSION=$(VERSION) \
		--build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(ARGS) --file Dockerfile .

image-test: install-dev ## build the image and run it, without a registry (root; buildah and debootstrap are installed)
	@./tests/image/setup
	@$(BIN)/pytest -m image -s tests/image $(ARGS)

# Pinned, as the tools of the tests are: the same lock comes out until it is asked for newer versions.
lock: install-dev ## write image/*.lock anew: what the image consists of, with hashes (ARGS=--upgrade: newer versions)
	@$(PIP) uv==0.13.8
	@$(LOCK) image/requirements.lock --extra auth --extra postgres --extra re2 pyproject.toml
	@$(LOCK) image/build.lock image/build.in

sbom: install-dev ## write dist/automation-exporter.cdx.json: what the image consists of, as CycloneDX
	@$(PIP) cyclonedx-bom==7.5.0
	@mkdir -p dist
	@$(BIN)/cyclonedx-py requirements --pyproject pyproject.toml --output-reproducible --output-format JSON \
		--output-file dist/automation-exporter.cdx.json image/requirements.lock
	@echo "dist/automation-exporter.cdx.json"

clean: ## remove everything the other targets made, .venv included
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find exporter tests dashboards -name __pycache__ -type d -prune -exec rm -rf {} +
