# make demo   sets everything up, trains a small network on real digits and evaluates it densely
# make test   sets everything up, builds and runs every check and test
# make fast   the quick tests alone, in an environment that is set up
# make resources  what each CUDA kernel takes of the machine, against csrc/cuda/resources.json; needs nvcc, no GPU
# make format, make clean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
TORCH ?= torch==2.13.0
SOURCES := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 2>/dev/null)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test fast lint ctest sanitize resources module format clean

demo: module
	$(BIN)/vggfast train --data digits --out runs/demo --overwrite

test: module lint ctest sanitize
	$(BIN)/python -m pytest -m "slow or not slow"

fast: module
	$(BIN)/python -m pytest

# torch comes first and pinned: a bare `torch` brings gigabytes of CUDA packages where a CPU build would do.
# torchvision is a peer of the tests only, and comes without its dependencies.
$(VENV)/ready: pyproject.toml setup.py Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet setuptools wheel pybind11 cmake ninja
	VGGFAST_CUDA=$(or $(VGGFAST_CUDA),off) $(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps torchvision==0.28.0
	touch $@

module: $(VENV)/ready
	$(BIN)/python setup.py --quiet build_ext --inplace

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

ctest: $(VENV)/ready
	$(BIN)/cmake -S . -B build/core -G Ninja -DVGGFAST_CUDA=$(or $(VGGFAST_CUDA),auto)
	$(BIN)/cmake --build build/core
	$(BIN)/ctest --test-dir build/core --output-on-failure

sanitize: $(VENV)/ready
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DVGGFAST_CUDA=off -DVGGFAST_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure

resources: $(VENV)/ready
	$(BIN)/python scripts/kernel_resources.py

format: $(VENV)/ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

clean:
	rm -rf build dist $(VENV) vggfast/*.so *.egg-info
