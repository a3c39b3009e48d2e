# `make` runs the main job, `make help` lists the rest. No step needs another to be called first.

.DEFAULT_GOAL := main
.DELETE_ON_ERROR:
.PHONY: main smoke test test-slurm test-slow test-gpu check bench freeze lock check-lock env clean clean-results help

# Choices of an earlier call (PYTHON, TORCH_INDEX) hold until a new one is given.
-include .venv/made-with.mk
export PYTHON TORCH_INDEX

# The environment is ready when a file exists that is named after all that decides it; settings of the
# linters in pyproject.toml do not.
KEY := $(shell (pwd; echo "$(PYTHON) $(TORCH_INDEX)"; cat envs/torch.txt envs/lowrank.lock envs/install envs/packages; sed '/^\[tool.ruff/,$$d' pyproject.toml) | git hash-object --stdin)
READY := .venv/ready-$(KEY)

# Small jobs on few cores lose most of their speed to threads that wait busily.
RUN := PATH="$(CURDIR)/.venv/bin:$$PATH" OMP_WAIT_POLICY=PASSIVE
TARGET ?= all

main: $(READY) ## all studies at laptop scale, then the report (default)
	@echo "All studies at laptop scale: about 3 minutes for each on 2 cores, nothing for what is there already. The first"
	@echo "call downloads what the cards in resources/cards name, up to 0.2 GB, into resources/downloads."
	@$(RUN) snakemake --cores all --quiet host reason -- $(TARGET)
	@echo "Report: $(CURDIR)/reports/index.html"

smoke: $(READY) ## every study and rule on tiny random models, in smoke/; TARGET=reports/<study>.html for one
	@echo "All studies at smoke scale: about 3 minutes on 2 cores. Nothing is downloaded."
	@mkdir -p smoke
	@$(RUN) snakemake --cores all --quiet host reason --directory smoke --config scale=smoke -- $(TARGET)
	@echo "Report: $(CURDIR)/smoke/$(if $(filter all,$(TARGET)),reports/index.html,$(TARGET))"

# Two workers: more would each load torch again. By file, so that what a file's tests share is made once.
PYTEST := $(RUN) python -m pytest -n 2 --dist loadfile

test: $(READY) ## the tests
	@$(PYTEST) -m "not slow and not slurm"

# Alone: a scheduler's delays are real, and a machine busy with other tests makes them longer.
test-slurm: $(READY) ## the cluster profile on a SLURM that the tests start; needs root and Debian's packages
	@$(RUN) python -m pytest -m "slurm and not slow" tests/slurm

test-slow: $(READY) ## the tests that take minutes, those on SLURM last
	@$(PYTEST) -m "slow and not slurm"
	@$(RUN) python -m pytest -m "slurm and slow" tests/slurm

# Where one is missing they fail, instead of being skipped as in `make test`.
test-gpu: $(READY) ## the tests on a CUDA GPU, a few minutes
	@LOWRANK_GPU_REQUIRED=1 $(RUN) python -m pytest tests/gpu

check: $(READY) ## style, types and workflow lint, in under a minute
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) snakefmt --check workflow
	@$(RUN) snakemake --lint

bench: $(READY) ## all benchmarks, about 20 minutes of a quiet machine; writes benchmarks/results/ and the README's tables
	@$(RUN) python -m benchmarks.methods
	@$(RUN) python -m benchmarks.sweep
	@$(RUN) python -m benchmarks.plan

freeze: main smoke ## the main job and the smoke job, then tables, figures and costs into docs/frozen/ and the README
	@$(RUN) python docs/freeze.py

# The newest versions that envs/lowrank.in allows are taken only for what has no pin yet.
COMPILE := $(RUN) uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
	--override envs/without-torch.txt envs/lowrank.in --output-file

lock: $(READY) ## writes envs/lowrank.lock from envs/lowrank.in
	@$(COMPILE) envs/lowrank.lock
	@git --no-pager diff --stat -- envs/lowrank.lock

# Only pins are compared: an index may gain wheels, and so hashes, for a version that stays.
check-lock: $(READY) ## whether the lock is what envs/lowrank.in asks for (needs the package index)
	@cp envs/lowrank.lock .venv/compiled.lock
	@$(COMPILE) .venv/compiled.lock
	@bash -c 'diff <(grep "^[a-z]" envs/lowrank.lock) <(grep "^[a-z]" .venv/compiled.lock)' || \
		{ echo "envs/lowrank.lock is not what envs/lowrank.in asks for: run 'make lock'." >&2; exit 1; }

env: $(READY) ## only sets up .venv
	@echo "Ready: .venv, with $$(.venv/bin/python --version)"

$(READY):
	@envs/install $@

clean: ## removes caches and smoke/; keeps results, downloads and .venv
	@rm -rf smoke .lowrank .mypy_cache .ruff_cache .pytest_cache .hypothesis build
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# git clean -X takes only what git ignores, so a committed table or card is never touched.
OUTPUTS := results reports work logs resources/prepared .snakemake
clean-results: ## lists all that was computed; with CONFIRM=yes, deletes it (downloads stay)
	@git clean -d -X $(if $(filter yes,$(CONFIRM)),-f,-n) -- $(OUTPUTS)
	@$(if $(filter yes,$(CONFIRM)),:,echo "Nothing was deleted. To delete this: make clean-results CONFIRM=yes")

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' Makefile
