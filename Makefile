# On a fresh machine, run `make demo` or `make test`: both first create the environment in .venv if it does not exist.
#
#   EXTRA=gpu make demo            on a machine with an NVIDIA GPU: newest builds, faiss with CUDA
#   PYTHON=python3.12 make demo    another Python (3.11 or later)

PYTHON ?= $(firstword $(foreach p,python3.11 python3.12 python3.13 python3,$(if $(shell command -v $(p) 2>/dev/null),$(p))))
VENV := .venv
BIN := $(VENV)/bin
# An environment keeps the extra that it was created with: faiss-cpu and faiss-gpu overwrite each other.
MADE := $(patsubst $(VENV)/.ready-%,%,$(wildcard $(VENV)/.ready-*))
EXTRA ?= $(or $(firstword $(MADE)),cpu)
ifneq ($(MAKECMDGOALS),clean)
ifneq ($(filter-out $(EXTRA),$(MADE)),)
$(error $(VENV) was created with EXTRA=$(MADE), not $(EXTRA): omit EXTRA, or delete $(VENV) first)
endif
endif
CONSTRAINTS ?= $(wildcard constraints/$(EXTRA).txt)
READY := $(VENV)/.ready-$(EXTRA)
# After installation, nothing here needs the network, and some machines have none.
export HF_HUB_OFFLINE ?= 1
export TOKENIZERS_PARALLELISM ?= false
# Keep compiled modules, so that other processes need not compile them again.
export PYTHONDONTWRITEBYTECODE :=
# Test files run in parallel, each with one thread; a worker needs about 1.5 GB of memory.
CORES := $(or $(shell getconf _NPROCESSORS_ONLN 2>/dev/null),2)
WORKERS ?= $(shell echo $$(( $(CORES) < 8 ? $(CORES) : 8 )))

.PHONY: demo test check docs env benchmarks tune comparison question own-reports clean

demo: $(READY)
	$(BIN)/python scripts/demo.py

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Build the documentation site in build/site; broken links are errors.
docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

benchmarks: $(READY)
	$(BIN)/python -m benchmarks

tune: $(READY)
	$(BIN)/python scripts/demo.py --config configs/demo.yaml --tune

# Takes hours on two cores; can be resumed. Two worlds, models for the second one, all arms x 5 seeds.
comparison: $(READY)
	$(BIN)/python scripts/make_world.py --seed 0 --output outputs/worlds/0
	$(BIN)/python scripts/make_world.py --seed 1 --output outputs/worlds/1
	test -d outputs/world1/models/backbone || $(BIN)/python -m tools.embedded.make_weights --seed 101 --world-seed 1 \
		--output outputs/world1/models
	$(BIN)/python scripts/compare.py --config configs/synthetic.yaml --record results/synthetic.csv
	$(BIN)/python scripts/compare.py --config configs/ablations.yaml --record results/ablations.csv

# Conditions under which text might help more: a weak VLM, reports that state grades with a VLM that was not trained on
# them, a student with a lower input resolution, twice the steps. Needs `make comparison`, which writes the models of the
# second world.
question: $(READY)
	$(BIN)/python scripts/make_world.py --seed 0 --output outputs/worlds/0
	test -d outputs/weak/backbone || $(BIN)/python -m tools.embedded.make_weights --vlm-tiles 3000 --vlm-epochs 3 \
		--output outputs/weak
	test -d outputs/coarse/backbone || $(BIN)/python -m tools.embedded.make_weights --captions coarse \
		--output outputs/coarse
	$(BIN)/python scripts/compare.py --config configs/weak_vlm.yaml --record results/weak_vlm.csv
	$(BIN)/python scripts/compare.py --config configs/knowing_reports.yaml --record results/knowing_reports.csv
	$(BIN)/python scripts/compare.py --config configs/other_views.yaml --record results/other_views.csv
	$(BIN)/python scripts/compare.py --config configs/more_steps.yaml --record results/more_steps.csv

# The patients' own reports: search on world 2, comparison on worlds 0 and 1. Takes hours on two cores; can be resumed.
own-reports: $(READY)
	for seed in 0 1 2; do $(BIN)/python scripts/make_world.py --cases --seed $$seed --output outputs/cases/$$seed || exit; done
	$(BIN)/python scripts/tune.py --config configs/own_reports_synthetic.yaml --name=own_reports_tuning \
		--tiles.path=outputs/cases/2/tiles.csv --tiles.images=outputs/cases/2/tiles.zip \
		--reports.path=outputs/cases/2/reports.jsonl --comparison.data_sets='{}'
	$(BIN)/python scripts/compare.py --config configs/own_reports_synthetic.yaml --record results/own_reports_synthetic.csv
	$(BIN)/python scripts/compare.py --config configs/own_reports_synthetic.yaml --name=own_reports_unsearched \
		--comparison.arms='[image_only, image_embedding, other_snippet, own_snippet, own_bags, own_rules_unlabelled, own_shuffled_unlabelled, zero_label]' \
		--comparison.controls='[image_embedding, other_snippet]' --comparison.searched=null --record results/own_reports_unsearched.csv

env: $(READY)

# pip would compile all modules on one core. Here, all cores compile. The packages' tests and most models of
# transformers, more than a quarter of all modules, are skipped.
UNCOMPILED := site-packages/.*/tests?/|site-packages/transformers/models/[b-z]

$(READY): pyproject.toml $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: Python 3.11 or later is needed; to choose one: PYTHON=python3.12 make demo"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(if $(CONSTRAINTS),PIP_CONSTRAINT=$(CONSTRAINTS)) $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -e '.[$(EXTRA),dev]'
	$(BIN)/python -m compileall -qq -j 0 -x '$(UNCOMPILED)' $(VENV)/lib || true # some are templates
	$(BIN)/python -m tools.torchvision_hook
	touch $@

clean:
	rm -rf $(VENV) outputs build *.egg-info .mypy_cache .ruff_cache .pytest_cache
