# diffusim: everything a user or a contributor runs.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export CARGO_TARGET_DIR ?= $(CURDIR)/target
SOURCES := $(shell find src include kernels cmake plugin-openmm plugin-lammps python -type f -not -path '*/__pycache__/*') \
           Cargo.toml Cargo.lock build.rs CMakeLists.txt pyproject.toml constraints.txt
CPP := $(wildcard include/*.hpp plugin-*/*/*.h plugin-*/*/*.cpp kernels/*.cu kernels/*.cuh tests/simt/* tests/gpu/*.cpp tests/c/*.c tests/c/*.cpp examples/c/*.c examples/cpp/*.cpp)

.PHONY: help install demo test test-gpu lint format bench bench-gpu accuracy paper docs ptx header clean

help:  ## say what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## */\t/' | expand -t 12

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(SOURCES) | $(BIN)/python
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt '.[train,report,alchemy,dev]'
	@touch $@

install: $(VENV)/installed  ## build everything into the virtual environment .venv

demo: install  ## a learned score moves alanine dipeptide in OpenMM; pictures in out/ala2
	$(BIN)/python examples/ala2/demo.py

test: lint install  ## every test there is
	cargo test --release --quiet
	$(BIN)/python -m pytest --quiet tests

test-gpu: install  ## what needs a GPU; without one it says so and skips
	cargo test --release --quiet --test cuda -- --ignored --nocapture device::
	DIFFUSIM_TEST_GPU=1 $(BIN)/python -m pytest --quiet -rs tests/gpu

lint: install  ## formatting and lints, without changing a file
	cargo fmt --check
	cargo clippy --release --quiet --all-targets -- --deny warnings
	$(BIN)/ruff format --check --quiet .
	$(BIN)/ruff check --quiet .
	$(BIN)/clang-format --dry-run --Werror $(CPP)

format: install  ## format all sources
	cargo fmt
	$(BIN)/ruff format --quiet .
	$(BIN)/ruff check --quiet --fix .
	$(BIN)/clang-format -i $(CPP)

bench: install  ## speed of the core, and side by side with its peers; out/bench.json
	cargo bench --bench core
	$(BIN)/python benches/compare.py

bench-gpu: install  ## speed on a GPU beside its peers; out/bench-gpu.json
	$(BIN)/python benches/gpu.py

accuracy: install  ## learned models against the truth: out/accuracy.json; SYSTEM=butane for one of them
	$(BIN)/python examples/accuracy $(SYSTEM)

paper: install  ## the figures of the paper, redone: out/paper.json and docs/paper.md; FIGURE=butane for one of them
	$(BIN)/python examples/paper $(FIGURE)

docs:  ## the Rust documentation, in target/doc
	cargo doc --no-deps

ptx: install  ## write kernels/diffusim.ptx from the kernels
	$(BIN)/python kernels/make_ptx.py

header:  ## write include/diffusim.h from src/capi
	DIFFUSIM_WRITE_HEADER=1 cargo test --release --quiet --test header

clean:  ## remove what was built; the virtual environment stays
	rm -rf build out $(CARGO_TARGET_DIR) $(VENV)/installed
