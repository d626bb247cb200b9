# Every target starts from nothing but Python >= 3.11; stamp files in the venv keep repeated runs quick.
SHELL := /bin/sh
VENV ?= .venv
BIN := $(VENV)/bin
PARITY ?= $(VENV)-parity
DOCS ?= $(VENV)-docs
ENGINES ?= $(VENV)-engines
DEMO := outputs/demo
PACKAGES := data/packages
DEBIAN := fonts-noto-color-emoji unicode-data unicode-cldr-core wordnet-base
# OpenMoji's licence is share-alike: its pictures are held out of all training.
NPM := @iconify-json/noto@1.2.9 @iconify-json/noto-v1@1.2.5 @iconify-json/twemoji@1.2.5 \
	@iconify-json/fluent-emoji-flat@1.2.6 @lobehub/fluent-emoji-3d@1.1.0 @iconify-json/fxemoji@1.2.2 \
	@iconify-json/emojione@1.2.3 @iconify-json/streamline-emojis@1.2.4 @iconify-json/openmoji@1.2.29 emojibase-data@17.0.0
# The first interpreter on the path that is new enough; give another with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test test-all test-slow test-engines test-browser test-parity check format data pictures model bench gpu docs locks install install-dev clean

help: ## Show what there is to make
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(VENV)/.stamp-base ## Draw six pictures from their names and fill the gaps of a page (installs first)
	$(BIN)/cm3kit generate --prompt-file samples/prompts.txt --seed 1 --force -o $(DEMO)/pictures/
	$(BIN)/cm3kit infill samples/apple.html --seed 1 --diff --force -o $(DEMO)/page/
	@printf '\nThe results:\n  pictures     %s\n  filled page  %s\nNext:\n  . $(BIN)/activate && cm3kit generate "red heart"\n' "$(CURDIR)/$(DEMO)/pictures" "$(CURDIR)/$(DEMO)/page"

test: $(VENV)/.stamp-dev ## Run the tests (installs first)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m "not slow" $(PYTEST_ARGS)

test-all: test test-slow test-parity test-engines test-browser ## Run the tests, also those that need more than a few minutes or another venv

test-slow: $(VENV)/.stamp-dev ## Run the tests that take more than ten seconds each
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile -m slow $(PYTEST_ARGS)

test-engines: $(ENGINES)/.stamp ## Run datatrove, Ray Data, TensorBoard and a launcher for real, in an environment of their own
	OMP_NUM_THREADS=1 $(ENGINES)/bin/python -m pytest -q -n 0 tests/test_engines.py tests/test_web_drivers.py \
		tests/test_web_sources.py tests/test_seeing.py tests/test_sampling.py $(PYTEST_ARGS)

test-browser: $(VENV)/.stamp-dev ## Run the tests that look with Chromium, which is installed where that is allowed
	@command -v chromium > /dev/null || { test "$$(id -u)" = 0 && apt-get install -y -q chromium > /dev/null; } || \
		{ echo "Chromium is not installed, and cannot be installed here" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 0 $$(grep -l "import browser" tests/test_*.py) $(PYTEST_ARGS)

test-parity: $(VENV)/.stamp-dev ## Compare with taming-transformers, in an environment of its own
	$(BIN)/python -m venv --clear $(PARITY)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> "$$($(PARITY)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(PARITY)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps taming-transformers==0.0.1
	$(PARITY)/bin/python -m pytest -q tests/test_parity.py

check: $(VENV)/.stamp-dev ## Lint, format check, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.stamp-dev ## Rewrite the sources in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

data: data/emoji/manifest.jsonl ## Build the picture dictionary in data/emoji (downloads four Debian packages)

data/emoji/manifest.jsonl: | $(VENV)/.stamp-dev
	sh scripts/debian_packages.sh $(PACKAGES) $(DEBIAN)
	$(BIN)/cm3kit data build emoji --packages $(PACKAGES) -o data/emoji

pictures: data/pictures/manifest.jsonl ## Build the dictionary by many hands in data/pictures (also ten npm packages)

data/pictures/manifest.jsonl: | $(VENV)/.stamp-dev
	sh scripts/debian_packages.sh $(PACKAGES) $(DEBIAN) openclipart-svg
	sh scripts/npm_packages.sh $(PACKAGES)/npm $(NPM)
	$(BIN)/cm3kit data build pictures --packages $(PACKAGES) -o data/pictures --workers 2

TRAIN := $(BIN)/cm3kit train
PART := $(BIN)/python checkpoints/pictures/part.py data/pictures
model: data/emoji/manifest.jsonl data/pictures/manifest.jsonl ## Train the model that ships, from its recipes (hours on a CPU), into runs/pictures
	test -d runs/text/final || $(TRAIN) text -c emoji-text -o runs/text
	$(TRAIN) vqgan -c emoji-vqgan -o runs/vqgan
	$(TRAIN) vqgan -c emoji-vqgan-decoder -o runs/vqgan-decoder
	$(TRAIN) cm3 -c emoji-cm3 -o runs/cm3
	$(TRAIN) cm3 -c emoji-cm3-second -o runs/cm3-second
	$(TRAIN) cm3 -c emoji-cm3-third -o runs/cm3-third
	$(TRAIN) cm3 -c emoji-cm3-fourth -o runs/cm3-fourth
	$(TRAIN) cm3 -c emoji-cm3-fifth -o runs/cm3-fifth
	$(TRAIN) block -c emoji-block -o runs/blocks
	for part in few most most-wide most-told most-by most-words; do \
		test -d data/pictures-$$part || $(PART) $$part -o data/pictures-$$part || exit 1; \
	done
	for phase in few most most-wide most-told most-by most-whole most-long most-seen most-words most-words-long; do \
		$(TRAIN) cm3 -c pictures-cm3-$$phase -o runs/cm3-$$phase || exit 1; \
	done
	test -d runs/averaged || $(BIN)/cm3kit model average runs/cm3-most-long/final runs/cm3-most-words-long/final --share 0.2 -o runs/averaged
	$(BIN)/cm3kit model assemble --text runs/text/final --image runs/vqgan-decoder/final --decoder runs/averaged \
		--diffusion runs/blocks/final \
		--defaults pictures-defaults --card checkpoints/pictures/README.md -o runs/pictures

bench: $(VENV)/.stamp-dev ## Measure decoding and infilling speed
	$(BIN)/python benchmarks/decode.py
	$(BIN)/python benchmarks/infill.py

gpu: $(VENV)/.stamp-base ## Measure and check everything on a GPU, in four minutes, into outputs/gpu
	$(BIN)/python benchmarks/gpu.py --lanes 3 -o outputs/gpu

docs: $(DOCS)/.stamp ## Build the documentation with its Python reference, into outputs/site
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=.:cli:tokenizers $(DOCS)/bin/mkdocs build --strict

install: $(VENV)/.stamp-base ## Install cm3kit into the venv
install-dev: $(VENV)/.stamp-dev ## Install cm3kit and what its tests need into the venv

clean: ## Remove the venv and the caches
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "cm3kit needs Python >= 3.11 on the path; or run: make PYTHON=/path/to/python" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.stamp-torch: scripts/install_torch.py | $(BIN)/python
	$(BIN)/python scripts/install_torch.py
	@touch $@

# Whatever is installed is named with its hashes (scripts/lock.py), but for torch, whose wheels differ by platform.
LOCKED = $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r
OWN = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .

$(VENV)/.stamp-base: pyproject.toml locks/base.txt $(VENV)/.stamp-torch
	$(LOCKED) locks/base.txt
	$(OWN)
	@touch $@

$(VENV)/.stamp-dev: pyproject.toml locks/dev.txt $(VENV)/.stamp-torch
	$(LOCKED) locks/dev.txt
	$(OWN)
	@touch $@ $(VENV)/.stamp-base

$(ENGINES)/.stamp: pyproject.toml locks/dev.txt locks/extras.txt scripts/install_torch.py
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/python scripts/install_torch.py
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r locks/dev.txt
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r locks/extras.txt
	$(ENGINES)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

$(DOCS)/.stamp: locks/docs.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r locks/docs.txt
	@touch $@

locks: ## Write the hashes of what is installed anew, after a change of dependencies (needs the index)
	$(PYTHON) scripts/lock.py
