# The two commands of the README need nothing but Python 3.10+ and this file.
PYTHON ?= python3
VENV   ?= .venv
# The CPU build where the index offers one; any torch that is already in the environment is kept.
TORCH  ?= torch==2.13.0
MORE_EXAMPLES ?= 20
BIN    := $(VENV)/bin
STAMPS := $(VENV)/.installed

.PHONY: demo test test-quick test-long check bench bench-peers coverage clean
demo: $(STAMPS)-demo
	$(BIN)/retrieval-spec demo

test: $(STAMPS)-test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --rows

# What is most likely to notice a broken promise within a minute.
test-quick: $(STAMPS)-test
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --rows -m quick $$(grep -rl 'mark\.quick' tests --include='test_*.py')

# What takes minutes each, then properties on many more examples: see docs/promises.md. Both are run whatever the
# first one finds.
test-long: $(STAMPS)-test
	status=0; \
	$(BIN)/python -m pytest -q -n 2 --dist load --rows -m long || status=1; \
	$(BIN)/python -m pytest -q -n 2 --dist load --rows --more-examples $(MORE_EXAMPLES) --timeout 3000 \
	  $(foreach row,A1 F1 P1 C2/C3 L1 F-fuzz,--row $(row)) || status=1; \
	exit $$status

check: $(STAMPS)-dev
	PATH="$(abspath $(BIN)):$$PATH" tools/check

coverage: $(STAMPS)-dev
	$(BIN)/python tools/measure_coverage.py

bench: bench-peers
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python tools/bench_structures.py
	$(BIN)/python tools/bench_sources.py
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python tools/bench_service.py --seconds 60

# Other systems, each in an environment of its own under .cache: writes docs/benchmarks.md. RETRIEVAL_SPEC_DATA
# adds recorded outputs to the text that every machine has.
bench-peers: $(STAMPS)-test
	TORCH="$(TORCH)" $(BIN)/python tools/bench_peers

clean:
	rm -rf $(VENV) .cache dist

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q --upgrade pip

$(STAMPS)-%: pyproject.toml | $(BIN)/python
	$(BIN)/python -c "import torch" 2>/dev/null || $(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[$*]"
	touch $@
