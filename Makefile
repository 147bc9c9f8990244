# The two commands of the README need nothing but Python 3.10+ and this file.
PYTHON ?= python3
VENV   ?= .venv
# The CPU build where the index offers one; any torch that is already in the environment is kept.
TORCH  ?= torch==2.13.0
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.installed

.PHONY: demo test check bench clean
demo: $(STAMPS)-demo
	$(BIN)/retrieval-spec demo

test: $(STAMPS)-test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

check: $(STAMPS)-dev
	PATH="$(abspath $(BIN)):$$PATH" tools/check

bench: $(STAMPS)-test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python tools/bench_structures.py
	$(BIN)/python tools/bench_sources.py
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python tools/bench_service.py --seconds 60

clean:
	rm -rf $(VENV) .cache dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(STAMPS)-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[$*]"
	touch $@
