# Sets up the environments and runs the commands below, which also work without make.
PYTHON ?= python3
LABEL_PYTHON ?= $(PYTHON)
BIN := .venv/bin
LABEL := .venv-label/bin/python
DEPLOY := .venv-deploy/bin/python
MINUTES ?= 10
WORKERS ?= 2
PORT ?= 8000
LABEL_OUTPUT ?= label_output
PLATFORM ?= gpu
PYTHONS ?= 3.10 3.11 3.12 3.13
SEND_TO ?= 127.0.0.1:4242:ORTHANC
BUNDLE := $(shell find configs scripts -type f -not -name '*.pyc')
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.10 --no-annotate --no-header

.DEFAULT_GOAL := help
.PHONY: help venv weights demo picture label deploy gateway map image kit test test-fast test-label test-endurance test-deploy test-package test-kit fuzz check format benchmark requirements sbom release clean

help: ## list of the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 20

venv: .venv/installed ## environment of the bundle in .venv

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

weights: venv ## download the weights of the encoder to models/
	$(BIN)/python -m scripts.download_weights

demo: weights ## fit on a built-in population and segment unseen cases: masks, overlays and a table
	$(BIN)/python -m demo

picture: demo ## update the picture of the README from the demo
	cp demo_output/results/lesion-01/lesion-01_overlay.png docs/images/example.png

demo_output/model.pt: | weights
	$(BIN)/python -m demo

demo_output/heads/model.pt: models/t1_heads.pt demo/heads.py | weights
	$(BIN)/python -m demo.heads demo_output/heads
	touch $@

label: .venv-label/installed $(if $(MODEL),,demo_output/heads/model.pt) ## MONAI Label server with the sample model and two heads, or PORT= STUDIES= MODEL=
	$(LABEL) -m label --port $(PORT) --ckpt_path $(or $(MODEL),demo_output/heads/model.pt) \
	    --studies $(or $(STUDIES),demo_output/heads/cases) --output_dir $(LABEL_OUTPUT)

deploy_output/models: demo_output/heads/model.pt $(BUNDLE)
	$(BIN)/python -m scripts.export_bundle --ckpt_path demo_output/heads/model.pt --output $@/anomaly --show_progress False
	touch $@

deploy: .venv-deploy/installed deploy_output/models ## run the MONAI Deploy app on a sample DICOM series
	$(BIN)/python -m demo.dicom_series demo_output/heads/cases/lesion.nii.gz deploy_output/study
	rm -rf deploy_output/results
	$(DEPLOY) deploy/app -i deploy_output/study -o deploy_output/results -m deploy_output/models
	@find deploy_output/results -type f

deploy_output/wheelhouse-$(PLATFORM)/requirements.txt: requirements-deploy.txt deploy/wheelhouse.py kit/wheelhouse.py | .venv-deploy/installed
	$(DEPLOY) deploy/package.py wheelhouse --platform $(PLATFORM) --output $(@D)

map: .venv-deploy/installed deploy_output/models deploy_output/wheelhouse-$(PLATFORM)/requirements.txt ## what the image of the MONAI Application Package is made of; PLATFORM=cpu
	$(DEPLOY) deploy/package.py context --platform $(PLATFORM) --models deploy_output/models \
	    --wheelhouse deploy_output/wheelhouse-$(PLATFORM) --output deploy_output/map_context

image: map ## the image, by docker
	$(DEPLOY) deploy/package.py build --context deploy_output/map_context

kit: weights ## folder that installs the command without a network; PYTHONS="3.11" MODEL= PLATFORM=cpu
	$(BIN)/python -m kit --output kit_output --pythons $(PYTHONS) --platform $(PLATFORM) $(if $(MODEL),--model "$(MODEL)")

gateway: .venv-deploy/installed deploy_output/models ## gateway of the sample model to a PACS, SEND_TO=HOST:PORT:AET
	$(DEPLOY) deploy/gateway --models deploy_output/models --work_dir deploy_output/gateway --send_to $(SEND_TO)

test: weights .venv-label/installed .venv-deploy/installed check ## all tests and checks, in WORKERS=2 processes
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile

test-fast: venv ## unit tests, which need only .venv and no weights
	$(BIN)/python -m pytest -m "not slow and not real_weights and not label and not deploy"

test-label: weights .venv-label/installed ## tests with a MONAI Label server, and with Orthanc if installed
	$(BIN)/python -m pytest -m label

test-endurance: .venv-label/installed demo_output/heads/model.pt ## 1,000 good and bad requests to a MONAI Label server
	$(BIN)/python -m tests.endurance

test-deploy: weights .venv-deploy/installed ## tests with the MONAI Deploy app
	$(BIN)/python -m pytest -m deploy

test-package: .venv-deploy/installed ## file system of the image, made and run without docker: as root, 14 GB, ten minutes
	$(BIN)/python -m pytest -m package

test-kit: weights ## a kit, installed and used without a network: 12 GB, ten minutes; KIT=kit_output tests that one
	$(BIN)/python -m pytest -m kit tests/integration/test_kit.py

fuzz: venv ## new random attacks, for MINUTES=10
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --minutes $(MINUTES)

check: venv ## format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: venv ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

benchmark: weights ## speed and memory of inference, and of a fit on the demo's embeddings (make demo first)
	$(BIN)/python -m benchmarks.inference
	$(BIN)/python -m benchmarks.fit

requirements: venv ## update the pins of the dependencies and extras in pyproject.toml
	$(COMPILE) -o requirements.txt pyproject.toml
	for extra in fast dev label deploy; do $(COMPILE) --extra $$extra -o requirements-$$extra.txt pyproject.toml || exit; done

sbom: venv ## bills of materials (CycloneDX) and licences of the packages in the environments that are there
	$(BIN)/python -m scripts.sbom --pins bundle,fast,dev
	if [ -f .venv-label/installed ]; then $(LABEL) -m scripts.sbom --pins label; fi
	if [ -f .venv-deploy/installed ]; then $(DEPLOY) -m scripts.sbom --pins deploy; fi

release: venv ## archive, hub folder, checksums and notes of a release, checked as the model zoo does; MODEL= FLAGS=
	$(BIN)/python -m release --ckpt_path $(or $(MODEL),models/model.pt) $(FLAGS)

clean: ## remove environments and outputs, except the weights and label_output with its labels
	rm -rf .venv .venv-label .venv-deploy demo_output deploy_output kit_output sbom_output
