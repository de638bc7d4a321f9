# Everything that people and CI run. `make` alone lists it.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help
.NOTPARALLEL:

# Debian's own Python: BCC's bindings come from Debian and are made for no other.
PYTHON := /usr/bin/python3
VENV := .venv
BIN := $(VENV)/bin
MAKE_VENV := $(PYTHON) -m venv --system-site-packages $(CURDIR)/$(VENV)
STAMP := .make/venv
WORKERS = $(shell n=$$(nproc); echo $$((n < 8 ? n : 8)))

.PHONY: help
help: ## List the targets
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 20
	@echo "For demo and lab: MODE=dsr|nat HOOK=auto|xdp|xdp-generic|tc; for demo: REQUESTS=50000"

.PHONY: demo
demo: root venv ## Show weighted load balancing of real traffic (about a minute)
	@$(BIN)/python -m lb.lab demo

.PHONY: lab
lab: root venv ## Build the lab and leave it up to play with
	@$(BIN)/python -m lb.lab up

.PHONY: lab-down
lab-down: root venv ## Remove the lab
	@$(BIN)/python -m lb.lab down

.PHONY: fleet
fleet: root venv ## Build a fleet (3 etcd, 3 nodes, a router) and leave it up to play with
	@$(BIN)/python -m lb.lab fleet-up

.PHONY: fleet-down
fleet-down: root venv ## Remove the fleet
	@$(BIN)/python -m lb.lab fleet-down

.PHONY: test
test: root venv ## Install what is missing and run the whole suite
	@lb/lab/install.sh kernels && $(BIN)/python -m tests.kernels.debian 6.1 \
		|| echo "test: Debian's kernel or what boots it can't be had: that test is skipped"
	@$(BIN)/python -m pytest -q --dist load --no-loadscope-reorder \
		--tx '$(WORKERS)*popen//python=tests/apart.sh $(BIN)/python'

.PHONY: check-slots
check-slots: root venv ## Measure the promises of slot tables (minutes; the last line says PASS or FAIL)
	@$(BIN)/python -m tests.checks.slots

.PHONY: check-datapath
check-datapath: root venv ## Every mode with real traffic, and against the model (the last line says PASS or FAIL)
	@$(BIN)/python -m tests.checks.datapath

.PHONY: check-health
check-health: root venv ## Servers that fail for real, next to HAProxy (minutes; the last line says PASS or FAIL)
	@$(BIN)/python -m tests.checks.health

.PHONY: check-fleet
check-fleet: root venv ## What can happen to a fleet, with traffic flowing (minutes; the last line says PASS or FAIL)
	@$(BIN)/python -m tests.checks.fleet

.PHONY: check-rollout
check-rollout: root venv ## Rollouts of good and bad canaries, for real (minutes; the last line says PASS or FAIL)
	@$(BIN)/python -m tests.checks.rollout

.PHONY: test-kernel
test-kernel: root deps-kernels venv ## Run the tests under another kernel in a virtual machine: KERNEL=6.1 PART="modes demo"
	@$(BIN)/python -m tests.kernels $(or $(KERNEL),6.1) $(PART:%=--part %)

.PHONY: test-kernels
test-kernels: root deps-kernels venv ## The same under all: 5.10, 6.1, 6.12, the newest; writes docs/reference/kernels.md
	@$(BIN)/python -m tests.kernels all

.PHONY: test-fresh
test-fresh: root deps-kernels venv ## Do in a fresh Debian 12 what the README tells a newcomer
	@$(BIN)/python -m tests.kernels.fresh

.PHONY: check-kernels
check-kernels: root deps-kernels venv ## All of that (an hour or more without KVM; the last line says PASS or FAIL)
	@$(BIN)/python -m tests.checks.kernels

.PHONY: check-bench
check-bench: root venv ## How fast it is against its goals (minutes; the last line says PASS or FAIL)
	@$(BIN)/python -m tests.checks.bench

.PHONY: test-packets
test-packets: root venv ## Compare kernel and model on PACKETS=200000 packets for each mode (hours)
	@for mode in dsr nat ipip gue fullnat; do \
	LB_MODE=$$mode LB_PACKETS=$(or $(PACKETS),200000) $(BIN)/python -m pytest -q -s tests/datapath/test_against_model.py \
	|| exit 1; done

.PHONY: bench
bench: root venv ## Measure, half an hour (SUITES="slots packet growth live requests control daemon checks fleet" QUICK=1)
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(SUITES)

.PHONY: bench-compare
bench-compare: venv ## Compare results: OLD=file.json [NEW=file.json]
	@$(BIN)/python -m bench.compare $(OLD) $(NEW)

.PHONY: lint
lint: venv ## Check style, types and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy lb bench
	@$(BIN)/lint-imports

.PHONY: fmt
fmt: venv ## Put the Python code into shape
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: deps
deps: ## Install the Debian packages that are missing
	@lb/lab/install.sh

.PHONY: deps-kernels
deps-kernels: ## Install the Debian packages that test-kernel, test-fresh and check-kernels need besides
	@lb/lab/install.sh kernels

# A virtual environment of another Python, or of another place (its programs hold its path), or
# without a Python, is made anew.
.PHONY: venv
venv: deps ## Make .venv with the pinned Python packages
	@if ! $(BIN)/python -c '' 2>/dev/null || ! grep -qxF 'command = $(MAKE_VENV)' $(VENV)/pyvenv.cfg; \
	then rm -rf $(VENV) $(STAMP); fi
	@$(MAKE) --silent $(STAMP)

# PIP_CONSTRAINT, and not --constraint alone, because it holds for what builds the package too.
$(STAMP): pyproject.toml constraints.txt
	@echo "venv: installing the pinned Python packages into $(VENV)"
	@[ -d $(VENV) ] || $(MAKE_VENV)
	@PIP_CONSTRAINT=constraints.txt $(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--editable '.[dev]'
	@mkdir -p $(@D) && touch $@

.PHONY: constraints
constraints: ## Pin the newest Python packages (for maintainers)
	@rm -rf .make/fresh && $(PYTHON) -m venv .make/fresh
	@.make/fresh/bin/python -m pip install --quiet --upgrade '.[dev]' hatchling editables setuptools
	@{ sed '/^[^#]/,$$d' constraints.txt; .make/fresh/bin/python -m pip freeze --all --exclude lb --exclude pip; } \
		>.make/constraints.txt && mv .make/constraints.txt constraints.txt
	@rm -rf .make/fresh

.PHONY: root
root:
	@[ "$$(id -u)" = 0 ] || { echo "error: this needs root: sudo make $(MAKECMDGOALS)" >&2; exit 1; }
