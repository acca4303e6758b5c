# make demo · make test: each does its whole set-up on a fresh machine (Python 3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= data

.PHONY: demo test check generated bench clean

demo: $(READY)
	$(BIN)/zoo demo --force

test: check
	$(BIN)/python -m pytest --durations=10

# What needs no running: style, types, and whether generated text is fresh.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m zoo.generate --check

generated: $(READY)
	$(BIN)/python -m zoo.generate

# The numbers in hub_cards/: hours on a laptop. DATA is described in CONTRIBUTING.md.
bench: $(READY)
	for model in edge-sd-sr edge-sd-sr-photo yonos-sr; do \
	  $(BIN)/zoo bench $$model --data $(DATA) --write hub_cards || exit 1; done
	$(BIN)/zoo bench lfa --data $(DATA)/cifar10 --write hub_cards
	$(BIN)/zoo bench bayesian-dps --data $(DATA) --write hub_cards
	for model in edge-sd-sr edge-sd-sr-photo edge-sd-sr-full yonos-sr yonos-sr-full lfa \
	  bayesian-dps; do $(BIN)/zoo card $$model || exit 1; done
	$(BIN)/python -m zoo.generate

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
