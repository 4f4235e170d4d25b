PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/python
DONE := $(VENV)/.installed

.PHONY: demo test test-portable test-wheel release slow notebooks gpu docs lint types clean

demo: $(DONE)
	$(VENV)/bin/varflow demo --out demo

# One process a core: each test keeps to one thread.
test: $(DONE)
	$(RUN) -m pytest -n auto --dist loadgroup

# As other machines would run it: CONFIGS="aten-default seed" picks, ARGS="tests/flows -k inverse" goes to pytest.
test-portable: $(DONE)
	$(RUN) tests/portable.py $(CONFIGS) -- $(ARGS)

# A wheel and an sdist in fresh environments without a compiler: PYTHONS="python3.11 python3.12 python3.13".
test-wheel: $(DONE)
	$(RUN) tests/wheel.py $(PYTHONS)

# Builds the sdist and the wheel into dist/ and checks all that RELEASING.md names; CHECKS="tree version" picks.
release: $(DONE)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[release]'
	$(RUN) tests/release.py $(CHECKS)

slow: $(DONE)
	$(RUN) -m pytest -m slow --timeout 1800 $(ARGS)

# The tutorials, executed, with their outputs stored: NAMES="first_vae table_with_gaps" picks.
notebooks: $(DONE)
	$(RUN) docs/tutorials/execute.py $(NAMES)

# On a machine with a CUDA device: its slice of the tests, then a table of steps, in eight minutes at most.
gpu: $(DONE)
	$(RUN) -m benchmarks.gpu

# The site, into site/: open site/index.html. Broken links and anchors fail it; nothing is fetched from a network.
docs: $(DONE)
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --clean

lint: $(DONE)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

# After a change of public names or of settings: what type checkers read of them.
types: $(DONE)
	$(RUN) tests/typing/generate.py

$(DONE): pyproject.toml constraints.txt
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(RUN) -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) build dist demo site src/*.egg-info
