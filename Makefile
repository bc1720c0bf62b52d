# Everything from a bare Python 3.11 or newer: `make demo`, `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo picture people guide gallery media site test test-slow mutants test-newest test-gpu lint format peers bench bench-gpu pins clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

demo: $(VENV)/.run  ## install, then run the whole job on the embedded data into demo/
	$(BIN)/afzal demo --out demo

picture: $(VENV)/.run  ## draw docs/frontier.svg, the README's picture, again
	rm -rf demo-picture
	$(BIN)/afzal demo --out demo-picture
	cp demo-picture/frontier.svg docs/frontier.svg

people: $(VENV)/.run  ## people vote on stories, a model is trained on their votes and judged: one page in people/
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.people people

guide: $(VENV)/.run  ## run every command of docs/guide.md in an empty folder, and renew the results in it
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.guide

gallery: $(VENV)/.run  ## train the runs of docs/curves.md in gallery/, and draw them again
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.gallery gallery

media: $(VENV)/.dev  ## images and sounds of known truth: SFT, then DPO and MPO on noisy preferences, one page in media/
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.media media

site: .venv-docs/.site  ## build the documentation as a site into site/; a warning or a broken link is an error
	.venv-docs/bin/python website/build.py site

# compiled files are kept also where the environment says not to (as container images do): the tests start many processes
test test-slow test-newest mutants: export PYTHONDONTWRITEBYTECODE =

test: $(VENV)/.dev  ## install, then run the fast tests (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal

test-slow: $(VENV)/.dev  ## the long tests: kills and resumes, mutated files, trajectories
	$(BIN)/python -m pytest -m slow

mutants: $(VENV)/.dev  ## change the source in one place at a time, and see that a fast test fails (long)
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants/run.py

test-gpu:  ## the tests that need a CUDA GPU, with the torch and transformers that are installed
	PYTHONPATH=src$(if $(PYTHONPATH),:$(PYTHONPATH)) HF_HUB_OFFLINE=1 $(PYTHON) -m pytest -m gpu tests/gpu

test-newest: $(VENV)/.newest  ## what stands next to transformers, with the release of constraints-newest.txt, installed apart
	OMP_NUM_THREADS=1 PYTHONPATH=$(abspath $(VENV))/newest $(BIN)/python -m pytest -m "not slow" -n auto --dist worksteal \
	  tests/model tests/generate tests/train/test_train_buffers.py tests/train/test_train_unread.py \
	  tests/folders/test_folders_lazy_weights.py tests/recipes/test_recipes_adapters.py tests/recipes/test_recipes_experts.py

lint: $(VENV)/.dev  ## ruff and pyright
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(VENV)/.dev  ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

peers: .venv-trl/.peers  ## a second environment with TRL, then the tests that compare with it
	.venv-trl/bin/python -m pytest -m slow tests/peers

bench: .venv-trl/.peers  ## time one update of DPO and of the other methods against TRL, on a quiet machine (long)
	.venv-trl/bin/python -m benchmarks.dpo_step
	.venv-trl/bin/python -m benchmarks.methods_step

bench-gpu:  ## all benchmarks on a CUDA GPU, beside the installed torch; WHEELS=DIR for TRL offline, QUICK=1, MINUTES=9
	$(PYTHON) -m benchmarks.gpu --out bench-gpu $(if $(WHEELS),--wheels $(WHEELS)) $(if $(QUICK),--quick) $(if $(MINUTES),--budget-minutes $(MINUTES))

# A stamp is newer than what it was installed from, so that the install happens once and again after a change.
$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit("Afzal needs Python 3.11 or newer, and $(PYTHON) is %d.%d: make PYTHON=python3.12 ..." % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet -e . -c constraints.txt
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP) install --quiet -e ".[dev]" -c constraints.txt
	@touch $@ $(VENV)/.run

$(VENV)/.newest: constraints-newest.txt $(VENV)/.dev
	rm -rf $(VENV)/newest
	$(PIP) install --quiet --no-deps --target $(VENV)/newest -r constraints-newest.txt
	@touch $@

.venv-trl/.peers: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv-trl
	.venv-trl/bin/python -m pip install --quiet -e ".[dev,trl]" trl==1.16.0 -c constraints.txt
	@touch $@

.venv-docs/.site: website/requirements.txt
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/python -m pip install --quiet -r website/requirements.txt
	@touch $@

pins:  ## renew constraints.txt from a fresh environment
	rm -rf .venv-pins
	$(PYTHON) -m venv .venv-pins
	.venv-pins/bin/python -m pip install --quiet -e ".[dev]" torch==2.13.0
	@head -2 constraints.txt > constraints.tmp
	.venv-pins/bin/python -m pip freeze --exclude-editable | sed -e 's/+cpu$$//' -e '/^#/d' >> constraints.tmp
	mv constraints.tmp constraints.txt
	rm -rf .venv-pins

clean:  ## remove the environments, the caches and the demo's output
	rm -rf .venv .venv-trl .venv-pins .venv-docs site demo demo-* build dist .pytest_cache .ruff_cache .hypothesis
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
