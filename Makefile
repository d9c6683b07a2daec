# Each target does all its own set-up. PYTHON chooses the interpreter (3.11 to 3.13).
PYTHON ?= python3
BIN := .venv/bin
HOST ?= 127.0.0.1
PORT ?= 8000
MINUTES ?= 5
STEPS ?= 300000

.PHONY: serve test chromium check fuzz bench bench-gpu format demo clean

serve: .venv/.runtime
	$(BIN)/quire serve --host $(HOST) --port $(PORT)

test: .venv/.dev chromium
	$(BIN)/pytest -n 2 --dist worksteal

# The page is tried in a Chromium. Where there is none and this may not install one, its tests are skipped.
chromium:
	@for name in chromium chromium-browser google-chrome google-chrome-stable; do \
		command -v $$name > /dev/null && exit 0; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
		apt-get -qq update && apt-get -qq install --no-install-recommends chromium > /dev/null || true; \
	fi; \
	command -v chromium > /dev/null || echo "No Chromium here, and none could be installed: the page is not tried."

check: .venv/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/mypy

fuzz: .venv/.dev
	$(BIN)/python -m quire.fuzz.run --minutes $(MINUTES) --jobs 2
	$(BIN)/python -m quire.fuzz.virtual --steps $(STEPS) --jobs 2

bench: .venv/.dev
	$(BIN)/python -m quire.benchmarks.scheduler
	$(BIN)/python -m quire.benchmarks.kernels
	$(BIN)/python -m quire.benchmarks.attention
	$(BIN)/python -m quire.benchmarks.offline

# Needs an NVIDIA GPU, and a PyTorch that was built for it.
bench-gpu: .venv/.dev
	$(BIN)/python -m quire.benchmarks.gpu
	$(BIN)/python -m quire.benchmarks.gpu_peers --json benchmarks/results/gpu-peers.json

demo: .venv/.dev
	$(BIN)/python -m quire.demo.train

format: .venv/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/.runtime: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet -e .
	touch $@

.venv/.dev: pyproject.toml | .venv/bin/python
	$(BIN)/pip install --quiet -e '.[dev]'
	touch $@ .venv/.runtime

clean:
	rm -rf .venv build *.egg-info
