# make demo, make test: each sets itself up on a fresh machine (Python 3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DATA ?= data

.PHONY: demo test quick check generated bench cards constraints dist publish clean

demo: $(READY)
	$(BIN)/zoo demo --force

test: check
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --durations=10

# Finds most mistakes in under two minutes: no wheels, no environments, no training.
quick: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m zoo.generate --check
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile -m 'not slow and not environment' tests/host tests/test_architecture.py

# Static checks: style, types, and whether generated text is fresh.
check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m zoo.generate --check

generated: $(READY)
	$(BIN)/python -m zoo.generate

# The names of the registry's models with these statuses.
models = $$($(BIN)/python -c "from zoo import plugins; \
  print(*(m.name for m in plugins.own_registry().models.values() if m.status in '$(1)'.split()))")

# Measures the numbers in hub_cards/: hours on a laptop. CONTRIBUTING.md describes DATA.
bench: $(READY)
	for model in $(call models,ready); do \
	  $(BIN)/zoo bench $$model --data $(DATA) --write hub_cards || exit 1; done
	$(MAKE) cards

# Generates cards from the registry, hub_cards/*/about.md and hub_cards/*/results.json.
cards: $(READY)
	for model in $(call models,ready untrained); do $(BIN)/zoo card $$model || exit 1; done
	$(BIN)/python -m zoo.generate

# Updates constraints.txt: the newest versions that work together, found in a separate environment.
# Versions have no build suffix (+cpu), so that every index has them.
constraints:
	$(PYTHON) -m venv --clear $(VENV)-new
	$(VENV)-new/bin/python -m pip install --quiet --disable-pip-version-check '.[dev]'
	(grep '^#' constraints.txt && $(VENV)-new/bin/python -m pip freeze --exclude edgezoo) \
	  | sed 's/+.*//' > constraints.new
	mv constraints.new constraints.txt
	rm -rf $(VENV)-new

dist: $(READY)
	rm -rf dist
	$(BIN)/python -m hatchling build

# Uploads each model with weights to its Hub repository in the registry. Log in first.
publish: $(READY)
	$(BIN)/python -c "from zoo import plugins; \
	  [print(m.name, m.hub.repo) for m in plugins.own_registry().models.values() if m.files]" \
	| while read model repo; do \
	  $(BIN)/zoo publish $$model --to $$repo < /dev/null || exit 1; done

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) $(VENV)-new build dist .pytest_cache .mypy_cache .ruff_cache
