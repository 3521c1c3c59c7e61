# Every target prepares what it needs in .venv and is quick when nothing changed.
# PYTHON chooses the interpreter, ARGS reaches the command: make demo ARGS="--steps 20".

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
NATIVE := $(shell find csrc -type f 2>/dev/null) CMakeLists.txt setup.py pyproject.toml
CXX_FILES = $(shell find csrc tests -name '*.cpp' -o -name '*.h' -o -name '*.inc')

.PHONY: demo test build lint format bench docs conformance asan clean

demo: build $(STAMPS)/group-demo
	$(BIN)/python -m torch_trn_emu.report --profile out/demo examples/char_gpt.py $(ARGS)

test: build $(STAMPS)/group-test
	$(BIN)/python -m pytest $(ARGS)

build: $(STAMPS)/built

# mypy reads the types of torch and of what the tests import.
lint: $(STAMPS)/group-lint $(STAMPS)/group-build $(STAMPS)/group-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(STAMPS)/group-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: build $(STAMPS)/group-bench
	$(BIN)/python benchmarks/run.py $(ARGS)
	$(BIN)/python docs/generate.py

# Fills the generated sections, runs the tutorials for their figures, builds the site into build/docs.
docs: build $(STAMPS)/group-test $(STAMPS)/group-docs
	$(BIN)/python docs/generate.py
	TRN_EMU_MATMUL=mxfp8 $(BIN)/python docs/tutorials/survive_mxfp8.py --figures docs/tutorials/figures
	TRN_EMU_MATMUL=mxfp8 $(BIN)/python docs/tutorials/step_time.py --figures docs/tutorials/figures
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs

conformance: build $(STAMPS)/group-test
	$(BIN)/python -m pytest -m conformance $(ARGS)
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
	    'import pybind11, torch; print(torch.utils.cmake_prefix_path, pybind11.get_cmake_dir(), sep=";")')" \
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
	find torch_trn_emu -name '*.so' -delete

$(STAMPS)/venv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo "$(PYTHON) is missing or older than 3.10; name another: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet pip==26.3
	mkdir -p $(STAMPS)
	touch $@

# The dependency groups of pyproject.toml.
$(STAMPS)/group-%: pyproject.toml | $(STAMPS)/venv
	$(BIN)/python -m pip install --quiet --group $*
	touch $@

# Autoload is off: the package about to be built must not be imported by the torch that builds it.
$(STAMPS)/built: $(NATIVE) | $(STAMPS)/group-build
	TORCH_DEVICE_BACKEND_AUTOLOAD=0 \
	  $(BIN)/python -m pip install --quiet --no-build-isolation --no-deps -e .
	touch $@
