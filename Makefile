# The two commands of the README are `make demo` and `make test`; both set up what they need.

PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
SOURCES := hatch_build.py $(shell find connector_service -name '*.py*')

.PHONY: demo test test-upstream bench bench-quick check lock lock-upstream protos image clean install

$(VENV)/.requirements: requirements.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	touch $@

# Installed, not editable: the tests then see what users get.
$(VENV)/.installed: $(VENV)/.requirements pyproject.toml README.md LICENSE $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --force-reinstall .
	touch $@

install: $(VENV)/.installed
	@$(BIN)/python -P -c 'import connector_service.codec.quick' 2>/dev/null || echo "Without a C compiler and Python's headers creates are slower: install them, touch hatch_build.py, and run make again."

demo: install
	$(BIN)/python examples/demo.py

test: install
	$(BIN)/pytest

# Beside the real SDKs, their published plugins and what these talk to, each in a locked
# environment of its own; a test finds each by CONNECTOR_SERVICE_<NAME>_PYTHON.
UPSTREAM := flytekit flytekit-plugins flytekit-slurm flytekit-airflow flyte flyte-plugins backends backend-bigquery
PYTHON_OF = CONNECTOR_SERVICE_$(shell echo $(1) | tr a-z- A-Z_)_PYTHON=$(CURDIR)/.venv-$(1)/bin/python
.PRECIOUS: .venv-%/.requirements

# uv installs these gigabytes in a fifth of the time; it is locked too. Its cache is this
# checkout's own and goes once all are there: pyspark, built from source, leaves 2 GB in it.
export UV_CACHE_DIR = $(CURDIR)/.venv-uv/cache
.venv-uv/.requirements: tests/upstream/uv.lock
	$(PYTHON) -m venv .venv-uv
	.venv-uv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

.venv-%/.requirements: tests/upstream/%.lock .venv-uv/.requirements
	.venv-uv/bin/uv venv --quiet --clear --python $(PYTHON) .venv-$*
	.venv-uv/bin/uv pip install --quiet --compile-bytecode --require-hashes --python .venv-$*/bin/python -r $<
	touch $@

test-upstream: install $(UPSTREAM:%=.venv-%/.requirements)
	rm -rf .venv-uv/cache
	env $(foreach name,$(UPSTREAM),$(call PYTHON_OF,$(name))) $(BIN)/pytest tests/upstream

# Beside upstream's services, each in an environment of its own; half an hour on an idle machine.
bench: install .venv-uv/.requirements
	$(BIN)/python -m bench run

# Ours and the floor, in three minutes; fails only where a figure is far from what is promised.
bench-quick: install
	$(BIN)/python -m bench run --quick

check: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_layers.py

# Needs uv; the lock is for every platform and Python that we support.
lock:
	uv pip compile pyproject.toml --extra duckdb --extra fsspec --extra redis --extra rich --extra dev --universal --python-version 3.11 --generate-hashes --no-header --constraint constraints.txt --upgrade --output-file requirements.lock

lock-upstream: .venv-uv/.requirements
	set -e; for name in uv $(UPSTREAM); do .venv-uv/bin/uv pip compile tests/upstream/$$name.in --quiet --universal --python-version 3.11 --generate-hashes --no-header --upgrade --output-file tests/upstream/$$name.lock; done

protos: install
	$(BIN)/python protos/pin.py

image:
	docker build --build-arg VERSION=$$(sed -n "s/__version__ = \"\(.*\)\"/\1/p" connector_service/version.py) --build-arg REVISION=$$(git rev-parse HEAD) -t connector-service .

clean:
	rm -rf $(VENV) .venv-bench-* .venv-uv $(UPSTREAM:%=.venv-%) build dist .mypy_cache .pytest_cache .ruff_cache
