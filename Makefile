# The two commands of the README are `make demo` and `make test`; both set up what they need.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find connector_service -name '*.py')

.PHONY: demo test test-upstream check lock protos image clean install

$(VENV)/.requirements: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

# Installed, not editable: the tests then see what users get.
$(VENV)/.installed: $(VENV)/.requirements pyproject.toml README.md LICENSE $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/python examples/demo.py

test: install
	$(BIN)/python -m pytest

# Beside the real SDKs, each in a locked environment of its own.
UPSTREAM := .venv-flytekit .venv-flyte
.PRECIOUS: .venv-%/.requirements

.venv-%/.requirements: tests/upstream/%.lock
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

test-upstream: install $(UPSTREAM:%=%/.requirements)
	CONNECTOR_SERVICE_FLYTEKIT_PYTHON=$(CURDIR)/.venv-flytekit/bin/python \
	CONNECTOR_SERVICE_FLYTE_PYTHON=$(CURDIR)/.venv-flyte/bin/python \
	$(BIN)/python -m pytest tests/upstream

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_layers.py

# Needs uv; the lock is for every platform and Python that we support.
lock:
	uv pip compile pyproject.toml --extra duckdb --extra fsspec --extra redis --extra dev --universal --python-version 3.11 --generate-hashes --no-header --upgrade --output-file requirements.lock

protos: install
	$(BIN)/python protos/pin.py

image:
	docker build --build-arg VERSION=$$(sed -n "s/__version__ = \"\(.*\)\"/\1/p" connector_service/version.py) --build-arg REVISION=$$(git rev-parse HEAD) -t connector-service .

clean:
	rm -rf $(VENV) $(UPSTREAM) build dist .mypy_cache .pytest_cache .ruff_cache
