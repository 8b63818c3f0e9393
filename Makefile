# A newcomer needs `make demo` and `make test` only; both create .venv first.
PYTHON ?= python3
PORT ?= 5000

export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONPATH := src
export DVC_NO_ANALYTICS := true
export MLFLOW_DISABLE_TELEMETRY := true
# Without bytecode on disk, each of the hundreds of processes that the tests start would compile the package.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo ui test check fallback faults gpu lint docs package bench bench-gpu clean

help: ## print this list
	@echo "Targets:"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-9s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: .venv/.ready ## create .venv with the locked versions

.venv/.ready: pyproject.toml requirements.lock $(wildcard src/udc_model/native/native*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; try: make PYTHON=python3.11")'
	@echo "Creating .venv (a few minutes, most of them for PyTorch) …"
	@$(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install -qq --disable-pip-version-check -c requirements.lock -e '.[dev]'
	@touch $@

demo: setup ## train on the embedded digits, from images to a recorded model
	@dvc repro --quiet
	@udc summary

ui: setup ## compare runs in the browser
	@udc ui --port $(PORT)

test: setup ## run all tests
	@python -m compileall -q src
	@python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --durations=40

check: lint ## lint, types and the fast tests: two minutes, before each commit
	@python -m pytest -q -n 2 -m "not pipeline and not slow"

fallback: setup ## run the tests of all arithmetic without the native kernels
	@UDC_KERNELS=off python -m pytest -q -n 3 -m "not pipeline" --ignore=tests/inference/exports tests/data tests/decisions \
		tests/evaluation tests/inference tests/models tests/stages tests/training

faults: setup ## damage, kill and disturb every command, 2,000 times: an hour; a second call resumes it
	@python tests/faults/run.py

gpu: setup ## run the tests that need a CUDA GPU
	@python -m pytest tests/gpu

lint: setup ## check style, format and types
	@ruff check .
	@ruff format --check .
	@mypy

docs: setup ## build the documentation in docs/_build/html; a warning is an error
	@sphinx-build -W --keep-going -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

package: setup ## build and check the source archive and the wheel in dist/
	@rm -rf dist
	@python -m build > /dev/null
	@twine check --strict dist/*
	@python -m zipfile -l dist/*.whl > dist/contents
	@for part in udc_native project/templates/dvc.yaml.j2 evaluation/what_if_page.js app/page/index.html; do \
		grep -q "$$part" dist/contents || { echo "the wheel has no $$part"; exit 1; }; done
	@rm dist/contents

bench: setup ## measure models and training runs beside transformers, torchvision and timm
	@python benchmarks/models.py
	@python benchmarks/training.py

bench-gpu: setup ## measure training, inference and loading on a CUDA GPU beside other libraries
	@python benchmarks/gpu.py

clean: ## remove the outputs of the pipeline, but no recorded run
	@rm -rf data/prepared resolved model training evaluation metrics.json
