# Every target makes the environment first where it is missing. Settings, e.g. `make demo PYTHON=python3.12`:
#   PYTHON        the interpreter the environment is made with
#   VENV          where it lies (.venv)
#   PARITY, SLOW  which of the parity and of the slow tests, as pytest's -k (all); CI: SLOW="not extended"
#   KILLS, TERMS, SEED   of the soak: SIGKILLs, requests to stop, and what chooses their places (200, 100, 0)
#   SECONDS, SEED, TARGETS   of the fuzzer: how long, what chooses the damages, which targets (600, 0, all)
#   TORCH_INDEX   package index for torch alone; https://download.pytorch.org/whl/cpu saves 2 GB on machines without a GPU
PYTHON ?= python3
VENV ?= .venv
TORCH_INDEX ?=
PARITY ?=
SLOW ?=
KILLS ?= 200
TERMS ?= 100
SEED ?= 0
SECONDS ?= 600
TARGETS ?=

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

venv := $(abspath $(VENV))
bin := $(venv)/bin
# The stamp's name holds a checksum of what is installed: a changed setup.py or constraints.txt installs anew.
stamp := $(venv)/.installed-$(shell cat setup.py constraints.txt | cksum | cut -d' ' -f1)

export PATH := $(bin):$(PATH)
export PYTHONPATH := $(CURDIR)
export PYTHONSAFEPATH := 1
export TOKENIZERS_PARALLELISM := false
# Per environment: two environments that share compiled ops rebuild them for each other for ever.
export TORCH_EXTENSIONS_DIR := $(venv)/torch_extensions

.PHONY: help env .venv demo demo-clean test test-slow test-gpu parity lint fuzz bench bench-train bench-gpu bench-data bench-ckpt faults soak slurm-test slurm-soak clean

help:
	@echo "make demo        prepare, tune, evaluate, export and chat on this machine (two processes, no GPU)"
	@echo "make test        the test suite; make test-slow, make faults, make slurm-test: the long ones; make slurm-soak: nodes and links lost"
	@echo "make soak        runs killed and stopped at random places, resumed, and compared with undisturbed ones (KILLS=200 SEED=0)"
	@echo "make fuzz        damaged configs, rows, tokenizers, models, corpora and runs through every entry point (SECONDS=600 SEED=0)"
	@echo "make test-gpu    what only an NVIDIA GPU can show: kernels, 4-bit bases, bitwise resume, the exact step in bf16"
	@echo "make parity      gradients in every geometry against plain torch (fp32)"
	@echo "make lint        ruff, mypy, the import contract, shellcheck"
	@echo "make bench       planning, start-up, the plan's accuracy, a fake cluster of 4,096 ranks; make bench-train: speed beside HF Trainer and TRL"
	@echo "make bench-gpu   training speed on one NVIDIA GPU, switch by switch and beside HF Trainer and TRL"
	@echo "make bench-data  the data engine beside Grain, Hugging Face datasets and Mosaic Streaming"
	@echo "make bench-ckpt  how long training waits for a checkpoint, beside DeepSpeed's and torch's own saves"
	@echo "make env         only the environment, $(VENV)"
	@echo "make demo-clean  forget the demo's runs; make clean: caches and build folders"

env .venv: $(stamp)

$(stamp): setup.py constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  found=$$("$(PYTHON)" --version 2>/dev/null || echo "no such program"); \
	  echo "corral: needs Python 3.11 or newer and $(PYTHON) is: $$found; give another, as in make PYTHON=python3.11" >&2; \
	  exit 69; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "corral: $(PYTHON) has no venv module; install it (apt install python3-venv) or give another PYTHON" >&2; \
	  exit 69; }
	@echo "corral: making the environment $(VENV); the first time this downloads about 1.9 GB"
	[ -x "$(bin)/python" ] || "$(PYTHON)" -m venv "$(venv)"
	"$(bin)/python" -m pip install --quiet $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$$(grep '^torch==' constraints.txt)"
	"$(bin)/python" -m pip install --quiet -c constraints.txt -e '.[dev]'
	@rm -f "$(venv)"/.installed-*
	@touch "$@"

demo: $(stamp)
	@"$(bin)/python" -m launch.demo

demo-clean:
	rm -rf outputs/demo outputs/demo_lora

# Two files at a time: half of most tests is one process that starts.
test: $(stamp)
	"$(bin)/python" -m pytest -n 2 --dist loadfile -m "not slow and not slurm and not parity and not soak"

test-slow: $(stamp)
	"$(bin)/python" -m pytest -n 2 --dist loadfile -m "slow and not slurm and not soak" $(if $(SLOW),-k "$(SLOW)")

parity: $(stamp)
	"$(bin)/python" -m pytest -m parity $(if $(PARITY),-k "$(PARITY)") tests/parity

faults: $(stamp)
	"$(bin)/python" -m pytest -m faults

soak: $(stamp)
	"$(bin)/python" -m tests.faults.soak kills=$(KILLS) terms=$(TERMS) seed=$(SEED)

fuzz: $(stamp)
	"$(bin)/python" -m tests.fuzz.run seconds=$(SECONDS) seed=$(SEED) targets=$(TARGETS)

slurm-test: $(stamp)
	"$(bin)/python" -m pytest -m "slurm and not slow" tests/slurm

slurm-soak: $(stamp)
	"$(bin)/python" -m pytest -m slurm tests/slurm

test-gpu: $(stamp)
	"$(bin)/python" -m pytest -m gpu tests/gpu

lint: $(stamp)
	"$(bin)/ruff" check .
	"$(bin)/ruff" format --check .
	"$(bin)/mypy"
	"$(bin)/lint-imports"
	"$(bin)/shellcheck" -x slurm/*.sh tests/slurm/*.sh .ci/run

bench: $(stamp)
	@for each in planning scale plan_accuracy fake_cluster; do echo "== $$each"; "$(bin)/python" -m "benchmarks.$$each"; done

bench-train: $(stamp)
	"$(bin)/python" -m pip install --quiet -c constraints.txt -e '.[bench]'
	"$(bin)/python" -m benchmarks.train_speed

bench-gpu: $(stamp)
	"$(bin)/python" -m pip install --quiet -c constraints.txt -e '.[bench,gpu]'
	"$(bin)/python" -m benchmarks.gpu_speed prepare outputs/bench-gpu
	"$(bin)/python" -m benchmarks.gpu_speed run outputs/bench-gpu

bench-data: $(stamp)
	"$(bin)/python" -m benchmarks.data_engine

bench-ckpt: $(stamp)
	"$(bin)/python" -m benchmarks.ckpt_stall

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find conf data_prep train launch tests -name __pycache__ -type d -prune -exec rm -rf {} +
