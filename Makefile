PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-oldest lint clean

demo: $(READY)
	$(BIN)/zipar compare "a large red fox in the center on a blue background, 3d style" --output demo.png --animate demo.gif

# of tiny tensors: more threads would only wait for each other
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/python -m pytest -q --numprocesses logical

test-oldest:
	$(MAKE) test VENV=.venv-oldest CONSTRAINTS=constraints-oldest.txt

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# most modules of all these packages are never imported: the others are compiled when they are
$(READY): pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint $(CONSTRAINTS) torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint $(CONSTRAINTS) --editable ".[dev]"
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-oldest demo.png demo.gif
