# Every target makes .venv first when it is missing or pyproject.toml or constraints.txt changed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

# What is imported is compiled once and kept. Without, every replica compiles torch and diffusers
# anew: 30 s of CPU instead of 10.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-installs faults soak lint bench clean

demo: $(INSTALLED)
	$(BIN)/livepeer-ray demo

# Those of the second call run clusters, and keep two cores busy by themselves.
test: $(INSTALLED)
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --ignore tests/e2e --ignore tests/faults --ignore tests/hosts
	$(BIN)/python -m pytest tests/hosts tests/faults tests/e2e

# What Ray installs for single models: it needs a package index, a minute and 2 GB of disk.
test-installs: $(INSTALLED)
	$(BIN)/python -m pytest -m installs

# What becomes of jobs when things die: 20 minutes, and two tables.
faults: $(INSTALLED)
	$(BIN)/python -m tests.faults

# The same at random for so many seconds, and what memory does.
SOAK_S ?= 600
soak: $(INSTALLED)
	$(BIN)/python -m tests.faults.soak --seconds $(SOAK_S)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/generate_protocol.py --check

bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.overhead
	$(BIN)/python -m benchmarks.live_capacity
	$(BIN)/python -m benchmarks.http_api
	$(BIN)/python -m benchmarks.deepcache
	$(BIN)/python -m benchmarks.batching
	$(BIN)/python -m benchmarks.journal
	$(BIN)/python -m benchmarks.cold_start
	$(BIN)/python -m benchmarks.llm_throughput

clean:
	rm -rf $(VENV) build *.egg-info demo-output bench-output .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(INSTALLED): pyproject.toml constraints.txt
	@echo "installing into $(VENV): one to three minutes, more where torch brings CUDA along"
	$(PYTHON) -m venv $(VENV)
	# Without --no-compile pip spends a minute on bytecode of which little is ever imported.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile \
		--constraint constraints.txt --editable '.[dev]'
	@touch $(INSTALLED)
