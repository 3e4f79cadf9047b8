# Thin: it sets up the environment and prints the commands that do the work, so that they can be run without it.
PYTHON ?= python3
BIN := .venv/bin
DEPLOY := .venv-deploy/bin/python

.DEFAULT_GOAL := help
.PHONY: help venv weights demo test check format benchmark deploy map test-deploy requirements clean

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

.venv-deploy/installed: .venv/installed requirements-deploy.txt
	$(PYTHON) -m venv .venv-deploy
	$(BIN)/uv pip install --quiet --python $(DEPLOY) -r requirements-deploy.txt
	touch $@

demo_output/model.pt:
	$(MAKE) demo

deploy_output/models: demo_output/model.pt .venv/installed $(wildcard configs/*.json scripts/*.py scripts/mixture/*.py scripts/report/*.*)
	$(BIN)/python -m scripts.ship --ckpt_path demo_output/model.pt --output deploy_output/models/anomaly --target_fpr 0.002 \
		--show_progress False
	touch $@

deploy: .venv-deploy/installed deploy_output/models ## run the MONAI Deploy app on a sample DICOM series
	$(BIN)/python -m demo.dicom_series demo_output/data/unseen/lesion-01.nii.gz deploy_output/study
	$(DEPLOY) deploy/app -i deploy_output/study -o deploy_output/results -m deploy_output/models
	@find deploy_output/results -type f

map: .venv-deploy/installed deploy_output/models ## build the MONAI Application Package, or without docker what it is made of
	$(DEPLOY) deploy/package.py --models deploy_output/models --context deploy_output/map_context

test-deploy: venv .venv-deploy/installed ## the tests of the MONAI Deploy app
	$(BIN)/python -m pytest -m deploy

requirements: venv ## pin anew what requirements*.in name
	$(BIN)/uv pip compile --universal --python-version 3.10 --no-annotate --no-header -o requirements.txt requirements.in
	$(BIN)/uv pip compile --universal --python-version 3.10 --no-annotate --no-header -o requirements-dev.txt requirements-dev.in
	$(BIN)/uv pip compile --universal --python-version 3.10 --no-annotate --no-header -o requirements-deploy.txt requirements-deploy.in

clean: ## all but the weights
	rm -rf .venv .venv-deploy demo_output deploy_output
