# Two virtual environments, so that the demo shows what a user installs and nothing more.
#   make demo    install, then the whole demo          make check   format, lint, types
#   make test    install with test extras, the suite   make bench   all benchmarks
#   make test-gpu, make bench-gpu: the same for a GPU, in an environment with a torch that can use it
PYTHON ?= python3
DEMO_ENV ?= .venv-demo
TEST_ENV ?= .venv
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/*)

.PHONY: demo docs wheels test test-gpu bench-gpu check sanitize format bench bench-kernels bench-peers clean

demo: $(DEMO_ENV)/installed
	$(DEMO_ENV)/bin/graftlm demo --out demo-run

test: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/python -m pytest --numprocesses 2 --dist loadgroup

# Both fail where torch finds no GPU. GPU_PYTHON: an environment with graftlm and a torch for the GPU;
# PYTHONPATH=src suffices for a copied folder.
GPU_PYTHON ?= $(TEST_ENV)/bin/python
test-gpu:
	GRAFTLM_TEST_GPU=1 PYTHONPATH=src $(GPU_PYTHON) -m pytest tests/gpu

bench-gpu:
	PYTHONPATH=src $(GPU_PYTHON) benchmarks/bench_gpu.py

check: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/ruff format --check .
	$(TEST_ENV)/bin/ruff check .
	$(TEST_ENV)/bin/mypy

# The kernel tests with AddressSanitizer and UndefinedBehaviorSanitizer in the native code.
sanitize: $(TEST_ENV)/installed
	TEST_ENV=$(TEST_ENV) .ci/sanitize

# The documents as a site, in site/. Every warning is an error.
docs: $(TEST_ENV)/installed
	NO_MKDOCS_2_WARNING=1 $(TEST_ENV)/bin/python -m mkdocs build --strict

# Wheels for machines without a compiler, in dist/.
wheels:
	PYTHON=$(PYTHON) packaging/build_wheels.sh

format: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/ruff format .
	$(TEST_ENV)/bin/ruff check --fix .

# torch first and alone: its version must be fixed before anything that depends on it is resolved.
$(DEMO_ENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(DEMO_ENV)
	$(DEMO_ENV)/bin/python $(PIP_INSTALL) torch
	$(DEMO_ENV)/bin/python $(PIP_INSTALL) --editable ".[demo]"
	touch $@

$(TEST_ENV)/installed: $(SOURCES)
	$(PYTHON) -m venv $(TEST_ENV)
	$(TEST_ENV)/bin/python $(PIP_INSTALL) torch
	$(TEST_ENV)/bin/python $(PIP_INSTALL) --editable ".[test]"
	touch $@

# Run these on an otherwise idle machine: two builds or a test run beside them make noise.
bench-kernels: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/python benchmarks/bench_kernels.py

bench-peers: $(TEST_ENV)/installed
	$(TEST_ENV)/bin/python benchmarks/bench_peers.py --data e2e
	$(TEST_ENV)/bin/python benchmarks/bench_peers.py --data gsm8k --steps 5

bench: bench-kernels bench-peers
	$(TEST_ENV)/bin/python benchmarks/bitidentity.py
	$(TEST_ENV)/bin/python benchmarks/parity_peft.py
	$(TEST_ENV)/bin/python benchmarks/peft_roundtrip.py
	$(TEST_ENV)/bin/python benchmarks/bench_load.py
	$(TEST_ENV)/bin/python benchmarks/bench_cross_entropy.py
	$(TEST_ENV)/bin/python benchmarks/bench_attention.py
	$(TEST_ENV)/bin/python benchmarks/bench_step.py
	$(TEST_ENV)/bin/python benchmarks/bench_memory.py
	$(TEST_ENV)/bin/python benchmarks/bench_seven_billion.py
	$(TEST_ENV)/bin/python benchmarks/bench_steady.py
	$(TEST_ENV)/bin/python benchmarks/stop_rate.py

clean:
	rm -rf $(DEMO_ENV) $(TEST_ENV) build demo-run
