# Thin: it sets up the environments and prints the commands that do the work, so that they can be run without it.
PYTHON ?= python3
LABEL_PYTHON ?= $(PYTHON)
BIN := .venv/bin
LABEL := .venv-label/bin/python
DEPLOY := .venv-deploy/bin/python
MINUTES ?= 10
BUNDLE := $(shell find configs scripts -type f -not -name '*.pyc')
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.10 --no-annotate --no-header

.DEFAULT_GOAL := help
.PHONY: help venv weights demo picture label deploy map test test-fast test-label test-deploy fuzz check format benchmark requirements clean

help: ## what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

venv: .venv/installed ## the environment in .venv

.venv/installed: requirements-dev.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python -r requirements-dev.txt
	touch $@

.venv-label/installed: requirements-label.txt | venv
	$(LABEL_PYTHON) -m venv .venv-label
	$(BIN)/uv pip install --quiet --python $(LABEL) --no-deps -r requirements-label.txt
	touch $@

.venv-deploy/installed: requirements-deploy.txt | venv
	$(PYTHON) -m venv .venv-deploy
	$(BIN)/uv pip install --quiet --python $(DEPLOY) -r requirements-deploy.txt
	touch $@

weights: venv ## the encoder's weights in models/
	$(BIN)/python -m scripts.download_weights

demo: weights ## fit on built-in normals, segment unseen cases, leave masks, overlays and a table
	$(BIN)/python -m demo

picture: demo ## the README's picture, a case of the demo
	cp demo_output/results/lesion-01/lesion-01_overlay.png docs/images/example.png

demo_output/model.pt: | weights
	$(BIN)/python -m demo

label: .venv-label/installed demo_output/model.pt ## MONAI Label on the demo's cases, for 3D Slicer
	$(LABEL) -m label --target_fpr 0.002 --normals demo_output/data/normal

deploy_output/models: demo_output/model.pt $(BUNDLE)
	$(BIN)/python -m scripts.export_bundle --ckpt_path demo_output/model.pt --output $@/anomaly --target_fpr 0.002 --show_progress False
	touch $@

deploy: .venv-deploy/installed deploy_output/models ## the MONAI Deploy app on a sample DICOM series
	$(BIN)/python -m demo.dicom_series demo_output/data/unseen/lesion-01.nii.gz deploy_output/study
	rm -rf deploy_output/results
	$(DEPLOY) deploy/app -i deploy_output/study -o deploy_output/results -m deploy_output/models
	@find deploy_output/results -type f

map: .venv-deploy/installed deploy_output/models ## the MONAI Application Package, or without docker what it is made of
	$(DEPLOY) deploy/package.py --models deploy_output/models --context deploy_output/map_context

test: weights .venv-label/installed .venv-deploy/installed check ## everything that is checked
	$(BIN)/python -m pytest

test-fast: venv ## the tests of single parts, in .venv alone and without weights
	$(BIN)/python -m pytest -m "not slow and not real_weights and not label and not deploy"

test-label: weights .venv-label/installed ## what runs a MONAI Label server, and Orthanc where it is installed
	$(BIN)/python -m pytest -m label

test-deploy: weights .venv-deploy/installed ## what runs the MONAI Deploy app
	$(BIN)/python -m pytest -m deploy

fuzz: venv ## new attacks on the bundle, for MINUTES=10
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES)

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

requirements: venv ## pin the dependencies and extras of pyproject.toml anew
	$(COMPILE) -o requirements.txt pyproject.toml
	for extra in fast dev label deploy; do $(COMPILE) --extra $$extra -o requirements-$$extra.txt pyproject.toml || exit; done

clean: ## all but the weights and label_output, which holds what people drew
	rm -rf .venv .venv-label .venv-deploy demo_output deploy_output
