# Two commands do all the set-up:  make demo   and   make test
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)
BIN := $(VENV)/bin
MODEL ?= torchvision_resnet50
THREADS ?= 1
DEMO := build/demo
WORKERS ?= auto
TORCH_VENV ?= .venv-torch
TORCH_BIN := $(TORCH_VENV)/bin
TORCH ?= torch==2.13.0
TORCHVISION ?= torchvision==0.28.0
TENSORFLOW_VENV ?= .venv-tensorflow
TENSORFLOW_BIN := $(TENSORFLOW_VENV)/bin
GPU_TESTS ?= tests/gpu

.PHONY: help demo test test-core test-browser test-tensorflow test-torch check bench bench-gpu conformance gpu clean

help:
	@echo "make demo         install, build $(MODEL), run it, benchmark it against the installed peers"
	@echo "make test         install what the tests need and run them all: the next three"
	@echo "make test-core    all tests but those of the exports, in one environment without PyTorch and TensorFlow"
	@echo "make test-torch   the tests of the export from PyTorch and of torch.compile, in an environment of their own"
	@echo "make test-tensorflow  the tests of the export from TensorFlow, in an environment of their own"
	@echo "make test-browser  the tests of reports in a headless Chromium, alone"
	@echo "make check        ruff, mypy --strict, import-linter"
	@echo "make conformance  the ONNX backend suite (Tier A) through dovetail.backend"
	@echo "make gpu          the tests that need an NVIDIA GPU, with PYTHON and what it has installed"
	@echo "make bench-gpu    the GPU suite against torch, likewise; writes build/bench-gpu/"
	@echo "make bench        the ten-model CPU suite; writes build/bench/"
	@echo "make clean        remove build/, caches and $(VENV)"

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; set PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

$(VENV)/.test: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench,dev]'
	@touch $@

demo: $(VENV)/.demo
	@mkdir -p $(DEMO)
	$(BIN)/python -m models.zoo $(MODEL) -o $(DEMO)/model.onnx --inputs $(DEMO)/x.npz
	$(BIN)/dovetail build $(DEMO)/model.onnx -o $(DEMO)/model.plan
	$(BIN)/dovetail run $(DEMO)/model.plan --inputs $(DEMO)/x.npz --outputs $(DEMO)/y.npz
	$(BIN)/dovetail compare $(DEMO)/model.onnx $(DEMO)/model.plan --inputs $(DEMO)/x.npz
	$(BIN)/dovetail bench $(DEMO)/model.plan --model $(DEMO)/model.onnx --inputs $(DEMO)/x.npz \
		--vs onnxruntime,openvino --threads $(THREADS) --plot $(DEMO)/latency.svg

# The largest part comes last, so that its summary is the last word.
test: test-torch test-tensorflow test-core

test-core: $(VENV)/.test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup

# torch first and by its version, then torchvision as it is, whatever torch it was compiled for: the tests declare what it misses.
$(TORCH_VENV)/.test: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; set PYTHON=/path/to/python"; exit 1; }
	test -x $(TORCH_BIN)/python || $(PYTHON) -m venv $(TORCH_VENV)
	$(TORCH_BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)'
	$(TORCH_BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps '$(TORCHVISION)'
	$(TORCH_BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[torch,edit]' '$(TORCH)' 'pillow>=10' 'timm>=1.0,<2' \
		'transformers>=4.50,<6' 'pytest>=8,<10' 'pytest-xdist>=3.6,<4' 'hypothesis>=6.100,<7'
	@touch $@

test-torch: $(TORCH_VENV)/.test
	PYTHONPATH=src:. $(TORCH_BIN)/python -m pytest -n 2 --dist loadfile -W default --disable-warnings tests/torch

# TensorFlow and tf2onnx pin what others do not: an environment of its own, and nothing of the tests outside of this folder.
$(TENSORFLOW_VENV)/.test: pyproject.toml
	@test -n "$(PYTHON)" || { echo "make: no Python 3.11 or newer found; set PYTHON=/path/to/python"; exit 1; }
	test -x $(TENSORFLOW_BIN)/python || $(PYTHON) -m venv $(TENSORFLOW_VENV)
	$(TENSORFLOW_BIN)/python -m pip install --quiet --disable-pip-version-check -e . 'tensorflow-cpu>=2.21,<2.22' 'tf2onnx>=1.17,<1.18' 'pytest>=8,<10' 'pytest-xdist>=3.6,<4'
	@touch $@

test-tensorflow: $(TENSORFLOW_VENV)/.test
	PYTHONPATH=src:. $(TENSORFLOW_BIN)/python -m pytest -n 2 --dist loadfile --confcutdir=tests/tensorflow -W default --disable-warnings tests/tensorflow

# A Chromium is found, or installed by the tests themselves (tests/browser/conftest.py).
test-browser: $(VENV)/.test
	$(BIN)/python -m pytest -n0 -rs tests/browser

check: $(VENV)/.test
	$(BIN)/ruff check src tests bench models examples
	$(BIN)/mypy
	PYTHONPATH=src $(BIN)/lint-imports

conformance: $(VENV)/.test
	$(BIN)/python -m tests.conformance.runner --failures

bench: $(VENV)/.demo
	$(BIN)/python -m bench.cpu_suite --strict --output build/bench

# These two run with PYTHON as it is: a GPU machine has its own torch and CUDA packages. Warnings of packages are no failures there.
gpu:
	PYTHONPATH=src:. $(PYTHON) -m pytest --confcutdir=tests/gpu -W default -rs $(GPU_TESTS)

bench-gpu:
	PYTHONPATH=src:. $(PYTHON) -m bench.gpu --out build/bench-gpu

clean:
	rm -rf build $(VENV) $(TORCH_VENV) $(TENSORFLOW_VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
