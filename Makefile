# `make demo` and `make test` are all that a newcomer needs; both set up .venv first.
PYTHON ?= python3
PORT ?= 5000

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := src
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
# MLflow's queue of jobs for language models: seven processes beside each server, for nothing here.
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION := false

.PHONY: setup demo ui test lint bench clean

setup: .venv/.ready ## create .venv with the locked versions

.venv/.ready: pyproject.toml requirements.lock $(wildcard src/udc_model/native/native*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11")'
	@echo "Setting up .venv (a few minutes, most of it PyTorch) …"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

demo: setup ## train on the embedded digits, from raw images to a tracked model
	@dvc repro --quiet
	@udc summary

ui: setup ## compare runs in the browser
	@mlflow ui --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --port $(PORT)

test: setup ## all tests
	@python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: setup ## style, format, types
	@ruff check .
	@ruff format --check .
	@mypy

bench: setup ## measure models and training beside transformers, torchvision and timm
	@python benchmarks/models.py
	@python benchmarks/training.py

clean: ## remove what the pipeline made, but no recorded run
	@rm -rf data/prepared model training evaluation metrics.json
