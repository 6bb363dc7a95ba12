# The front door. Needs python3 (3.11 or newer) with venv, make and git; everything else is fetched and checked by hash.

PYTHON ?= python3
# What pytest or the benchmarks are given: make test ARGS="tests/test_packaging.py -x"
ARGS ?=

BIN := .venv/bin
# Most tests wait for servers and workers, not for a processor.
PARALLEL ?= -n 3 --dist worksteal
PIP := -m pip --disable-pip-version-check --quiet install
SOURCES := pyproject.toml signals/pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo test lint format check docs audit bench soak pictures requirements image-test clean .venv

help:  ## say what there is
	@grep -hE '^[a-z.-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z.-]+):.*## /make \1\t/' | expand -t 20

demo: .venv-demo/.made  ## broker, workers, load and sidecar on this machine
	.venv-demo/bin/celery-lookout demo

test: .venv lint  ## checks, then the whole suite; on Debian as root it installs the servers that are missing
	$(BIN)/python tests/system_packages.py
	$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

lint: .venv  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv  ## rewrite the code as the formatter wants it
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

check: lint  ## lint, and a second opinion on the types
	$(BIN)/pyright

docs: .venv  ## write what comes from the code: metrics, configuration, dashboards, golden texts
	$(BIN)/python -m tests.docs.write
	$(BIN)/python -m dashboards.generate
	$(BIN)/python -m tests.golden.write

# The page is built with npm, from packages of the npm registry, below .cache.
pictures: .venv  ## photograph the dashboards of a demo; needs npm, chromium, pngquant, prometheus and half an hour
	$(BIN)/python -m dashboards.pictures.take $(ARGS)

# What cannot be asked about is said to be not checked: the database of advisories is on the network.
audit: .venv-audit/.made  ## look up known vulnerabilities of what the image installs; needs the network
	.venv-audit/bin/python deploy/audit.py requirements/runtime.txt

bench: .venv  ## what the sidecar and others cost, on this machine: make bench ARGS=compare
	$(BIN)/python tests/system_packages.py
	$(BIN)/python -m benchmarks $(ARGS)

soak: .venv  ## twenty minutes of mixed load and random faults, all totals compared: make soak ARGS="--minutes 5"
	$(BIN)/python tests/system_packages.py
	$(BIN)/python -m tests.soak $(ARGS)

.venv: .venv/.made  ## everything a contributor needs

.venv/.made: requirements/test.txt $(SOURCES)
	$(PYTHON) -m venv .venv
	$(BIN)/python $(PIP) --require-hashes -r requirements/test.txt
	$(BIN)/python $(PIP) --no-deps --no-build-isolation -e . -e ./signals
	@touch $@

# Apart from .venv, so that a first look at the program needs only what the program needs.
.venv-demo/.made: requirements/demo.txt $(SOURCES)
	$(PYTHON) -m venv .venv-demo
	.venv-demo/bin/python $(PIP) --require-hashes -r requirements/demo.txt
	.venv-demo/bin/python $(PIP) --no-deps --no-build-isolation -e . -e ./signals
	@touch $@

.venv-audit/.made: requirements/audit.txt
	$(PYTHON) -m venv .venv-audit
	.venv-audit/bin/python $(PIP) --require-hashes -r requirements/audit.txt
	@touch $@

# Hashes without addresses: the files hold for any mirror. Needs uv.
COMPILE := UV_PYTHON_DOWNLOADS=never uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --upgrade \
	--no-emit-index-url --no-emit-find-links --no-annotate --custom-compile-command "make requirements"

image-test:  ## build the image and run it as a strict cluster would; needs root, buildah, podman and runc
	deploy/image_test.sh

requirements:  ## resolve the pinned requirements anew
	$(COMPILE) pyproject.toml --extra fast --extra otlp -o requirements/runtime.txt
	$(COMPILE) --group build -o requirements/build.txt
	$(COMPILE) pyproject.toml --extra demo --extra fast --group build -o requirements/demo.txt
	$(COMPILE) pyproject.toml --extra demo --extra fast --extra otlp --group lint --group test -o requirements/test.txt
	$(COMPILE) requirements/celery-5.3.in -o requirements/celery-5.3.txt
	$(COMPILE) requirements/celery-5.5.in -o requirements/celery-5.5.txt
	$(COMPILE) requirements/bugsink.in -o requirements/bugsink.txt
	$(COMPILE) requirements/audit.in -o requirements/audit.txt
	$(COMPILE) requirements/peers.in -o requirements/peers.txt

clean:  ## remove what make and the tools made
	rm -rf .venv .venv-demo .venv-audit .cache .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist signals/dist uv.lock
	find exporter signals tests -name __pycache__ -type d -prune -exec rm -rf {} +
