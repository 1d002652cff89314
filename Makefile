# Everything is installed in .venv beside this file. Needs Python 3.11 or newer, make and a C compiler.
#
#   make demo PYTHON=python3.12        another Python
#   make setup TORCH_ARGS="--index-url <PyTorch's index of CPU wheels>"    a smaller torch, without CUDA
#   make test PYTEST_ARGS="-k maml"    some of the tests

PYTHON      ?= python3
TORCH       ?= torch==2.13.0
TORCH_ARGS  ?=
PYTEST_ARGS ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.stamp
PIP   := $(BIN)/python -m pip --disable-pip-version-check
RUNS  := runs/maml_sinusoid

# The comparisons at 5 shots: what one shot cannot have, such as a held-out half of the support set, comes with them.
OMNIGLOT  := runs/compare_omniglot
FIVE      := task.shots=5 evaluate.task.shots=5
FIVE_MORE := methods.maml_glyphs.task.shots=5 methods.meta_nas.split=disjoint run.meta_steps=600 \
    methods.per_task_nas.search_steps=5

OTHER_NETWORKS := --also 'model.sizes=[40]' --also 'model.sizes=[20,20]' --also 'model.activation=relu'

# Data: METALEARN_DATA if it is set, else shared/data beside the checkout if it is there, else the program's own default.
ifeq ($(METALEARN_DATA),)
METALEARN_DATA := $(realpath ../shared/data)
endif
ifneq ($(METALEARN_DATA),)
export METALEARN_DATA
endif

# The stamp is written last and holds this folder's name. Where it is absent the last set-up was interrupted; where it
# names another folder the checkout was moved or copied. Either way .venv is made afresh.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
CLEAR := --clear
$(STAMP): force
endif

OLD_PYTHON := metalearn needs Python 3.11 or newer, and $(PYTHON) is not (or is not there). Name another: make PYTHON=python3.12 $(MAKECMDGOALS)
NO_VENV    := $(PYTHON) could not make a virtual environment (on Debian and Ubuntu: install python3-venv).
NO_L2L     := set-up: learn2learn could not be built, so the cross-checks against it will be skipped; all else works. \
It needs a C compiler and the headers of Python. Why: $(VENV)/learn2learn.log. To try again: make -B setup

NO_SWEEPS := set-up: the package sweeps was not found, so sweep files are not held against the schema of W&B; all else works.

.DEFAULT_GOAL := help
.PHONY: help setup demo test check sweep-sinusoid sweep-omniglot sweep-kills fuzz torture maml-sinusoid omniglot-quick compare-sinusoid compare-glyphs compare-omniglot omniglot-1-shot omniglot-5-shots omniglot-both \
    l2o-quadratics l2o-mlp clean force

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with torch, this project and learn2learn; does nothing where that is done.
	@echo 'ready: $(BIN)/metalearn --help'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { echo '$(OLD_PYTHON)' >&2; exit 1; }
	@rm -f $(STAMP)
	@echo 'set-up 1/4: a virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(CLEAR) $(VENV) || { echo '$(NO_VENV)' >&2; exit 1; }
	@echo 'set-up 2/4: $(TORCH)'
	@$(PIP) install $(TORCH_ARGS) '$(TORCH)'
	@echo 'set-up 3/4: metalearn and what it needs (a minute or two)'
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@$(PIP) install --quiet --no-deps sweeps==0.3.0 2>/dev/null || echo '$(NO_SWEEPS)' >&2
	@echo 'set-up 4/4: learn2learn, built from source (optional)'
	@$(PIP) install --use-pep517 --no-deps --config-settings=--build-option=build_ext learn2learn==0.2.0 \
	    >$(VENV)/learn2learn.log 2>&1 || echo '$(NO_L2L)' >&2
	@printf '%s\n' '$(CURDIR)' >$(STAMP)
	@echo 'set-up: done'

demo: $(STAMP) ## Compare ten ways of learning new letters and write runs/demo/report.html (minutes, CPU, no data needed).
	$(BIN)/metalearn compare experiments/demo.yaml --out runs/demo
	@echo 'The report: $(CURDIR)/runs/demo/report.html'

test: $(STAMP) ## Run all tests and say what was skipped and why.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

check: $(STAMP) ## Run ruff, and mypy (strict) on metalearn/.
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

maml-sinusoid: $(STAMP) ## Reproduce MAML on sinusoids (Finn et al. 2017, figure 2) and its pretrained counterpart.
	$(BIN)/metalearn train experiments/maml_sinusoid.yaml --out $(RUNS)/maml
	$(BIN)/metalearn train experiments/maml_sinusoid_pretrained.yaml --out $(RUNS)/pretrained
	$(BIN)/metalearn report $(RUNS)/maml $(RUNS)/pretrained --out $(RUNS)/report.html
	@echo 'The report: $(CURDIR)/$(RUNS)/report.html'

omniglot-quick: $(STAMP) ## Compare MAML, ProtoNet and others on 5-way 1-shot Omniglot (about 20 minutes on two CPU cores).
	$(BIN)/metalearn compare experiments/omniglot_5w1s_quick.yaml --out runs/omniglot_5w1s_quick
	@echo 'The report: $(CURDIR)/runs/omniglot_5w1s_quick/report.html'

compare-sinusoid: $(STAMP) ## Meta-learning, learned optimizers, transfer and architecture search on sinusoids, one account (no data needed).
	$(BIN)/metalearn compare experiments/compare_sinusoid.yaml --out runs/compare_sinusoid
	@echo 'The report: $(CURDIR)/runs/compare_sinusoid/report.html'

compare-glyphs: $(STAMP) ## The same on letters of unseen scripts, 1 and 5 shots (no data needed).
	$(BIN)/metalearn compare experiments/compare_glyphs.yaml --out runs/compare_glyphs/1_shot
	$(BIN)/metalearn compare experiments/compare_glyphs.yaml $(FIVE) --out runs/compare_glyphs/5_shots
	$(BIN)/metalearn report runs/compare_glyphs/1_shot runs/compare_glyphs/5_shots --out runs/compare_glyphs/report.html
	@echo 'The report: $(CURDIR)/runs/compare_glyphs/report.html'

torture: $(STAMP) ## Kill and stop a training 90 times, resume it, and hold its end against an undisturbed one (minutes).
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py

compare-omniglot: $(STAMP) ## The same on real Omniglot, and across glyphs and Omniglot (needs METALEARN_DATA; two processes, an hour and a quarter).
	@$(MAKE) --no-print-directory -j 2 omniglot-both omniglot-5-shots
	@for run in $(OMNIGLOT)/1_shot/methods/maml/seed-*; do test -e $$run/evaluations/1.json || \
	    $(BIN)/metalearn evaluate $$run task.source=glyphs task.ways=5 task.shots=1 task.queries=5 || exit 1; done
	$(BIN)/metalearn report $(OMNIGLOT)/1_shot $(OMNIGLOT)/5_shots --out $(OMNIGLOT)/report.html
	@echo 'The report: $(CURDIR)/$(OMNIGLOT)/report.html'

omniglot-1-shot: $(STAMP) ## Its half with 1 shot.
	$(BIN)/metalearn compare experiments/compare_omniglot.yaml --out $(OMNIGLOT)/1_shot

omniglot-both: omniglot-1-shot ## Its half with 1 shot, then what is left of the other half, beside who is at work on it.
	@$(MAKE) --no-print-directory omniglot-5-shots

omniglot-5-shots: $(STAMP) ## Its half with 5 shots.
	$(BIN)/metalearn compare experiments/compare_omniglot.yaml $(FIVE) $(FIVE_MORE) --out $(OMNIGLOT)/5_shots

l2o-quadratics: $(STAMP) ## Meta-train an LSTM optimizer on quadratics and hold it against tuned SGD, Adam and others.
	$(BIN)/metalearn l2o experiments/l2o_quadratics.yaml --out runs/l2o_quadratics
	@cat runs/l2o_quadratics/optimizers.md

l2o-mlp: $(STAMP) ## The same for training a small network on real digits; also wider, deeper, and with ReLU.
	$(BIN)/metalearn l2o experiments/l2o_mlp.yaml --tuning-tasks 10 $(OTHER_NETWORKS) --out runs/l2o_mlp
	@cat runs/l2o_mlp/optimizers.md

sweep-sinusoid: $(STAMP) ## Search rates and steps of MAML on sinusoids, two workers (about ten minutes; no data needed).
	$(BIN)/metalearn sweep maml_sinusoid --workers 2 --out runs/sweep_sinusoid
	@echo 'The report: $(CURDIR)/runs/sweep_sinusoid/report.html'

sweep-omniglot: $(STAMP) ## The same of MAML on 5-way 1-shot Omniglot (needs METALEARN_DATA; takes hours).
	$(BIN)/metalearn sweep maml_omniglot --workers 2 --out runs/sweep_omniglot
	@echo 'The report: $(CURDIR)/runs/sweep_omniglot/report.html'

sweep-kills: $(STAMP) ## A sweep of 40 trials by 4 workers, 2 of them killed, against one undisturbed.
	OMP_NUM_THREADS=1 $(BIN)/python tests/sweep_kills.py

fuzz: $(STAMP) ## 10,000 hostile configs, overrides, sweep files, run directories, archives and image folders.
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py 10000

clean: ## Remove .venv and the caches of the tools; runs/ stays.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
