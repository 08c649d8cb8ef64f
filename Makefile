# make quickstart   set up, then train a small DeiT with Token Expansion on a CPU, start to end
# make test         set up, then format check, lint, types and the fast tests
# make test-all     the same with the slow tests
# make lint, make format

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Two processes of one thread each: most tests start small processes of their own, which threads only slow down.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

.PHONY: quickstart test test-all lint format

quickstart: $(READY)
	$(BIN)/toe-train --config configs/quickstart.yaml
	@echo "next: $(BIN)/tensorboard --logdir runs/quickstart/tensorboard shows it"
	@echo "      your photos, your own loop: README.md"

test: lint
	$(PYTEST) -m "not slow"

test-all: lint
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# One environment for all targets; made anew when the dependencies change.
$(READY): setup.cfg setup.py
	@echo "setting up .venv (PyTorch is a download of some gigabytes; a few minutes)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@
