# Thin: it sets up the environment and prints the commands that do the work, so that they can be run without it.
PYTHON ?= python3
LABEL_PYTHON ?= $(PYTHON)
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help venv weights demo test test-label label check format benchmark requirements clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

venv: .venv/installed ## the environment in .venv

.venv/installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements-dev.txt
	touch $@

weights: venv ## the encoder's weights in models/
	$(BIN)/python -m scripts.download_weights

demo: weights ## fit on built-in normals, segment unseen cases, leave masks, overlays and a table
	$(BIN)/python -m demo

test: weights check ## everything that is checked
	$(BIN)/python -m pytest

test-label: weights .venv-label/installed ## what runs a MONAI Label server, and Orthanc where it is installed
	$(BIN)/python -m pytest -m label

label: .venv-label/installed demo_output/model.pt ## MONAI Label on the demo's cases, for 3D Slicer
	.venv-label/bin/python -m label --target_fpr 0.002 --normals demo_output/data/normal

demo_output/model.pt:
	$(MAKE) demo

.venv-label/installed: requirements-label.txt | venv
	$(LABEL_PYTHON) -m venv .venv-label
	$(BIN)/uv pip install --quiet --python .venv-label/bin/python --no-deps -r requirements-label.txt
	touch $@

check: venv ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: venv ## bring the code into form
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: weights ## speed and memory of inference, and of a fit on the demo's embeddings (make demo first)
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.fit

requirements: venv ## pin anew what requirements*.in name
	$(BIN)/uv pip compile --universal --python-version 3.10 --no-annotate --no-header -o requirements.txt requirements.in
	$(BIN)/uv pip compile --universal --python-version 3.10 --no-annotate --no-header -o requirements-dev.txt requirements-dev.in
	$(BIN)/uv pip compile --universal --python-version 3.10 --no-annotate --no-header -o requirements-label.txt requirements-label.in

clean: ## all but the weights
	rm -rf .venv .venv-label demo_output label_output
