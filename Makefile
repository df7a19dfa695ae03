# `make help` lists the targets. Every target sets up what it needs, in .venv, by itself.

PYTHON ?= python3
ARGS ?=
ROWS ?= all
COVERAGE ?=
BIN := .venv/bin
# Where a step of the set-up fails half-way, the next call starts it again.
READY := .venv/ready

.PHONY: help run test slow latest check format docs bench lock clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo '  make run ARGS="model=dense export=checkpoint" passes arguments on;'
	@echo '  make test ARGS="-k gru" does, too. PYTHON=python3.13 chooses the interpreter.'

run: $(READY)  ## the main job: train, export, restore in a fresh process, compare
	$(BIN)/python -m pipeline $(or $(ARGS),model=gru export=saved_model)

test: $(READY)  ## the tests; COVERAGE=1 measures what they cover, which takes half as long again
ifeq ($(COVERAGE),)
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist worksteal $(ARGS)
else
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -m "not slow" -n 2 --dist worksteal $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report $(if $(ARGS),--fail-under=0)
endif

slow: $(READY)  ## the tests that take minutes
	$(BIN)/python -m pytest -m slow $(ARGS)

latest:  ## the tests against the newest releases of all packages, pre-releases included
	$(PYTHON) -m venv .venv-latest
	.venv-latest/bin/python -m pip install --quiet --pre --editable '.[digits,onnx,tflite,sweep,dev]'
	.venv-latest/bin/python -m pip install --quiet --pre --upgrade --no-deps hydra-core omegaconf keras optuna numpy
	.venv-latest/bin/python -m pytest -m "not slow" -n 2 --dist worksteal $(ARGS)

check: $(READY)  ## format, lint and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## put the code into its format
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .

docs: $(READY)  ## write docs/configuration.md anew, from the configuration
	$(BIN)/python docs/reference.py

bench: $(READY)  ## the speed of training, evaluation and prediction; ROWS=gru for one row
	$(BIN)/python -m tests.benchmarks --rows $(ROWS) $(ARGS)

lock:  ## resolve the dependencies anew (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header \
		--upgrade --extra digits --extra onnx --extra tflite --extra sweep --extra dev --output-file requirements.lock pyproject.toml
	echo 'setuptools>=77' | uv pip compile --quiet --universal --python-version 3.11 \
		--generate-hashes --no-header --no-annotate --upgrade \
		--output-file requirements-build.lock -

clean:  ## remove the virtual environment and caches; outputs/ stays
	rm -rf .venv .venv-latest .mypy_cache .pytest_cache .ruff_cache build *.egg-info .coverage .coverage.*

$(READY): requirements.lock requirements-build.lock pyproject.toml
	$(PYTHON) -c 'import sys; v = sys.version_info; (3, 11) <= v < (3, 14) or sys.exit("Roundtrip needs Python 3.11 to 3.13; this is %d.%d. Try make PYTHON=python3.13" % v[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-build.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable .
	touch $@
