PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-cluster test-page test-oldest lint clean

demo: $(READY)
	$(BIN)/zipar compare "a large red fox in the center on a blue background, 3d style" --output demo.png --animate demo.gif

# of tiny tensors: more threads would only wait for each other
test: export OMP_NUM_THREADS = 1
test: $(READY)
	$(BIN)/python -m pytest -q --numprocesses logical --ignore tests/serving/test_page.py --ignore tests/serving/test_cluster.py

# of many machines: a cluster takes all cores to start
test-cluster: export OMP_NUM_THREADS = 1
test-cluster: $(READY)
	$(BIN)/python -m pytest -q tests/serving/test_cluster.py

# of the server's page, in a browser
test-page: export OMP_NUM_THREADS = 1
test-page: export CHROMIUM ?= /usr/lib/chromium/chromium-headless-shell
test-page: $(READY)
	@command -v "$$CHROMIUM" > /dev/null || { \
	  root=$$(test "$$(id -u)" = 0 || echo sudo -n) && $$root apt-get update -qq && \
	  $$root apt-get install -qq --no-install-recommends chromium-headless-shell; } || { \
	  echo "the page's tests need a browser: install Debian's chromium-headless-shell, or name one with CHROMIUM=FILE"; \
	  exit 1; }
	$(BIN)/python -m pytest -q tests/serving/test_page.py

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
