# Every target prepares what it needs in .venv and is quick when nothing changed.
# PYTHON chooses the interpreter, ARGS reaches the command: make demo ARGS="--steps 20".

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
FORMATS := torch_trn_emu/formats/formats.def
NATIVE := $(shell find csrc -type f 2>/dev/null) $(FORMATS) CMakeLists.txt setup.py pyproject.toml
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h')

.PHONY: demo test build lint format bench benchmark accuracy docs conformance distributed-conformance upstream fuzz golden asan clean wheel sdist test-torch aarch64 aarch64-test

# A size at which the Tensor engine matters, compiled; ARGS="--steps 20" comes after and wins. The sample
# is short: a trace holds the last 25,000 launches, and training is to be among them.
DEMO := --compile --layers 4 --width 384 --heads 6 --context 128 --batch 16 --steps 150 --sample 60
demo: build $(STAMPS)/group-demo
	@echo "== Training a GPT of 7 million parameters on the emulated chip: about 2 minutes on 2 cores"
	$(BIN)/python -m torch_trn_emu run --profile out/demo examples/char_gpt.py $(DEMO) $(ARGS)

# JOBS=4 runs the tests in four processes, JOBS=auto in one for each core. Named tests install the
# small group unless they are among WIDE, which tests/test_house.py keeps complete.
JOBS ?= 1
WIDE := tests/compiler/test_models.py tests/integrations tests/profiler/test_exports.py \
  tests/test_examples.py tests/test_host.py tests/testing/test_vectors.py tests/triton
NAMED := $(foreach name,$(filter tests/%,$(ARGS)),$(firstword $(subst ::, ,$(name))))
NEEDS_ALL := $(or $(filter $(addsuffix %,$(WIDE)),$(NAMED)),$(filter $(addsuffix %,$(NAMED)),$(WIDE)))
TEST_GROUP := $(if $(NAMED),$(if $(NEEDS_ALL),test,test-core),test)
STYLE := tests/test_house.py tests/test_layers.py
test: build $(STAMPS)/group-$(TEST_GROUP)
	$(BIN)/python -m pytest $(if $(filter 1,$(JOBS)),,-n $(JOBS) --dist worksteal) \
	  $(if $(NAMED),,$(addprefix --ignore=,$(STYLE))) $(ARGS)

build: $(STAMPS)/built

# mypy reads the types of torch and of what the tests import.
lint: $(STAMPS)/group-lint $(STAMPS)/group-build $(STAMPS)/group-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)
	$(BIN)/python -m pytest -q -p no:torch_trn_emu $(STYLE)

format: $(STAMPS)/group-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

# The rows of docs/benchmarks.md by instruction set, in 5 to 10 minutes; `bench` has all other rows.
benchmark: build $(STAMPS)/group-bench
	$(BIN)/python benchmarks/instruction_sets.py $(ARGS)
	$(BIN)/python docs/generate.py

bench: build $(STAMPS)/group-bench
	$(BIN)/python benchmarks/run.py $(ARGS)
	$(BIN)/python docs/generate.py

# Fills the generated sections, runs the tutorials for their figures, builds the site into build/docs.
docs: build $(STAMPS)/group-test $(STAMPS)/group-docs
	$(BIN)/python docs/generate.py
	TRN_EMU_MATMUL=mxfp8 $(BIN)/python docs/tutorials/survive_mxfp8.py --figures docs/tutorials/figures
	TRN_EMU_MATMUL=mxfp8 $(BIN)/python docs/tutorials/step_time.py --figures docs/tutorials/figures
	TRN_EMU_MATMUL=mxfp8 $(BIN)/python docs/tutorials/several_ranks.py --figures docs/tutorials/figures
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	$(BIN)/python docs/links.py build/docs

conformance: build $(STAMPS)/group-test
	$(BIN)/python -m pytest -m conformance $(ARGS)
	$(BIN)/python docs/generate.py

# Every price of PyTorch's operator samples against tests/golden; ARGS=record writes them anew.
golden: build $(STAMPS)/group-test
	cd tests/golden && TRN_EMU_MATMUL=fp32 PYTHONWARNINGS=ignore \
	  ../../$(BIN)/python golden.py $(or $(ARGS),compare)

# Random changes of PyTorch's operator samples, on the host and on trn, for an hour unless told
# otherwise: make fuzz ARGS="--seed 7 --seconds 36000 --report findings.jsonl".
fuzz: build $(STAMPS)/group-test
	$(BIN)/python tests/fuzz/fuzz.py $(ARGS)

# Predicts every public measurement again, in a few minutes, and writes docs/accuracy.md; put the table
# of ranges that it prints into torch_trn_emu/chip/calibration.py.
accuracy: build $(STAMPS)/group-test
	$(BIN)/python benchmarks/measurements.py $(ARGS)
	$(BIN)/python docs/generate.py

distributed-conformance: build $(STAMPS)/group-test
	$(BIN)/python -m pytest -m distributed_conformance tests/distributed
	$(BIN)/python tests/distributed/robustness.py --runs 200
	$(BIN)/python tests/distributed/upstream.py $(ARGS)
	$(if $(TORCH_SOURCE),$(BIN)/python tests/distributed/suites.py $(TORCH_SOURCE))

# PyTorch's device-generic test files, from a source tree of PyTorch as released; results are kept in
# docs/torch_suite.json.
upstream: build $(STAMPS)/group-test
	$(BIN)/python tests/conformance/torch_suite.py $(TORCH_SOURCE) $(ARGS)
	$(BIN)/python docs/generate.py

# AddressSanitizer and UndefinedBehaviorSanitizer. The package under build/asan is that of the sources
# with a library of its own. libstdc++ comes first too, so that exceptions of torch are known; leaks
# are not looked for, since Python and torch have theirs.
ASAN := $(CURDIR)/build/asan
SANITIZE := -fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -O1
asan: build $(STAMPS)/group-test
	mkdir -p $(ASAN)/package/torch_trn_emu
	ln -sf $(filter-out %.so,$(wildcard $(CURDIR)/torch_trn_emu/*)) $(ASAN)/package/torch_trn_emu/
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(BIN)/cmake -S . -B $(ASAN) -G Ninja -DTRN_SANITIZE=ON \
	  -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	  -DCMAKE_PREFIX_PATH="$$(TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(BIN)/python -c \
	    'import torch; print(torch.utils.cmake_prefix_path)')" \
	  -DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$(ASAN)/package/torch_trn_emu
	$(BIN)/cmake --build $(ASAN)
	PYTHONPATH=$(ASAN)/package PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 \
	  LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" \
	  TRN_NUMERICS_SANITIZE="$(SANITIZE)" TRN_NUMERICS_BUILD=$(ASAN)/numerics \
	  $(BIN)/pytest -p no:cacheprovider $(or $(ARGS),$(ASAN_TESTS))
ASAN_TESTS := tests/numerics tests/test_tiny.py $(addprefix tests/trn/test_,$(addsuffix .py,\
  memory nn random streams tensors threads))

# Keeps .venv, which takes minutes to download: remove it by hand.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis $(STAMPS)/built
	find torch_trn_emu -name '*.so' -delete -o -name built_for.txt -delete

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is missing or older than 3.10; name another: make PYTHON=python3.11"; exit 1; }
	@echo "== Creating $(VENV) with $(PYTHON)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip==26.3
	mkdir -p $(STAMPS)
	touch $@

# The dependency groups of pyproject.toml. What comes, measured with the CPU wheels of torch 2.13.0;
# those of PyPI bring CUDA, about 2.5 GB more: docs/installation.md says how to choose.
SIZE_build := torch 2.13.0, CMake: 1 GB on disk; 0.3 GB to download, with CUDA 2.5 GB more
SIZE_demo := numpy, tqdm: 0.1 GB on disk
SIZE_test-core := pytest, numpy, hypothesis: 0.1 GB on disk
SIZE_test := the libraries of all tests and examples: 1.7 GB on disk, 0.5 GB to download
SIZE_docs := Sphinx, matplotlib: 0.1 GB on disk
SIZE_lint := ruff, mypy, clang-format: 0.1 GB on disk
$(STAMPS)/group-%: pyproject.toml | $(STAMPS)/venv
	@echo "== Installing the group $* ($(or $(SIZE_$*),small))"
	$(BIN)/python -m pip install --group $*
	@touch $@

# Autoload is off: the package about to be built must not be imported by the torch that builds it.
# The first command shows ninja's progress; the second finds everything built.
$(STAMPS)/built: $(NATIVE) | $(STAMPS)/group-build
	@echo "== Compiling the C++ library: about 5 minutes of processor time the first time"
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(BIN)/python setup.py --quiet build_ext --inplace
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 \
	  $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	@touch $@

# dist/*.whl for other machines, and its checks; the sdist builds and tests without git.
wheel: $(STAMPS)/group-wheel | $(STAMPS)/group-build
	rm -rf build/wheel
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 \
	  $(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir build/wheel .
	$(BIN)/python build_support/repair_wheel.py build/wheel dist

sdist: $(STAMPS)/group-wheel | $(STAMPS)/group-build
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 $(BIN)/python -m build --sdist --no-isolation --outdir dist

# The suite against another torch, in an environment of its own: make test-torch TORCH=2.14.1
TORCH ?= 2.14.1
test-torch: $(STAMPS)/venv
	$(PYTHON) build_support/other_torch.py $(TORCH) $(ARGS)

# numerics and timing include no torch header: a cross compiler shows that they build for ARM.
# Debian and Ubuntu: apt-get install g++-aarch64-linux-gnu
AARCH64_CXX ?= aarch64-linux-gnu-g++
AARCH64_OBJECTS := $(patsubst csrc/%.cpp,build/aarch64/%.o,$(filter-out %/bind.cpp,\
  $(wildcard csrc/numerics/*.cpp csrc/timing/*.cpp)))
aarch64: $(AARCH64_OBJECTS)
	@echo "$(words $^) files of csrc/numerics and csrc/timing compile for aarch64"

# The tests of the numerics, compiled for ARM. AARCH64_PYTHON runs them: on an ARM machine python, else
# a Python for ARM under qemu, with numpy, ml_dtypes, gfloat, hypothesis and pytest.
AARCH64_PYTHON ?= $(BIN)/python
aarch64-test: $(STAMPS)/group-test-core
	cd tests/numerics && CXX=$(AARCH64_CXX) TRN_NUMERICS_BUILD=$(CURDIR)/build/aarch64/numerics \
	  $(CURDIR)/$(BIN)/python -c 'from numerics_library import build; build()'
	TRN_NUMERICS_BUILD=$(CURDIR)/build/aarch64/numerics PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 \
	  $(AARCH64_PYTHON) -m pytest -c /dev/null --rootdir=. --confcutdir=tests/numerics \
	  --import-mode=importlib -p no:cacheprovider $(or $(ARGS),tests/numerics)

build/aarch64/%.o: csrc/%.cpp $(FORMATS) $(shell find csrc/numerics csrc/timing -name '*.h')
	@mkdir -p $(@D)
	$(AARCH64_CXX) -std=c++20 -O1 -ffp-contract=off -fno-trapping-math -fPIC \
	  -Wall -Wextra -Wconversion -Werror -Icsrc -c $< -o $@
